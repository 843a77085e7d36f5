"""The parts of a body that say what form an answer must have: response_format, tools, tool_choice.

Knows OpenAI's shapes and two of our own. Knows nothing of grammars: whether one can be compiled, the engine finds out.
Always: a form that is not understood is refused, never ignored.
"""

import json
from collections.abc import Mapping
from typing import Any

from ..assistant.assistant import ANY_TOOL
from ..assistant.tools import ToolInfo
from ..engine.request import Constraint
from .refusals import BadRequest

MAX_BIASED = 1024
FORMATS = "text, json_object, json_schema, regex or lark"


def response_format(value: object) -> Constraint | None:
    """`{"type": "json_schema", "json_schema": {"schema": …}}` and its kin; `regex` and `lark` are our additions.

    Raises:
        BadRequest: none of the known shapes.
    """
    if value is None:
        return None
    where = "response_format"
    if not isinstance(value, dict):
        raise BadRequest(f"{where} is a {type(value).__name__}, expected an object with a type: {FORMATS}", where)
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return Constraint("json")
        case "json_schema":
            schema = value["json_schema"].get("schema") if isinstance(value.get("json_schema"), dict) else None
            if not isinstance(schema, dict):
                raise BadRequest(f"{where}.json_schema.schema must be a JSON schema, an object", where)
            return Constraint("json_schema", json.dumps(schema))
        case "regex" | "lark" as kind:
            if not isinstance(value.get(kind), str) or not value[kind]:
                raise BadRequest(f"{where}.{kind} must be a text that is not empty", where)
            return Constraint(kind, value[kind])
    raise BadRequest(f"{where}.type is {value.get('type')!r}, supported are {FORMATS}", where)


def tools(value: list[Any] | None) -> tuple[ToolInfo, ...] | None:
    """Tools that the caller itself will carry out; None where it offers none."""
    return None if value is None else tuple(tool(item, f"tools[{index}]") for index, item in enumerate(value))


def tool(item: object, where: str) -> ToolInfo:
    """One function with a name and the JSON schema of its arguments."""
    function = item.get("function") if isinstance(item, dict) and item.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRequest(f"{where} must be a function with a name", where)
    schema = function.get("parameters")
    if not isinstance(schema, dict | None):
        raise BadRequest(f"{where}.function.parameters is a {type(schema).__name__}, expected a JSON schema", where)
    return ToolInfo(function["name"], str(function.get("description") or ""), schema or {})


def tool_choice(value: object) -> dict[str, Any]:
    """The fields of an ask that a tool choice decides.

    Raises:
        BadRequest: not auto, none, required or one function.
    """
    match value:
        case None | "auto":
            return {}
        case "none":
            return {"use_tools": False}
        case "required":
            return {"tool_choice": ANY_TOOL}
        case {"type": "function", "function": {"name": str(name)}} if name:
            return {"tool_choice": name}
    raise BadRequest(
        f"tool_choice is {str(value)[:80]!r}, expected 'auto', 'none', 'required' or one function by name", "tool_choice"
    )


def logit_bias(value: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    """Token ids, written as texts, and what is added to their logits.

    Raises:
        BadRequest: not an id, or a value beyond -100 to 100.
    """
    for token, bias in value.items():
        if not token.isdecimal() or not token.isascii() or type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise BadRequest(
                f"logit_bias holds {token!r:.40}: {bias!r:.40}, expected token ids with numbers from -100 to 100", "logit_bias"
            )
    if len(value) > MAX_BIASED:
        raise BadRequest(f"logit_bias holds {len(value)} tokens, at most {MAX_BIASED} are taken", "logit_bias")
    return tuple((int(token), float(bias)) for token, bias in value.items())
