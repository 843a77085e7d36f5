"""The parts of a body that say what form an answer must have: response_format, tools, tool_choice.

Knows OpenAI's shapes and two of our own. Knows nothing of grammars: whether one can be compiled,
the engine finds out.
Always: a form that is not understood is refused, never ignored.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..assistant.events import ANY_TOOL
from ..assistant.tool_schema import bounded
from ..assistant.tools import ToolInfo
from ..engine.sampling.params import Constraint
from .errors import BadRequest
from .schemas import Record, either, flag, listed, mapping, named, only, shown, tagged, text, typed

MAX_BIASED = 1024
SCHEMA = Record(
    {"schema": mapping}, ["schema"], {"name": text, "description": text, "strict": flag}
)
FORMAT = tagged(
    "type",
    {
        "text": Record({"type": text}),
        # with a schema it is llama.cpp's form, with a value that of Hugging Face's client
        "json_object": Record({"type": text, "schema": mapping, "value": mapping}),
        "json_schema": Record({"type": text, "json_schema": SCHEMA}, ["json_schema"]),
        "regex": Record({"type": text, "regex": named}, ["regex"]),
        "lark": Record({"type": text, "lark": named}, ["lark"]),
    },
)
# `strict` is harmless: a call fits its schema anyway.
FUNCTION = Record(
    {"name": named, "description": text, "parameters": mapping}, ["name"], {"strict": flag}
)
TOOL = Record(
    {"type": only("function"), "function": FUNCTION},
    ["type", "function"],
    {"cache_control": mapping},
)
CHOICE = Record(
    {"type": only("function"), "function": Record({"name": named}, ["name"])}, ["type", "function"]
)


@typed(FORMAT.ignored, **FORMAT.schema)
def response_format(value: Any, where: str) -> Constraint | None:
    """`{"type": "json_schema", "json_schema": {"schema": …}}` and its kin; `regex` and `lark`
    are our additions.

    Raises:
        BadRequest: not a form that is known, or one that holds two schemas.
    """
    found = FORMAT(value, where)
    match found["type"]:
        case "text":
            return None
        case "json_object":
            schemas = [found[key] for key in ("schema", "value") if key in found]
            if len(schemas) > 1:
                raise BadRequest(
                    f"{where} holds a schema and a value, both of which are the schema; name one",
                    where,
                )
            return (
                Constraint("json_schema", json.dumps(bounded(schemas[0])))
                if schemas
                else Constraint("json")
            )
        case "json_schema":
            return json_schema(found["json_schema"]["schema"])
        case kind:
            return Constraint(kind, found[kind])


def json_schema(schema: Mapping[str, Any]) -> Constraint:
    """Answers that fit a schema; it is closed and bounded where it leaves that open."""
    return Constraint("json_schema", json.dumps(bounded(schema)))


TOOLS = listed(TOOL)


@typed(TOOLS.ignored, **TOOLS.schema)
def tools(value: Any, where: str) -> tuple[ToolInfo, ...]:
    """Tools that the caller itself will carry out: functions with the JSON schemas of their
    arguments.
    """
    found = [tool["function"] for tool in TOOLS(value, where)]
    return distinct(
        [
            ToolInfo(one["name"], one.get("description", ""), one.get("parameters", {}))
            for one in found
        ],
        where,
    )


def distinct(tools: Sequence[ToolInfo], where: str) -> tuple[ToolInfo, ...]:
    """The same. Raises: BadRequest: two are called alike."""
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise BadRequest(
            f"{where} holds one name twice: {shown(sorted(names))}; give each tool its own", where
        )
    return tuple(tools)


TOOL_CHOICE = either(only("auto", "none", "required"), CHOICE)


@typed(TOOL_CHOICE.ignored, **TOOL_CHOICE.schema)
def tool_choice(value: Any, where: str) -> dict[str, Any]:
    """The fields of an ask that a tool choice decides."""
    found = TOOL_CHOICE(value, where)
    return chosen(found["function"]["name"] if isinstance(found, dict) else None, found)


def chosen(name: str | None, word: Any) -> dict[str, Any]:
    """The same of a tool's name, or else of one of the three words."""
    if name is not None:
        return {"tool_choice": name}
    words: dict[str, dict[str, Any]] = {
        "auto": {},
        "none": {"use_tools": False},
        "required": {"tool_choice": ANY_TOOL},
    }
    return words[word]


@typed(
    type="object",
    additionalProperties={"type": "number", "minimum": -100, "maximum": 100},
    propertyNames={"pattern": "^[0-9]{1,11}$"},
    maxProperties=MAX_BIASED,
)
def logit_bias(value: Any, where: str) -> tuple[tuple[int, float], ...]:
    """Token ids, written as texts, and what is added to their logits, from -100 to 100."""
    biases: Mapping[str, Any] = mapping(value, where)
    if len(biases) > MAX_BIASED:
        raise BadRequest(
            f"{where} holds {len(biases)} tokens, at most {MAX_BIASED} are taken", where
        )
    for token, bias in biases.items():
        right = token.isdecimal() and token.isascii() and len(token) < 12
        if not right or type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise BadRequest(
                f"{where} holds {shown(token)}: {shown(bias)}, expected token ids with numbers "
                f"from -100 to 100",
                where,
            )
    return tuple((int(token), float(bias)) for token, bias in biases.items())
