"""How models write tool calls: one row a format, and a buffer that reads them out of an answer.

Knows marks, JSON and Python's call syntax. Knows nothing of engines, templates or who carries a
call out.
Always: what is read as a call names tools that are on offer, all of it; everything else is text,
letter for letter, in its order. A format without a mark of its own counts at an answer's beginning
alone, or behind another such call.

A FURTHER FORMAT is a row of `FORMATS`: its marks, how its body is read, and, where a chat template
tells that its model writes so, what to look for in it.
"""

import ast
import html
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from ..toolcall import ToolCall
from .events import Text
from .tool_schema import arguments_schema
from .tools import ToolInfo

LONGEST_BODY = 32_768  # characters; what is longer is no call
SEARCHED = 65_536  # characters of a foreign text that are searched for calls
MOST_ESCAPES = 8  # one in another, that are undone
BEGINNING = 64  # characters that tell whether a format without a mark begins there
# What the grammar's compiler is told of JSON's layout: one line, as `toolcall.render` writes it. A
# grammar that lets blanks repeat is an invitation to write blanks for ever.
LAYOUT = {
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
}
NAMES, ARGUMENTS = ("name", "tool"), ("arguments", "parameters", "args")
BESIDE = {"type", "id", "index"}  # what a call may hold besides
# How the JSON of a call begins, blanks left out; anything else in braces is an answer in JSON.
BEGINNINGS = (
    *(f'{{"{key}":' for key in (*NAMES, *ARGUMENTS, "function", "tool_calls")),
    '{"type":"function"',
    '{"id":"',
)
IDENTIFIER = re.compile(r"[A-Za-z_][\w.-]*")
BETWEEN = " \t\r\n,;"  # what may stand between two calls
NAMED_BODY = re.compile(r"\s*[A-Za-z_][\w.-]*(\[ARGS\])?(?=\{)")  # of Mistral's newer format
LIST_END = re.compile(r"\)\s*,?\s*\]")  # of Python's calls
WORD = re.compile(r"\w+")
DECODER = json.JSONDecoder()


def call_of(found: Any) -> ToolCall:
    """A call as one JSON object has it, also in OpenAI's shape.

    Raises:
        ValueError: it is none.
    """
    if isinstance(found, dict) and isinstance(inner := found.get("function"), dict):
        found = inner
    if not isinstance(found, dict):
        raise ValueError("no object")
    name = next((found[key] for key in NAMES if key in found), None)
    arguments = next((found[key] for key in ARGUMENTS if key in found), None)
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a call has a name, and arguments by name")
    if found.keys() - {*NAMES, *ARGUMENTS} - BESIDE:
        raise ValueError("a call holds nothing else")
    return ToolCall(name, arguments)


def json_calls(text: str) -> tuple[list[ToolCall], int]:
    """The calls in the JSON value at the beginning of a text, and where it ends.

    Raises:
        ValueError: no JSON, or no calls.
    """
    start = len(text) - len(text.lstrip())
    found, end = DECODER.raw_decode(text, start)
    if isinstance(found, dict) and isinstance(found.get("tool_calls"), list):
        found = found["tool_calls"]
    calls = [call_of(one) for one in (found if isinstance(found, list) else [found])]
    if not calls:
        raise ValueError("an empty list")
    return calls, end


def json_lines(text: str) -> list[ToolCall]:
    """Calls in JSON values one behind the other, set apart by blanks, commas or semicolons.

    Raises:
        ValueError: something else in between.
    """
    calls: list[ToolCall] = []
    while text := text.strip(BETWEEN):
        found, end = json_calls(text)
        calls, text = calls + found, text[end:]
    if not calls:
        raise ValueError("nothing")
    return calls


def python_calls(text: str) -> list[ToolCall]:
    """Calls as Python writes them, `name(key=value)`, alone, in a list or one a line.

    Only literals are read; nothing is run.

    Raises:
        ValueError: anything else.
    """
    try:
        statements = ast.parse(text.strip()).body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from None
    nodes: list[ast.expr] = []
    for statement in statements:
        if not isinstance(statement, ast.Expr):
            raise ValueError("no call")
        value = statement.value
        nodes += value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    if not nodes:
        raise ValueError("nothing")
    return [python_call(node) for node in nodes]


def python_call(node: ast.expr) -> ToolCall:
    """One node of Python's syntax as a call. Raises ValueError: it is none of literals by name."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("a call with arguments by name is expected")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("arguments are given by name")
        value = keyword.value
        words = {"true": True, "false": False, "null": None}
        if isinstance(value, ast.Name) and value.id in words:
            arguments[keyword.arg] = words[value.id]
        else:
            arguments[keyword.arg] = ast.literal_eval(value)
    name = ast.unparse(node.func)
    return ToolCall(name.removeprefix("default_api.").removeprefix("functions."), arguments)


def json_or_python(text: str) -> list[ToolCall]:
    """Either of the two."""
    try:
        return json_lines(text)
    except ValueError:
        return python_calls(text)


def tagged_call(text: str) -> list[ToolCall]:
    """`NAME>{…}`, or `NAME><parameter=KEY>VALUE</parameter>…`, behind `<function=`."""
    name, mark, body = text.partition(">")
    if not mark or not IDENTIFIER.fullmatch(name):
        raise ValueError("no name")
    if not body.strip().startswith("<parameter="):
        return [ToolCall(name, call_of({"name": name, "arguments": json.loads(body)}).arguments)]
    found = re.findall(r"<parameter=([\w.-]+)>\n?(.*?)\n?</parameter>", body, re.DOTALL)
    return [ToolCall(name, {key: value_of(value) for key, value in found})]


def hermes_body(text: str) -> list[ToolCall]:
    """What stands in `<tool_call>`: JSON, or the tags that Qwen's coders write."""
    inner = text.strip()
    if inner.startswith("<function="):
        return tagged_call(inner.removeprefix("<function=").removesuffix("</function>"))
    return json_lines(inner)


def mistral_body(text: str) -> list[ToolCall]:
    """A JSON list, or `NAME[ARGS]{…}` and `NAME{…}`, behind `[TOOL_CALLS]`."""
    calls: list[ToolCall] = []
    for part in filter(None, map(str.strip, text.split("[TOOL_CALLS]"))):
        if part[0] in "[{":
            calls += json_lines(part)
        elif found := IDENTIFIER.match(part):
            body = part[found.end() :].removeprefix("[ARGS]")
            calls.append(call_of({"name": found[0], "arguments": json.loads(body)}))
    if not calls:
        raise ValueError("nothing")
    return calls


def gemma_call(text: str) -> list[ToolCall]:
    """`call:NAME{key:<escape>text<escape>,key:3}`, as FunctionGemma writes it."""
    found = re.fullmatch(r"call:([\w.-]+)\{(.*)\}", text.strip(), re.DOTALL)
    if found is None:
        raise ValueError("no call")
    pairs = re.findall(r"([\w.-]+):(?:<escape>(.*?)<escape>|([^,<]*))(?:,|$)", found[2], re.DOTALL)
    return [ToolCall(found[1], {key: text or value_of(plain) for key, text, plain in pairs})]


def value_of(text: str) -> Any:
    """A value that was written without quotes: JSON where it is that, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """One way of writing calls down."""

    name: str
    opener: str  # what a call begins with
    closer: str = ""  # what it ends with; "": its body, one JSON value, says so itself
    read: Callable[[str], list[ToolCall]]  # of a body; raises ValueError where it is none
    bare: bool = False  # no mark of its own: the opener is the body's first letter
    # how a model is held to it: JSON with this key for the arguments; "": not at all
    key: str = ""
    listed: bool = False  # the body is a JSON list of calls
    template_marks: tuple[str, ...] = ()  # in the template of a model that writes so

    @property
    def trigger(self) -> str:
        """What an answer says where a call begins for certain; the grammar holds from there on."""
        return '{"name": "' if self.bare else self.opener

    def write(self, calls: Sequence[ToolCall]) -> str:
        """These calls, as the model would have written them."""
        bodies = [self._body(call) for call in calls]
        if self.bare:
            return "\n".join(bodies)
        if self.listed:
            bodies = [f"[{', '.join(bodies)}]"]
        return "\n".join(f"{self.opener}\n{body}\n{self.closer}".rstrip() for body in bodies)

    def _body(self, call: ToolCall) -> str:
        arguments = json.dumps(dict(sorted(call.arguments.items())), ensure_ascii=False)
        name = json.dumps(call.name, ensure_ascii=False)
        return f'{{"name": {name}, "{self.key or "arguments"}": {arguments}}}'

    def rest(self, tools: Sequence[ToolInfo]) -> str:
        """A Lark grammar of what follows `trigger`: the rest of this call, or list of calls."""
        if self.bare:
            return self._lark('start: tail "}"', tools)
        end = f' "\\n"? {quoted(self.closer)}' if self.closer else ""
        calls = '"[" call (", " call)* "]"' if self.listed else "call"
        return self._lark(
            f'start: /[ \\n]?/ {calls}{end}\ncall: "{{\\"name\\": \\"" tail "}}"', tools
        )

    def demanded(self, tools: Sequence[ToolInfo], most: int) -> str:
        """A Lark grammar of an answer that is 1 to `most` calls and nothing else."""
        between = quoted(", " if self.listed else "\n")
        more = f" ({between} call){{0,{most - 1}}}" if most > 1 else ""
        if self.bare:
            return self._lark(f'start: call{more}\ncall: "{{\\"name\\": \\"" tail "}}"', tools)
        begin, end = quoted(self.opener + "\n"), quoted(("\n" + self.closer).rstrip())
        if self.listed:
            start = f'start: {begin} "[" call{more} "]" {end}\n'
            return self._lark(start + 'call: "{\\"name\\": \\"" tail "}"', tools)
        call = f'call: {begin} "{{\\"name\\": \\"" tail "}}" {end}'
        return self._lark(f"start: call{more}\n{call}", tools)

    def _lark(self, head: str, tools: Sequence[ToolInfo]) -> str:
        """Rules of `head`, in which `tail` is a name, its quote, and the arguments' JSON."""
        middle = f', "{self.key}": '
        tails = [
            f"{quoted(json.dumps(tool.name)[1:] + middle)} args_{number}"
            for number, tool in enumerate(tools)
        ]
        rules = [
            f"args_{number}: %json {json.dumps(arguments_schema(tool.schema) | LAYOUT)}"
            for number, tool in enumerate(tools)
        ]
        return "\n".join(["%llguidance {}", head, f"tail: {' | '.join(tails)}", *rules, ""])


def quoted(text: str) -> str:
    """A text as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


# What our own adapters learn, and what a model without a better way is asked for.
BARE = CallFormat(name="json", opener="{", read=json_lines, bare=True, key="arguments")
HERMES = CallFormat(
    name="hermes",
    opener="<tool_call>",
    closer="</tool_call>",
    read=hermes_body,
    key="arguments",
    template_marks=("<tool_call>",),
)
# The first whose marks stand in a model's template is the one that the model is held to.
FORMATS = (
    CallFormat(
        name="mistral",
        opener="[TOOL_CALLS]",
        read=mistral_body,
        key="arguments",
        listed=True,
        template_marks=("[TOOL_CALLS]",),
    ),
    CallFormat(
        name="functiongemma",
        opener="<start_function_call>",
        closer="<end_function_call>",
        read=gemma_call,
        template_marks=("<start_function_call>",),
    ),
    CallFormat(
        name="phi",
        opener="<|tool_call|>",
        closer="<|/tool_call|>",
        read=json_lines,
        key="arguments",
        listed=True,
        template_marks=("<|tool_call|>",),
    ),
    CallFormat(
        name="smollm",
        opener="<tool_call>",
        closer="</tool_call>",
        read=hermes_body,
        key="arguments",
        listed=True,
        template_marks=("<tool_call>[",),
    ),
    CallFormat(
        name="qwen-coder",
        opener="<function=",
        closer="</function>",
        read=tagged_call,
        template_marks=("<function=",),
    ),
    HERMES,
    CallFormat(
        name="llama",
        opener="{",
        read=json_lines,
        bare=True,
        key="parameters",
        template_marks=('"parameters": ', "<|python_tag|>"),
    ),
    CallFormat(name="python-tag", opener="<|python_tag|>", read=json_or_python),
    CallFormat(name="tool-code", opener="```tool_code", closer="```", read=json_or_python),
    CallFormat(name="tool-call-fence", opener="```tool_call", closer="```", read=json_lines),
    CallFormat(name="json-fence", opener="```json", closer="```", read=json_lines, bare=True),
    CallFormat(name="python-list", opener="[", read=json_or_python, bare=True),
    BARE,
)
MARKS = tuple(dict.fromkeys(row.opener for row in FORMATS if not row.bare))


def format_of(template: str) -> CallFormat:
    """The format that a model writes, by its chat template; without a mark, what our prompt asks
    for.
    """
    return next(
        (row for row in FORMATS if any(mark in template for mark in row.template_marks)), HERMES
    )


class ToolCallBuffer:
    """Text on its way out, held back while it could still become a tool call."""

    def __init__(
        self,
        names: Collection[str],
        is_call: Callable[[ToolCall, str], bool] = lambda call, written: True,
    ) -> None:
        """
        Args:
            names: of the tools on offer; without any, everything is text.
            is_call: a last look at what reads like a call, and at the letters that it stands in,
                without its closing mark; otherwise it is text too.
        """
        self.names, self.is_call = names, is_call
        self.calls: list[ToolCall] = []
        self.call_logprob = 0.0  # of the calls' tokens together, where they are told
        self._held: list[Text] = []
        self._fresh = True  # a format without a mark may begin here

    @property
    def begun(self) -> bool:
        """A call has begun for certain and is not at its end."""
        text = self._text.lstrip()
        compact = re.sub(r"\s", "", text)
        bare = any(compact.startswith(f'{{"name":{json.dumps(name)},') for name in self.names)
        return text.startswith(MARKS) or (self._fresh and bare)

    def push(self, piece: Text, *, final: bool = False) -> Text:
        """What may go out now.

        Args:
            final: nothing follows.
        """
        self._held.append(piece)
        if not self.names:
            return self._release(len(self._text))
        out = Text("")
        while (found := self._opener()) is not None:
            start, row = found
            before = self._release(start)
            if before.text.strip(BETWEEN) or not self.calls:
                out = joined(out, before)
            if (end := self._read(row, final)) is None:
                return out  # more must come
            if end == 0:
                out = joined(out, self._release(1))  # the mark of no call
        return joined(out, self._release(len(self._text) - (0 if final else self._doubtful())))

    def finish(self) -> Text:
        """What was held back for nothing."""
        out = self.push(Text(""), final=True)
        return Text("", out.logprobs) if self.calls and not out.text.strip() else out

    @property
    def _text(self) -> str:
        return "".join(piece.text for piece in self._held)

    def _opener(self) -> tuple[int, CallFormat] | None:
        """Where the next call may begin, and in which format."""
        text = self._text
        blank = len(text) - len(text.lstrip(BETWEEN if self.calls else None))
        found = [
            (place, -len(row.opener), number)
            for number, row in enumerate(FORMATS)
            if (place := text.find(row.opener)) >= 0
            and (not row.bare or (self._fresh and place == blank and promising(row, text[blank:])))
        ]
        if not found:
            return None
        place, _, number = min(found)
        return place, FORMATS[number]

    def _read(self, row: CallFormat, final: bool) -> int | None:
        """Take the call at the beginning of what is held: where it ends; 0: it is none; None: who
        knows.
        """
        text = self._text
        skipped = 0 if row.bare and not row.closer else len(row.opener)
        for end, body in bodies(row, text[skipped:], final):
            try:
                calls = row.read(body)
            except (ValueError, RecursionError, MemoryError):
                continue
            written = text[:skipped] + body
            if not all(call.name in self.names and self.is_call(call, written) for call in calls):
                return 0
            self.calls += calls
            told = self._release(skipped + end).logprobs
            self.call_logprob += sum(token.chosen.logprob for token in told)
            self._fresh = row.bare
            return skipped + end
        return 0 if final or len(text) > LONGEST_BODY else None

    def _doubtful(self) -> int:
        """How many letters at the end may still become a mark."""
        text = self._text
        stripped = text.lstrip()
        if self._fresh and (
            not stripped or any(row.opener.startswith(stripped) for row in FORMATS if row.bare)
        ):
            return len(text)
        return next(
            (
                size
                for size in range(min(len(text), max(map(len, MARKS)) - 1), 0, -1)
                if any(mark.startswith(text[-size:]) for mark in MARKS)
            ),
            0,
        )

    def _release(self, count: int) -> Text:
        """The first `count` letters, with the log-probabilities of their tokens."""
        out = Text("")
        while self._held and (count > 0 or not self._held[0].text):
            piece = self._held.pop(0)
            kept = piece.text[count:] if count < len(piece.text) else ""
            if kept:
                self._held.insert(0, Text(kept))
            out = joined(out, Text(piece.text[: len(piece.text) - len(kept)], piece.logprobs))
            count -= len(piece.text) - len(kept)
        if out.text.strip(BETWEEN if self.calls else None):
            self._fresh = False
        return out


def joined(one: Text, other: Text) -> Text:
    """Two pieces as one."""
    return Text(one.text + other.text, one.logprobs + other.logprobs)


def promising(row: CallFormat, text: str) -> bool:
    """Whether text that begins as a format without a mark may still become a call."""
    if row.opener == "[":
        inner = text[1:].lstrip()
        found = IDENTIFIER.match(inner)
        if found is not None:
            return inner[found.end() :][:1] in ("", "(")
        text = inner
    elif row.closer:
        text = text.removeprefix(row.opener).lstrip().removeprefix("[").lstrip()
    compact = "".join(text.split())
    return any(one.startswith(compact) or compact.startswith(one) for one in BEGINNINGS)


def bodies(row: CallFormat, text: str, final: bool) -> Iterator[tuple[int, str]]:
    """What may be the body of a call that begins with `text`, each with where the call ends."""
    if row.closer:
        place = text.find(row.closer)
        while place >= 0:
            yield place + len(row.closer), text[:place]
            place = text.find(row.closer, place + 1)
    elif (named := NAMED_BODY.match(text)) is not None:
        with suppress(ValueError, RecursionError):
            end = DECODER.raw_decode(text, named.end())[1]
            yield end, text[:end]
    elif row.bare or text.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            end = json_calls(text)[1]
            yield end, text[:end]
        if row.opener == "[" and (found := LIST_END.search(text)) is not None:
            yield found.end(), text[: found.end()]
    if final:
        yield len(text), text


def calls_in(text: str) -> Iterator[ToolCall]:
    """Every call that stands somewhere in a foreign text, in whatever format, with its end."""
    text = text[:SEARCHED]
    for row in FORMATS:
        place = text.find(row.opener)
        while place >= 0:
            start = place if row.bare and not row.closer else place + len(row.opener)
            for _, body in bodies(row, text[start : start + LONGEST_BODY], final=False):
                try:
                    yield from row.read(body)
                except (ValueError, RecursionError, MemoryError):
                    continue
                break
            place = text.find(row.opener, place + 1)


def is_quoted(call: ToolCall, written: str, texts: Sequence[str]) -> bool:
    """Whether a call stands in foreign texts, as it was written or in another format; whatever the
    escapes, the quotes and the letters nobody sees, and also where two texts share it.
    """
    plain = [unescaped(text) for text in texts]
    together = "\n".join(plain)
    if squeezed(written.strip(BETWEEN)) in squeezed(together):
        return True
    said = lettered(together)
    return any(one in said for one in bare_letters(call)) or any(
        holds(text, call) or call in calls_in(text) for text in {*texts, *plain}
    )


def holds(text: str, call: ToolCall) -> bool:
    """Whether a foreign text begins a call somewhere, names this one's tool behind that as calls
    do, and says all of its values: in whatever format, with or without its end.
    """
    text = text[:SEARCHED]
    name = rf"(?<![\w.-]){re.escape(unescaped(call.name))}['\"]?\s*[({{\[<>,:]"
    places = [found.start() for found in re.finditer(name, text, re.IGNORECASE)]
    values = unescaped(" ".join(map(spelled, call.arguments.values()))).casefold()
    return (
        bool(places)
        and set(WORD.findall(text.casefold())).issuperset(WORD.findall(values))
        and any(begins(row, text[: places[-1] + BEGINNING]) for row in FORMATS)
    )


def begins(row: CallFormat, text: str) -> bool:
    """Whether something in a text reads like the beginning of a call in one format."""
    place = text.find(row.opener)
    while place >= 0 and row.bare and not promising(row, text[place : place + BEGINNING]):
        place = text.find(row.opener, place + 1)
    return place >= 0


def spelled(value: Any) -> str:
    """A value's letters, as JSON or a person writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def squeezed(text: str) -> str:
    """A text's letters and marks without blanks, escapes and kinds of quotes: by which two texts
    are the same word for word.
    """
    return "".join(unescaped(text).split()).casefold()


def lettered(text: str) -> str:
    """A text's letters and digits alone."""
    return re.sub(r"[\W_]+", "", text).casefold()


def bare_letters(call: ToolCall) -> Iterator[str]:
    """What is left of a call in JSON once every mark is gone: too long to be said by chance, as it
    holds the words that tell a name and arguments.
    """
    name = lettered(unescaped(call.name))
    values = lettered(
        unescaped(" ".join(f"{key} {spelled(value)}" for key, value in call.arguments.items()))
    )
    for head in NAMES:
        for middle in ARGUMENTS:
            yield f"{head}{name}{middle}{values}"
            yield f"{middle}{values}{head}{name}"


class _Folded(dict[int, str | None]):
    """What stands for a character: one quote for all, nothing for what is not seen."""

    def __missing__(self, code: int) -> str | None:
        one = chr(code)
        kind = unicodedata.category(one)
        if 0xE0020 <= code <= 0xE007E:  # ASCII that is not shown, yet models read it
            self[code] = chr(code - 0xE0000)
        elif kind == "Cf" or kind.startswith("M"):
            self[code] = None
        else:
            self[code] = '"' if kind in ("Pi", "Pf") or one in QUOTES else one
        return self[code]


QUOTES = "'\"`´′″‴ʹʺʻʼʽˈˊˋ„‚〝〞〟"
FOLDED = _Folded({ord("‹"): "<", ord("›"): ">"})  # `citations.harmless` writes the one
CODE = re.compile(r"(?<!\\)\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))")
BROKEN = re.compile(r"(?<!\\)\\+[nrt]")
NUMBER = re.compile(r"&#([0-9]{8,})")  # HTML's: a character's has 7 digits at most
HEX = re.compile(r"=(?=[0-9A-F]{2})")  # as mail has it


def unescaped(text: str) -> str:
    """A text as its reader takes it: without the escapes of JSON, HTML, URLs and mail, without what
    is not seen, in plain letters and with quotes of one kind.
    """
    for _ in range(MOST_ESCAPES):
        before = text
        text = unicodedata.normalize("NFKC", text.translate(FOLDED))
        text = NUMBER.sub(lambda found: f"&#{found[1].lstrip('0')[:8]}", text)
        text = html.unescape(text)
        text = CODE.sub(lambda found: chr(int(found[1] or found[2], 16)), text)
        text = unquote(HEX.sub("%", text))
        if text == before:
            break
    return re.sub('"+', '"', BROKEN.sub(" ", text).replace("\\", ""))
