"""The way to a coordinator: whom to trust at its end, past which proxies, and in a sentence why it
led nowhere.

Knows TLS, proxies and what httpx raises. Knows nothing of Flower's routes or of messages.
Always: the one certificate that is trusted is the signed file's, whatever this machine's clock says
of its dates; proxies of the environment are passed by; a reason says what was found and what to do,
and quotes nothing that the other side sent.
"""

import socket
import ssl
from collections.abc import Iterator

import httpx

from ...core.errors import ConfigError
from ..spec.address import Address

NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name
TIMEOUT_S = 30.0
IDLE_S = 60.0  # a connection is kept for so long: longer than two heartbeats are apart
PROXY_SCHEMES = ("http", "https")


def client(certificate: str, proxy: str = "") -> httpx.Client:
    """An HTTP client that accepts this certificate and no other.

    Args:
        proxy: URL of the one to go through; empty: none, whatever the environment names.

    Raises:
        ConfigError: a proxy that is none.
    """
    return httpx.Client(
        verify=pinned(certificate),
        proxy=proxy_of(proxy),
        trust_env=False,
        timeout=TIMEOUT_S,
        follow_redirects=False,
        limits=httpx.Limits(keepalive_expiry=IDLE_S),
    )


def pinned(certificate: str) -> ssl.SSLContext:
    """Trust in one self-signed certificate, at any date.

    The file's signature vouches for it, and the file has an end of its own: a clock that is wrong
    must not keep a member out.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificate)
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    return context


def proxy_of(url: str) -> httpx.Proxy | None:
    """Raises ConfigError: not http://HOST:PORT or https://HOST:PORT, with or without a user's
    name.
    """
    if not url:
        return None
    scheme, _, rest = url.partition("://")
    try:
        Address.parse(rest.removesuffix("/").rpartition("@")[2])
        parsed = httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        parsed = httpx.URL()
    if scheme not in PROXY_SCHEMES or parsed.scheme != scheme:
        raise ConfigError(
            f"proxy: found {shown(url)}, expected http://HOST:PORT or https://HOST:PORT; a SOCKS "
            f"proxy cannot be used, and "
            "without one the coordinator is dialled directly"
        )
    return httpx.Proxy(parsed)


def shown(url: str) -> str:
    """A proxy's URL without the password that may be in it."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def reason(error: Exception, address: str, proxy: str = "") -> str:
    """Why there was no answer: the end of a sentence that begins with "the coordinator at
    ADDRESS".
    """
    if isinstance(error, httpx.ProxyError):
        return (
            f"cannot be reached through the proxy {shown(proxy)}, which does not connect to it: it "
            f"may not be allowed to, or "
            "the coordinator is not running"
        )
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and proxy and not is_tls(error):
        return (
            f"cannot be reached: the proxy {shown(proxy)} is not there "
            f"({unreached(error, proxy_address(proxy))}); "
            "mend --proxy, or leave it out to dial directly"
        )
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"cannot be reached: {unreached(error, address)}"
    if isinstance(error, httpx.TimeoutException):
        return (
            f"took the connection, and then said nothing for {TIMEOUT_S:.0f} s; the line or "
            f"that machine may be overloaded"
        )
    if isinstance(error, httpx.RemoteProtocolError | httpx.NetworkError):
        return "hung up in the middle of a request: it ended, or the line broke"
    return (
        f"answered what is not understood ({type(error).__name__}); is it of the same version "
        f"of quietchoir?"
    )


def unreached(error: Exception, address: str) -> str:
    """What stood in the way of a connection."""
    host, _, port = address.rpartition(":")
    if isinstance(error, httpx.ConnectTimeout):
        return "nothing came back: that machine is off, or a firewall drops what is sent to it"
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                "another certificate than the federation file's is shown there: somebody else "
                "listens at this address, "
                "something on the way opens the connection, or the coordinator has a new one; "
                "get the newest file from the owner"
            )
        if isinstance(cause, ssl.SSLEOFError | ConnectionResetError):
            return (
                "who listens there hung up before TLS began: it is no coordinator, it is just "
                "ending, or it has too much to do"
            )
        if isinstance(cause, ssl.SSLError):
            return (
                "what listens there speaks no TLS: plain HTTP, or another program; compare the "
                "address with the owner's"
            )
        if isinstance(cause, socket.gaierror):
            return (
                f"the name {host} is not known on this machine; look at the network and the "
                f"name, or ask for a number"
            )
        if isinstance(cause, ConnectionRefusedError):
            return (
                f"nobody listens there; it was not started yet, has ended, or port {port} is "
                f"not the one"
            )
        if isinstance(cause, OSError) and cause.strerror:
            return f"there is no way to it ({cause.strerror}); is this machine on that network?"
    return "the connection failed; look at the network between the two"


def causes(error: BaseException) -> Iterator[BaseException]:
    """What is behind an error, first that which was raised last."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def is_tls(error: BaseException) -> bool:
    """Did the connection stand, and TLS fail?"""
    return any(isinstance(cause, ssl.SSLError) for cause in causes(error))


def proxy_address(url: str) -> str:
    """HOST:PORT of a proxy."""
    return shown(url).partition("://")[2].removesuffix("/")
