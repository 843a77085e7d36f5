"""HOST:PORT, where a coordinator can be reached, or where it listens.

Knows how such a text is spelled. Knows nothing of sockets or of name servers.
Always: what leaves here names one machine in one spelling: what stands in the certificate, what a
client dials and what a listener binds are read from the same two parts.
"""

import ipaddress
import re
from dataclasses import dataclass

LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")  # as the last label of a name: meant as a number
MAX_NAME = 253  # RFC 1035


@dataclass(frozen=True, slots=True)
class Address:
    """Two parts."""

    host: str  # a name or a number, without brackets
    port: int

    @staticmethod
    def parse(text: str, *, listening: bool = False) -> "Address":
        """Read one.

        Args:
            listening: to bind, not to dial: 0.0.0.0 and [::] mean all of this machine's addresses
            then.

        Raises:
            ValueError: says what was found and how it is spelled.
        """
        if "://" in text:
            raise ValueError(
                f"{text!r} must be HOST:PORT, without {text.partition('://')[0]}:// "
                f"and without a path"
            )
        if any(letter.isspace() or not letter.isprintable() for letter in text):
            raise ValueError(f"{text!r} must be HOST:PORT, without blanks")
        if strange := sorted(set(text) & set("/?#@\\,;")):
            raise ValueError(f"{text!r} must be HOST:PORT alone, without {' '.join(strange)}")
        host, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            raise ValueError(
                f"{text!r} has no port, expected HOST:PORT, for example "
                f"192.0.2.7:8790 or [2001:db8::7]:8790"
            )
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
            raise ValueError(f"{text!r} has port {port!r}, expected a number from 1 to 65535")
        return Address(host_of(host, text, listening), int(port))


def host_of(host: str, text: str, listening: bool) -> str:
    """The host of an address, without brackets.

    Raises:
        ValueError: as `Address.parse`.
    """
    if not host:
        everywhere = "; 0.0.0.0 listens on all addresses" if listening else ""
        raise ValueError(f"{text!r} has no host, expected HOST:PORT{everywhere}")
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host or bracketed:
        if not bracketed:
            raise ValueError(f"{text!r}: an IPv6 number stands in brackets, for example [::1]:8790")
        return number_of(host[1:-1], text, listening, version=6)
    if NUMBER.fullmatch(host.rpartition(".")[2]):
        return number_of(host, text, listening, version=4)
    if not host.isascii():
        raise ValueError(f"{text!r}: write the name as name servers know it, in ASCII (xn--…)")
    if host.endswith("."):
        raise ValueError(
            f"{text!r}: leave out the dot at the end of the name; certificates do not have it"
        )
    if len(host) > MAX_NAME or not all(LABEL.fullmatch(label) for label in host.split(".")):
        raise ValueError(
            f"{text!r}: {host!r} is no name of a machine: letters, digits and dashes, "
            f"in parts divided by dots"
        )
    return host


def number_of(host: str, text: str, listening: bool, *, version: int) -> str:
    """An IP number, as it is given.

    Raises:
        ValueError: none, or one that nobody can dial.
    """
    try:
        number = ipaddress.IPv4Address(host) if version == 4 else ipaddress.IPv6Address(host)
    except ValueError:
        form = (
            ("four numbers from 0 to 255, for example 192.0.2.7")
            if version == 4
            else "for example [2001:db8::7]"
        )
        raise ValueError(f"{text!r}: {host!r} is no IPv{version} number ({form})") from None
    if isinstance(number, ipaddress.IPv6Address) and number.scope_id is not None:
        raise ValueError(
            f"{text!r}: what follows % means something on one machine only; use an "
            f"address that others can dial"
        )
    if isinstance(number, ipaddress.IPv6Address):
        number = number.ipv4_mapped or number
    if number.is_unspecified and not listening:
        raise ValueError(
            f"{text!r}: {host} is where one listens, not what others can dial; name the address "
            f"that members see, and listen "
            f"there with `coordinate --listen {text}`"
        )
    if number.is_multicast or str(number) == "255.255.255.255":
        raise ValueError(f"{text!r}: {host} is no single machine's address")
    return host
