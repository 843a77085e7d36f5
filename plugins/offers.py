"""Resources and prompts of a server, as answers of the host's own reading tools.

Knows MCP's `resources/*` and `prompts/*`. Knows nothing of sandboxes: it is handed a connection.
Always: what comes is foreign text like any answer, bounded like one, and never an instruction of
the owner's; a prompt is shown, not obeyed.

Not covered: neither is pinned by the manifest, only that the server offers them; subscriptions and
`listChanged` are passed over, as the list is asked for each time.
Source: modelcontextprotocol.io, specification 2025-11-25, server/resources and server/prompts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import ToolError
from ..core.screen import one_line
from .client import PluginConnection, part_text

PAGE = 40  # rows of a list
LONGEST = 300  # characters of one row
ROLES = ("user", "assistant")


async def answer(
    connection: PluginConnection, kind: str, arguments: Mapping[str, Any], deadline_s: float
) -> tuple[str, bool]:
    """What the host's tool for `kind` (a key of `manifest.OFFERS`) brings.

    Raises:
        ToolError: as `PluginConnection.ask`, or arguments that are none.
    """
    key = "uri" if kind == "resources" else "name"
    wanted, page = arguments.get(key), arguments.get("page", 1)
    if wanted is None:
        if type(page) is not int or page < 1:
            raise ToolError(f"page = {page!r} must be a whole number of at least 1")
        rows = await connection.listed(f"{kind}/list", kind, deadline_s)
        return listing(kind, rows, page), True
    if not isinstance(wanted, str):
        raise ToolError(f"{key} = {wanted!r} must be a text")
    params: dict[str, Any] = {key: wanted}
    if kind == "resources":
        said = await connection.ask("resources/read", params, deadline_s)
        return resource_text(said, connection.name), True
    if given := arguments.get("arguments"):
        if not isinstance(given, dict) or not all(isinstance(one, str) for one in given.values()):
            raise ToolError("arguments must be texts by their names")
        params["arguments"] = given
    return prompt_text(
        await connection.ask("prompts/get", params, deadline_s), connection.name
    ), True


def listing(kind: str, rows: Sequence[Mapping[str, Any]], page: int) -> str:
    """A page of a list, a row a line; what has no address or name is left out."""
    key = "uri" if kind == "resources" else "name"
    lines = []
    for row in rows:
        if not isinstance(found := row.get(key), str):
            continue
        about = [row.get(one) for one in ("title", "name", "description", "mimeType") if one != key]
        takes = row.get("arguments")
        names = [
            f"{one['name']}{'' if one.get('required') is True else '?'}"
            for one in (takes if isinstance(takes, list) else ())
            if isinstance(one, dict) and isinstance(one.get("name"), str)
        ]
        texts = dict.fromkeys(one for one in about if isinstance(one, str) and one)
        line = "; ".join((found, *texts, *([f"takes {', '.join(names)}"] if names else ())))
        lines.append(one_line(line)[:LONGEST])
    if not lines:
        return f"no {kind}"
    pages = -(-len(lines) // PAGE)
    shown = lines[(page - 1) * PAGE : page * PAGE]
    more = f"(page {page} of {pages})" if pages > 1 else ""
    return "\n".join((*shown, *([more] if more else ())))


def resource_text(said: Mapping[str, Any], name: str) -> str:
    """Contents of one resource. Raises: ToolError: there are none."""
    contents = said.get("contents")
    parts = contents if isinstance(contents, list) else []
    texts = [
        part_text({"type": "resource", "resource": one})[0]
        for one in parts
        if isinstance(one, dict)
    ]
    if not texts:
        raise ToolError(f"plugin {name} answered resources/read without contents")
    return "\n".join(texts)


def prompt_text(said: Mapping[str, Any], name: str) -> str:
    """Messages of one prompt, each behind who says it. Raises: ToolError: there are none."""
    messages = said.get("messages")
    lines = []
    for message in messages if isinstance(messages, list) else ():
        match message:
            case {"role": str(role), "content": dict(content)} if role in ROLES:
                lines.append(f"{role}: {part_text(content)[0]}")
    if not lines:
        raise ToolError(f"plugin {name} answered prompts/get without messages")
    return "\n".join(lines)
