"""docs/clients.md: what real clients did against this node, and every field that they know.

    python -m quietchoir.tests.clients.matrix    writes it, from a run of all of them

Knows the programs' outcomes and the readers of every body. A table that differs from a run fails
`test_clients.py`.
"""

import asyncio
import json
import subprocess
from collections.abc import Mapping
from typing import Any

from quietchoir.core.server import embeddings, ollama_api, requests, responses_api
from quietchoir.core.server.schemas import Record, Typed
from quietchoir.tests.clients.serving import MODULES, PROGRAMS, PYTHON, ROOT, obliging, run

PAGE = ROOT / "docs" / "clients.md"
PACKAGES = {
    "langchain_client": "langchain-openai",
    "litellm_client": "litellm",
    "llm_tool": "llm",
    "ollama_client": "ollama",
    "openai_sdk": "openai",
    "pydantic_agents": "pydantic-ai-slim",
}
OPTIONS = ollama_api.SHARED["options"]
assert isinstance(OPTIONS, Record)
BODIES: Mapping[str, Record] = {
    "/v1/chat/completions": requests.CHAT,
    "/v1/responses": responses_api.BODY,
    "/v1/completions": requests.COMPLETION,
    "/v1/embeddings": embeddings.BODY,
    "/api/chat": ollama_api.CHAT,
    "/api/generate": ollama_api.GENERATE,
    "/api/chat options": OPTIONS,
    "/api/embed": ollama_api.EMBED,
}
HEAD = """\
# Clients

A node at `http://127.0.0.1:8765` with its token (the file `token` in the node's home):

- OpenAI's clients and what is built on them: `OPENAI_BASE_URL=http://127.0.0.1:8765/v1`,
  `OPENAI_API_KEY=TOKEN`; in code `base_url` and `api_key`. litellm: `model="openai/default"`,
  `api_base`, `api_key`. llm: `llm keys set quietchoir`, which asks for the token, and in
  `extra-openai-models.yaml` (where `llm logs path` shows a folder; without `api_key_name` it sends
  no key):

  ```yaml
  - model_id: quietchoir
    model_name: default
    api_base: http://127.0.0.1:8765/v1
    api_key_name: quietchoir
    supports_tools: true
    supports_schema: true
  ```
- Ollama's clients: `OLLAMA_HOST=http://127.0.0.1:8765`, `OLLAMA_API_KEY=TOKEN`, which its Python
  client sends as the bearer token; other programs: a header `Authorization: Bearer TOKEN`.
- `model`: `default` (the active adapter, where a request is for it), the name of any chat model
  that the node has (`/v1/models` lists them; no adapter), `MODEL:ADAPTER`.
- `keep_alive` of `/api/chat` and `/api/generate` says how long the chat model stays loaded behind
  the request; the embedding model is everybody's and stays, so `/api/embed` names it as ignored.

What came of it is written by `python -m quietchoir.tests.clients.matrix` from a run of the clients
themselves, in an environment of their own (`make clients`, `constraints-clients.txt`), against a
real server over a scripted model. `tests/clients/test_clients.py` runs them again and compares; it
also has OpenAI's and Ollama's clients ask a node with the real model: the three protocols say the
same, seeds, `n`, logprobs, `stop`, usage and schemas are what they claim to be. *Tools* is the loop
from a question over a call and its result to the answer. The scripted model calls; the default one
(135 million parameters) calls where `tool_choice` demands it, and never of itself
(`simulations/LOG.md`).

| client | what was done, and came out right |
|---|---|
"""
FIELDS = """
## Fields

What each client's own types know, and what this node makes of it. *Honoured*: it does what it says.
*Named*: accepted, changes nothing here, and named in the answer's header `X-Quietchoir-Ignored`.
*One value*: accepted with the value that changes nothing, refused with another. *Refused*: with 400
and the field's place, since it would change the answer. The same at every depth: a key that is not
known is refused, and one in a list is named without its number (`messages[].annotations`).
"""


def kinds(fields: list[str], body: Record) -> dict[str, list[str]]:
    """Fields by what is made of them."""
    found: dict[str, list[str]] = {"honoured": [], "named": [], "one value": [], "refused": []}
    for name in fields:
        reader = body.harmless.get(name)
        schema = reader.schema if isinstance(reader, Typed) else {}
        narrow = schema.keys() == {"enum"} or schema.get("maxItems") == 0
        kind = (
            "honoured"
            if name in body.fields
            else "refused"
            if reader is None or schema.get("type") == "null"
            else "one value"
            if narrow
            else "named"
        )
        found[kind].append(f"`{name}`")
    return found


def page(outcomes: Mapping[str, Mapping[str, str]], known: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        outcomes: program → case → what was wrong.
        known: what `programs/fields.py` tells.
    """
    lines = [HEAD]
    for module, cases in sorted(outcomes.items()):
        package = PACKAGES[module]
        right = ", ".join(case.replace("_", " ") for case, wrong in cases.items() if not wrong)
        wrong = [f"{case}: {said}" for case, said in cases.items() if said]
        failed = f"; **not:** {'; '.join(wrong)}" if wrong else ""
        lines.append(f"| `{package}` {known['versions'][package]} | {right}{failed} |\n")
    lines.append(FIELDS)
    for path, body in BODIES.items():
        lines.append(f"\n**{path}**\n\n")
        for kind, names in kinds(known["fields"][path], body).items():
            if names:
                lines += [f"{line}\n" for line in wrapped(f"- {kind}: {', '.join(names)}")]
    return "".join(lines)


def wrapped(text: str, width: int = 100) -> list[str]:
    """Lines of at most so many characters, the later ones indented."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = "  " + word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def known_fields() -> Mapping[str, Any]:
    """What the clients' types know, and the clients' versions."""
    done = subprocess.run(
        [PYTHON, PROGRAMS / "fields.py"], capture_output=True, text=True, check=True, timeout=240
    )
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


async def outcomes() -> Mapping[str, Mapping[str, str]]:
    """Program → case → what was wrong, of all of them."""
    async with obliging() as served:
        return {module: await run(module, served.server.url) for module in MODULES}


def main() -> None:
    """Write the page."""
    found = asyncio.run(outcomes())
    PAGE.write_text(page(found, known_fields()), "utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
