"""Conversations a node may train on, one JSON object a line.

Knows files and lines; what a line may say stands in `conversations.py`. Knows nothing of tokens,
homes or tensors.
Always: a file is read whole or not at all, and every bad line is named by its number.
"""

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import paths
from ..errors import DataError
from ..models.files.lfs_pointer import pointer_words
from ..prompt import PromptFormat
from ..screen import one_line
from ..toolcall import parse_all
from .conversations import read_row

PACKED = {  # how it begins → with what, and the way out
    b"\x1f\x8b": ("gzip", "unpack it: gunzip FILE"),
    b"BZh": ("bzip2", "unpack it: bunzip2 FILE"),
    b"\xfd7zXZ": ("xz", "unpack it: unxz FILE"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it: unzstd FILE"),
    b"PK\x03\x04": ("zip", "unpack it: unzip FILE"),
    b"PAR1": (
        "Parquet",
        "write it as JSON lines, for example with pandas: to_json(…, orient='records', lines=True)",
    ),
}
SHOWN = 40  # bytes of a strange file's beginning
# so many faults are described, each with so many lines; the rest are counted
NAMED_FAULTS, NAMED_LINES = 8, 8


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation. The last message is the assistant's answer, the only part that is
    learned.
    """

    messages: tuple[Mapping[str, str], ...]

    @property
    def answer(self) -> str:
        """What the assistant should say."""
        return self.messages[-1]["content"]

    @property
    def request(self) -> str:
        """What was asked last."""
        return self.messages[-2]["content"]


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """One line of a file: what it teaches, and the whole object, for keys beside the
    conversation.
    """

    number: int  # of the line, from 1
    examples: tuple[Example, ...]
    record: Mapping[str, Any]


def read_jsonl(path: Path) -> list[Example]:
    """Read every conversation of one file.

    Raises:
        DataError: no such file, no examples in it, another format, or bad lines (each with its
        number and fault).
    """
    return [example for row in read_rows(path) for example in row.examples]


def read_rows(path: Path, kind: str = "chat") -> list[ExampleRow]:
    """Read conversations line by line.

    Args:
        kind: of the rows, one of `conversations.FORMATS`.

    Raises:
        DataError: as `read_jsonl`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); name a chat-format JSONL file"
        ) from error
    if other := other_format(content):
        raise DataError(f"{path}: {other}")
    rows: list[ExampleRow] = []
    faults: dict[str, list[int]] = {}  # what is wrong → lines
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
            rows.append(ExampleRow(number, tuple(map(Example, read_row(record, kind))), record))
        except UnicodeDecodeError as error:
            faults.setdefault(f"not UTF-8 at byte {error.start + 1} of the line", []).append(number)
        except json.JSONDecodeError as error:
            faults.setdefault(
                f"not JSON at character {error.pos + 1} of the line: {error.msg}", []
            ).append(number)
        except (ValueError, RecursionError) as error:
            faults.setdefault(str(error), []).append(number)
    if faults:
        raise DataError(f"{path}: {told(faults)}")
    if not rows:
        raise DataError(
            f'{path}: no examples; each line must be {{"messages": [{{"role": …, '
            f'"content": …}}, …]}}'
        )
    return rows


def told(faults: Mapping[str, Sequence[int]]) -> str:
    """Every fault once, with the first of its lines."""
    count = sum(map(len, faults.values()))
    words = []
    for fault, lines in list(faults.items())[:NAMED_FAULTS]:
        more = f" and {len(lines) - NAMED_LINES} more" if len(lines) > NAMED_LINES else ""
        many = "s" if len(lines) > 1 else ""
        words.append(f"line{many} {', '.join(map(str, lines[:NAMED_LINES]))}{more}: {fault}")
    if len(faults) > NAMED_FAULTS:
        words.append(f"and {len(faults) - NAMED_FAULTS} other faults")
    return f"{count} bad line{'s' if count > 1 else ''}, nothing was read. {'; '.join(words)}"


def other_format(content: bytes) -> str:
    """What a file is that is not one JSON object a line, and what to do about it; "" if it may
    be that.
    """
    for magic, (name, remedy) in PACKED.items():
        if content.startswith(magic):
            return f"packed with {name}; {remedy}"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:64]:
        return "UTF-16 or UTF-32, or no text at all; save it as UTF-8"
    text = content.removeprefix(codecs.BOM_UTF8).lstrip()
    if words := pointer_words(content):
        return words
    if text.startswith(b"<"):
        return (
            "HTML or XML, perhaps a page that says why there is no file; look into it, then "
            "download the file again"
        )
    if text and not text.startswith((b"{", b"[")) and not _is_json(first := text.splitlines()[0]):
        shown = one_line(first[:SHOWN].decode("utf-8", "replace"))
        return (
            f"begins with {shown!r}, which is no JSON; one object a line is expected (of a "
            f"table, write each row so)"
        )
    if text.startswith(b"["):
        return "a JSON array; one object a line is expected: jq -c '.[]' FILE > rows.jsonl"
    if text.startswith(b"{") and _spans_lines(text.decode("utf-8", "replace")):
        return (
            "pretty-printed JSON, one object over several lines; one a line is expected: jq -c "
            ". FILE > rows.jsonl"
        )
    return ""


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _spans_lines(text: str) -> bool:
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return "\n" in text[:end]


def check_prompts(examples: Sequence[Example], prompt: PromptFormat, where: str) -> None:
    """Require that examples show the model what it will be shown when the adapter serves.

    Raises:
        DataError: what is different, in how many of them, and which flags of the federation's file
        would say it.
    """
    for wrong, flags in _differences(examples, prompt):
        raise DataError(
            f"{where}: of {len(examples)} examples, {wrong}; the federation's file says "
            f"{prompt.told()}, and the adapter "
            f"would be asked otherwise than it was trained. Change the examples, or ask the owner "
            f"for: "
            f"quietchoir federation change FED {flags}"
        )


def _differences(examples: Sequence[Example], prompt: PromptFormat) -> Iterator[tuple[str, str]]:
    """(how many examples are otherwise, the flag that would say so), the weightiest first."""
    heads = [
        example.messages[0]["content"] if example.messages[0]["role"] == "system" else ""
        for example in examples
    ]
    one = set(heads) if len(set(heads)) == 1 else {""}
    if (
        others := sum(head != prompt.system for head in heads)
        if prompt.system or one != {""}
        else 0
    ):
        lacking = f"{others} do not begin with the system message {prompt.system!r}"
        yield (
            lacking if prompt.system else ("all begin with the same system message"),
            f'--prompt-system "{min(one)}"',
        )
    longer = sum(
        sum(message["role"] == "user" for message in example.messages) > 1 for example in examples
    )
    if prompt.turns == "last" and longer:
        yield f"{longer} have several turns", "--prompt-turns all"
    others = sum(not _follows_up(example) for example in examples)
    if prompt.turns == "follow_up" and others:
        yield (
            f"{others} have several turns, and not one that a call answered before the request",
            "--prompt-turns all",
        )
    calls = sum(bool(parse_all(example.answer)) for example in examples)
    if prompt.answers == "tool_call" and calls < len(examples):
        yield f"{len(examples) - calls} have answers that are no tool calls", "--prompt-answers any"
    if prompt.answers == "text" and calls:
        yield f"{calls} have answers that are tool calls", "--prompt-answers any"


def _follows_up(example: Example) -> bool:
    """Whether a request stands alone, or behind one that calls answered."""
    *prompt, _ = (one for one in example.messages if one["role"] != "system")
    roles = [one["role"] for one in prompt]
    return roles == ["user"] or (
        roles == ["user", "assistant", "user"] and bool(parse_all(prompt[1]["content"]))
    )


def encode_jsonl(examples: Iterable[Example]) -> bytes:
    """The bytes of a file that `read_jsonl` reads back; equal examples give equal bytes."""
    lines = [
        json.dumps(
            {"messages": [dict(message) for message in example.messages]}, ensure_ascii=False
        )
        for example in examples
    ]
    return "".join(line + "\n" for line in lines).encode()


def write_jsonl(path: Path, examples: Sequence[Example]) -> None:
    """Write `examples`, all or nothing.

    Raises:
        DataError: no examples.
        QuietchoirError: the disk refused; the old file, if any, is untouched.
    """
    if not examples:
        raise DataError(f"{path}: there are no examples to write")
    paths.write_atomically(path, encode_jsonl(examples))
