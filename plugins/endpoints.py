"""Where a plugin may connect to: a host and a port, written in one way only.

Knows names and addresses. Resolves nothing and opens nothing.
Always: what is granted is one host and one port; no pattern, no address in another notation, and no
name that a resolver might read as an address.

Not covered: a host of the owner's network that has a public address; which of the sites at one
address is spoken to.
Source: RFC 1123 2.1 and RFC 5890 (names), RFC 6890 (special addresses), WHATWG URL "ends in a
number".
"""

import ipaddress
import re
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
HTTPS = 443
MAX_HOSTS = 16  # of one plugin
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
BRACKETED = re.compile(r"\[([^\[\]]*)\](?::([0-9]{1,5}))?")
PLAIN = re.compile(r"([^:\[\]]*)(?::([0-9]{1,5}))?")
# Addresses that carry an IPv4 address, and go where that one says: those that a translator of an
# IPv6-only network serves are looked into, the others are tunnels that nobody needs any more.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
TUNNELS = tuple(
    ipaddress.IPv6Network(one)
    for one in ("::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fec0::/10")
)
EXAMPLES = ipaddress.IPv6Network("3fff::/20")  # RFC 9637, which older Pythons do not know
RELAYS = ipaddress.IPv4Network("192.88.99.0/24")


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One host and one port."""

    host: str  # small letters, no dot at the end; an address without brackets
    port: int

    @property
    def address(self) -> Address | None:
        """The address, if the host is one."""
        return address_of(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse(text: str, *, private: bool) -> Endpoint:
    """`HOST` or `HOST:PORT`; an IPv6 address in brackets. Without a port: 443.

    Args:
        private: whoever wrote it may name addresses of this machine and of its own network.

    Raises:
        ValueError: what was found, and how it is written.
    """
    found = BRACKETED.fullmatch(text) or PLAIN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no host; write HOST or HOST:PORT, and nothing else")
    host, port = found[1].lower(), int(found[2] or HTTPS)
    if "*" in host:
        raise ValueError(f"{text!r} is too broad; name each host, patterns are not granted")
    if not 1 <= port <= 65535:
        raise ValueError(f"{text!r} has the port {port}; it must be 1 to 65535")
    if text.startswith("[") or NUMBER.fullmatch(host.rpartition(".")[2]):
        return literal(text, host, port, private=private)
    if len(host) > 253 or not all(map(LABEL.fullmatch, host.split("."))):
        raise ValueError(
            f"{text!r} is no host name; write it in ASCII (xn--…), without a dot at the end"
        )
    if not private and "." not in host:
        raise ValueError(f"{text!r} is a name of one machine's own network; its owner may name it")
    return Endpoint(host, port)


def literal(text: str, host: str, port: int, *, private: bool) -> Endpoint:
    """An endpoint whose host is an address. Raises: ValueError: as `parse`."""
    address = address_of(host)
    if address is None or text.startswith("[") != (address.version == 6):
        raise ValueError(
            f"{text!r} is no address as it is written here; for example 192.0.2.7:443 or "
            f"[2001:db8::7]:443, without a scope, and IPv4 as IPv4"
        )
    if unreachable(address):
        raise ValueError(f"{text!r} is no address of one host; it is never granted")
    if not private and not is_public(address):
        raise ValueError(
            f"{text!r} is an address of one machine or its own network; its owner may name it"
        )
    return Endpoint(host, port)


def address_of(host: str) -> Address | None:
    """The address that `host` spells in its one canonical form; None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    return address if str(address) == host and not mapped and "%" not in host else None


def unreachable(address: Address) -> bool:
    """Whether no owner can grant it: what is no single host, or of one link (where a cloud serves
    its machines' keys: 169.254.169.254).
    """
    return address.is_multicast or address.is_unspecified or address.is_link_local


def is_public(address: Address) -> bool:
    """Whether it is of the public network, whichever way it is written."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None or any(address in tunnel for tunnel in TUNNELS):
            return False
        if address in EXAMPLES:
            return False
        if address in NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    elif address in RELAYS:
        return False
    return address.is_global and not (
        address.is_multicast or address.is_reserved or unreachable(address)
    )
