"""The web page: files of this folder's `ui/`, read once.

Knows file names. Always: only files that were there at start are served, so no path can lead
elsewhere; a page may load from and talk to this node alone.
"""

from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parent / "ui"
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
# A picture on a foreign host in a model's answer would carry the conversation away in its address.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action "
    "'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # a name in an answer's link would tell a name server what was asked
    "X-DNS-Prefetch-Control": "off",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "quietchoir",
}


# What other pages have of this one.
SHARED = (
    *("api.js", "texts.js", "texts/en.json", "theme.js", "icon.svg", "style.css"),
    "vendor/htm-preact.js",
)


class Pages:
    """A page's files: those of its folder, and what it has of the node's own."""

    def __init__(self, folder: Path = FOLDER) -> None:
        files = [path for path in folder.rglob("*") if path.suffix in KINDS]
        own = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        self.files = {name: (FOLDER / name).read_bytes() for name in SHARED} | own

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [
            web.get("/", self.index),
            web.get("/favicon.ico", self.icon),
            web.get("/ui/{name:.+}", self.file),
        ]

    async def index(self, _request: web.Request) -> web.Response:
        """The page itself; it holds no token."""
        return self.respond("index.html")

    async def icon(self, _request: web.Request) -> web.Response:
        """Browsers ask for it unasked."""
        return self.respond("icon.svg")

    async def file(self, request: web.Request) -> web.Response:
        """A script, style or picture of the page."""
        return self.respond(request.match_info["name"])

    def respond(self, name: str) -> web.Response:
        """One file, or 404."""
        if name not in self.files:
            raise web.HTTPNotFound(reason=f"{name[:80]!r} is not a file of this page")
        return web.Response(
            body=self.files[name], content_type=KINDS[Path(name).suffix], charset="utf-8"
        )


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """On every response, also errors and streams."""
    response.headers.update(HEADERS)
