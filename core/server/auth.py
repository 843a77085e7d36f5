"""Who may talk to this node.

Knows the token file and two request headers. Knows nothing of what is asked.
Always: a request that carries a foreign Host or Origin is refused before anything else is read; a
token is compared in constant time and never logged.

Covered: other web pages in the owner's browser (cross-site requests, DNS rebinding), other users of
this machine.
Not covered: programs that run as the owner; they can read the token file.
"""

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Handler, Middleware

from .. import paths
from ..errors import ConfigError

TOKEN_FILE = "token"
TOKEN_BYTES = 32
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
OPEN_PATHS = re.compile(r"/|/health/*|/favicon\.ico|/ui/.*")  # they hold nothing of the owner's


def load_token(home: Path) -> str:
    """The node's token; made at the first start, readable by its owner alone.

    Raises:
        ConfigError: the file is readable by others, too short, or no token.
    """
    path = paths.private_folder(home) / TOKEN_FILE
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        token = secrets.token_urlsafe(TOKEN_BYTES)
        paths.write_atomically(path, token.encode(), mode=0o600)
        return token
    if mode & 0o077:
        raise ConfigError(
            f"{path}: others on this machine can read it (mode {mode:o}); delete it, "
            f"a new one is made at start"
        )
    token = read_token(path)
    if len(token) < TOKEN_BYTES:
        raise ConfigError(
            f"{path}: holds {len(token)} characters, expected {TOKEN_BYTES}; delete "
            f"it, a new one is made"
        )
    return token


def read_token(path: Path) -> str:
    """The token in `path`, for either side.

    Raises:
        ConfigError: the file cannot be read, or holds something else than one line of printable
        ASCII.
    """
    try:
        token = path.read_bytes().strip().decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: no token can be read there ({error}); name the node's with --token-file"
        ) from error
    if not token.isprintable() or " " in token:
        raise ConfigError(
            f"{path}: holds {len(token.split())} words, expected one line with the "
            f"token alone; mend the file"
        )
    return token


class AccessDenied(Exception):
    """A request that gets no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


OWNER = web.RequestKey("owner", bool)  # the token was right


def guard(token: str, host: str, hosts: Iterable[str] = ()) -> Middleware:
    """Middleware that lets through only the node's owner.

    Args:
        host: the address the node was told to listen on; it may be a name.
        hosts: other names that the owner gives this node, in a proxy's or a name server's
        configuration.
    """
    names = {
        "localhost",
        host.lower(),
        socket.gethostname().lower(),
        *(name.lower() for name in hosts),
    }

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        named = request.headers.get("Host")
        # HTTP/1.0 has no Host, and no browser speaks it: health checks do.
        if named is not None or request.version >= HttpVersion11:
            check_host(named or "", names)
        check_origin(request.headers.get("Origin"), named or "")
        if not OPEN_PATHS.fullmatch(request.path):
            check_token(request.headers.get("Authorization", ""), token)
            request[OWNER] = True
        return await handler(request)

    return check


def check_host(header: str, names: set[str]) -> None:
    """DNS rebinding: a foreign name that was pointed at this machine shows in Host. Addresses
    cannot be rebound.
    """
    match = HOST.fullmatch(header)
    name = match["name"].lower().strip("[]") if match else ""
    if name in names:
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise AccessDenied(
            403,
            f"Host {header[:80]!r} is not this node; use its address or localhost, or name it "
            f"in server.hosts",
        ) from None


def check_origin(origin: str | None, host: str) -> None:
    """Browsers send Origin with every cross-site request that could do harm; only the node's own
    page may ask.
    """
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise AccessDenied(
            403,
            f"Origin {origin[:80]!r} may not use this node; open the page that the "
            f"node itself serves",
        )


def check_token(header: str, token: str) -> None:
    """The bearer token, as OpenAI's clients send their key."""
    scheme, _, given = header.partition(" ")
    # the bytes of the header, whatever they are
    sent = given.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() != "bearer" or not hmac.compare_digest(sent, token.encode()):
        raise AccessDenied(
            401,
            "the token is missing or wrong; send Authorization: Bearer TOKEN (file "
            "`token` in the node's home)",
        )
