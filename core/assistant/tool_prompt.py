"""How a model is told of its tools, and of what they brought: a conversation as its template can
write it.

Knows messages, the traits of a chat template and the format of a model's calls. Knows no tokens.
Always: calls and results of a conversation are not lost on the way; what a tool returned stands in
a tool's message or between marks of ours, which its own letters cannot close.
Not covered: words beside a call, where a template writes the call alone.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..models.tokenizer.chat_template import TemplateTraits
from ..toolcall import ToolCall
from .call_formats import CallFormat
from .tools import ToolInfo

SENT = re.compile(r"[A-Za-z0-9]{1,9}")  # the ids of calls that every template takes
# Where a template has no place for tools. The words are in the manner of the Hermes format, which
# most small models have met.
INTRODUCTION = """You can call these tools:
{tools}
To call a tool, write for each call: {example}
Call a tool only where it is needed; otherwise answer in words."""
RESULT = "<tool_response>\n{}\n</tool_response>"


class TemplateEncoder(Protocol):
    """A tokenizer with a chat template."""

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Tokens of the whole conversation; `tools` where the template shows them."""
        ...


class ToolPrompt:
    """A tokenizer that is given conversations with tools, whatever its template makes of them."""

    def __init__(
        self,
        encoder: TemplateEncoder,
        traits: TemplateTraits,
        form: CallFormat,
        tools: Sequence[ToolInfo] = (),
    ) -> None:
        """
        Args:
            form: in which past calls are written, where the template writes none.
            tools: those that the model is told of.
        """
        self.encoder, self.traits, self.form, self.tools = encoder, traits, form, tools

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Tokens of the whole conversation, ready for the assistant to go on."""
        shown = [dict(message) for message in messages]
        shown = self._with_calls(shown) if self.traits.calls else self._in_words(shown)
        described = [described_tool(tool) for tool in self.tools]
        if described and self.traits.tools == "message":
            head(shown)["tools"] = json.dumps(described, ensure_ascii=False)
        elif described and not self.traits.tools:
            said = head(shown)
            said["content"] = f"{said['content']}\n\n{self.introduction()}".lstrip()
        if not self.traits.system:
            shown = without_system(shown)
        if described and self.traits.tools == "variable":
            return self.encoder.encode_chat(
                shown, add_generation_prompt=add_generation_prompt, tools=described
            )
        return self.encoder.encode_chat(shown, add_generation_prompt=add_generation_prompt)

    def introduction(self) -> str:
        """The tools on offer, in our own words."""
        opener = self.form.opener if not self.form.bare else ""
        example = f'{opener}{{"name": NAME, "{self.form.key}": {{…}}}}{self.form.closer}'
        return INTRODUCTION.format(tools="\n".join(map(signature, self.tools)), example=example)

    def _with_calls(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For a template that writes calls itself: with ids that all of them take, and one call a
        message where it takes no more.
        """
        found: list[dict[str, Any]] = []
        results = {m["tool_call_id"]: m for m in messages if m.get("tool_call_id")}
        placed: set[str] = set()
        for message in messages:
            calls = message.get("tool_calls", ())
            if len(calls) < 2 or self.traits.parallel:
                if message.get("tool_call_id") not in placed:
                    found.append(message)
                continue
            for number, call in enumerate(calls):
                found.append(
                    {**message, "tool_calls": [call]} | ({"content": ""} if number else {})
                )
                if result := results.get(call["id"]):
                    found.append(result)
                    placed.add(call["id"])
        return [with_short_ids(message) for message in found]

    def _in_words(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For a template that knows texts alone: calls as the model writes them, results between
        marks, in a user's message.
        """
        found: list[dict[str, Any]] = []
        for message in messages:
            role, content = message["role"], message["content"]
            if calls := message.get("tool_calls"):
                written = self.form.write([ToolCall(**call["function"]) for call in calls])
                content = f"{content}\n{written}".lstrip("\n")
            if role == "tool":
                marked = RESULT.format(content.replace("</tool_response", "</ tool_response"))
                if found and found[-1].get("of_tools"):
                    found[-1]["content"] += "\n" + marked
                else:
                    found.append({"role": "user", "content": marked, "of_tools": True})
            else:
                found.append({"role": role, "content": content})
        return [{"role": one["role"], "content": one["content"]} for one in found]


def head(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The system message at the beginning; a new one where there is none."""
    if not messages or messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": ""})
    return messages[0]


def without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages as the beginning of the next user's message, for templates that know none."""
    found: list[dict[str, Any]] = []
    said = ""
    for message in messages:
        if message["role"] == "system":
            said += message["content"] + "\n\n"
        elif said and message["role"] == "user":
            found.append({**message, "content": said + message["content"]})
            said = ""
        else:
            found.append(message)
    return [*found, {"role": "user", "content": said.rstrip()}] if said.strip() else found


def with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    """The same message, its calls known by ids of nine letters (Mistral's templates take no
    others).
    """
    changed = dict(message)
    if calls := message.get("tool_calls"):
        changed["tool_calls"] = [{**call, "id": short(call["id"])} for call in calls]
    if "tool_call_id" in message:
        changed["tool_call_id"] = short(message["tool_call_id"])
    return changed


def short(id: str) -> str:
    """An id as its nine letters."""
    if len(id) == 9 and SENT.fullmatch(id):
        return id
    return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:9]


def described_tool(tool: ToolInfo) -> dict[str, Any]:
    """A tool as chat templates read it."""
    schema = dict(tool.schema) or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": schema}
    return {"type": "function", "function": function}


def signature(tool: ToolInfo) -> str:
    """A tool in one short line: `name(key: type, other?: "a" | "b"): what it does`."""
    properties = tool.schema.get("properties")
    needed = tool.schema.get("required") or ()
    keys = [
        f"{key}{'' if key in needed else '?'}: {kind_of(value)}"
        for key, value in (properties.items() if isinstance(properties, Mapping) else ())
    ]
    return f"{tool.name}({', '.join(keys)}): {' '.join(tool.description.split())}"


def kind_of(schema: Any) -> str:
    """What a value may be, in a word."""
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(values := schema.get("enum"), list):
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in values[:8])
    kind = schema.get("type", "any")
    return " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
