"""Held-out requests to a running node, over its HTTP API, as any program would send them.

Knows the API's shapes. Knows nothing of engines or adapters.
"""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..core.errors import QuietchoirError
from ..core.toolcall import ToolCall, parse
from ..core.training.examples import read_jsonl

MANY = 6  # requests; one alone would say little
DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """One request and what came of it."""

    request: str
    expected: ToolCall
    text: str  # what the model wrote, or the tool's sentence
    called: ToolCall | None
    result: str  # the plugin's sentence; empty if no tool was called

    @property
    def right(self) -> bool:
        """Was it the right call?"""
        return self.called == self.expected

    @property
    def shown(self) -> str:
        """One line for people."""
        call = self.called
        if call is None:
            return " ".join(self.text.split())[:90]
        arguments = ", ".join(f"{key} {value}" for key, value in call.arguments.items())
        return f"{call.name}({arguments})" + ("" if self.right else "   (not what was meant)")


class RunningNode:
    """One node, by the address it printed.

    Args:
        page: the page's address, with the token in its fragment.
        tests: the household's held-out requests.
    """

    def __init__(self, page: str, tests: Path) -> None:
        parts = urlsplit(page)
        self.address = f"{parts.scheme}://{parts.netloc}"
        self.token = parts.fragment.removeprefix("token=")
        self.examples = [
            (example.messages[-2]["content"], call)
            for example in read_jsonl(tests)
            if (call := parse(example.messages[-1]["content"])) is not None
        ][:MANY]

    def ask_all(self) -> list[RequestOutcome]:
        """Every request once."""
        return [self.ask(request, expected) for request, expected in self.examples]

    def ask(self, request: str, expected: ToolCall) -> RequestOutcome:
        """One request, as a chat of one message."""
        body = {"messages": [{"role": "user", "content": request}], "max_tokens": 64}
        try:
            answer = self.post("/v1/chat/completions", body)
        except QuietchoirError as error:
            if "tool_call_cut" not in str(error):
                raise
            return RequestOutcome(request, expected, "a call that the limit cut", None, "")
        message = answer["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        text = message.get("content") or ""
        if not calls:
            return RequestOutcome(request, expected, text, parse(text), "")
        function = calls[0]["function"]
        called = ToolCall(function["name"], json.loads(function["arguments"]))
        [result, *_] = message["tool_results"]
        return RequestOutcome(request, expected, text, called, result["content"])

    def activate(self, adapter: str) -> None:
        """Switch the running node to an adapter."""
        self.post("/api/adapters/activate", {"name": adapter})

    def get(self, path: str) -> Any:
        """What stands there. Raises: as `post`."""
        return self.send(path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """One request with the node's token.

        Raises:
            QuietchoirError: the node refused or does not answer.
        """
        return self.send(path, json.dumps(body).encode())

    def send(self, path: str, body: bytes | None) -> Any:
        """A body, or none. Raises: as `post`."""
        request = urllib.request.Request(
            self.address + path,
            body,
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise QuietchoirError(
                f"{path}: the node answered {error.code}: "
                f"{error.read(300).decode('utf-8', 'replace')}"
            ) from error
        except OSError as error:
            raise QuietchoirError(
                f"{path}: the node at {self.address} does not answer: {error}"
            ) from error
