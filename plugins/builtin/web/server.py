"""The web plugin: a page of a granted host, as readable text.

Runs inside a sandbox whose only way out is the node's broker, which connects to the hosts that its
owner named and to no others, wherever a page or a redirect points. On the kit and on trafilatura.
Always: a page is read up to `MAX_BYTES`; nothing is sent but the address.
"""

from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from quietchoir_sdk import ToolFailure, fetch, hosts, paged, serve, tool  # type: ignore[import-not-found]

MAX_BYTES, MAX_S = 3 << 20, 8.0  # the node waits 10 s for a call by default
READ = ("text/", "application/xhtml", "application/json", "application/xml", "application/rss")
HEADERS = {"User-Agent": "quietchoir", "Accept": "text/html, */*"}
kept: dict[str, list[str]] = {}  # the last page, so that its next pages are not fetched again


def address(url: str) -> str:
    """A web address as it is asked for. ToolFailure: it is none."""
    text = url.strip()
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host = parts.netloc.encode("idna").decode() if parts.hostname else ""
        _ = parts.port  # one that is no number raises
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https") or "@" in host:
        raise ToolFailure(f"{url[:200]!r} is no address of a web page; expected https://HOST/…")
    path, query = (quote(part, safe="/%:@!$&'()*+,;=~?") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


def readable(url: str, kind: str, text: str) -> list[str]:
    """The words of a page without what stands around them."""
    if "html" not in kind:
        return text.splitlines()
    import trafilatura

    found: Any = trafilatura.extract(text, url=url, output_format="markdown")
    about: Any = trafilatura.extract_metadata(text)
    words = (found or trafilatura.html2txt(text)).splitlines()
    title = " ".join(str(about.title).split()) if about is not None and about.title else ""
    return [title, "", *words] if title and f"# {title}" not in words else words


@tool(read_only=True)  # type: ignore[untyped-decorator]
def web_read(url: str, page: int = 1) -> str:
    """Read a web page as text, for example https://example.org/news. Only hosts that the owner
    granted.
    """
    asked = address(url)
    if asked not in kept or page == 1:
        answer = fetch(asked, headers=HEADERS, timeout_s=MAX_S, most_bytes=MAX_BYTES)
        if 300 <= answer.status < 400:
            there = urljoin(asked, answer.headers.get("Location", ""))
            raise ToolFailure(f"{asked} leads to another host: {there[:300]}")
        if answer.status >= 400:
            raise ToolFailure(f"{asked}: the host answers {answer.status}; no such page perhaps")
        kind = answer.headers.get_content_type()
        if not kind.startswith(READ):
            raise ToolFailure(f"{asked} is {kind[:60]}, no page of text")
        kept.clear()
        kept[asked] = readable(asked, kind, answer.text()) or ["The page has no text."]
    return str(paged(kept[asked], page))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def web_hosts() -> str:
    """The hosts whose pages may be read."""
    return ", ".join(hosts("pages")) or "none"


if __name__ == "__main__":
    serve("quietchoir/web", "0.1.0")
