"""Conversations a node may train on, one JSON object a line.

Knows the chat format `{"messages": [{"role", "content"}, …]}`. Knows nothing of tokens, homes or tensors.
Always: a file is read whole or not at all, and every bad line is named by its number.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import paths
from ..errors import DataError

ROLES = ("system", "user", "assistant", "tool")
NAMED_LINES = 8  # so many bad lines are described; the rest are counted


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation. The last message is the assistant's answer, the only part that is learned."""

    messages: tuple[Mapping[str, str], ...]

    @property
    def answer(self) -> str:
        """What the assistant should say."""
        return self.messages[-1]["content"]

    @property
    def request(self) -> str:
        """What was asked last."""
        return self.messages[-2]["content"]


def read_jsonl(path: Path) -> list[Example]:
    """Read every conversation of one file.

    Raises:
        DataError: no such file, no examples in it, or bad lines (each with its number and fault).
    """
    return [example for example, _ in read_records(path)]


def read_records(path: Path) -> list[tuple[Example, Mapping[str, Any]]]:
    """Read conversations together with the whole object of their line, for keys beside `messages`.

    Raises:
        DataError: as `read_jsonl`.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a chat-format JSONL file") from error
    records: list[tuple[Example, Mapping[str, Any]]] = []
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            records.append((parse_record(record), record))
        except (ValueError, RecursionError) as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = f"; and {len(faults) - NAMED_LINES} more" if len(faults) > NAMED_LINES else ""
        raise DataError(f"{path}: {len(faults)} bad lines, nothing was read. {'; '.join(faults[:NAMED_LINES])}{more}")
    if not records:
        raise DataError(f'{path}: no examples; each line must be {{"messages": [{{"role": …, "content": …}}, …]}}')
    return records


def parse_record(record: Any) -> Example:
    """Check one decoded line.

    Raises:
        ValueError: not a conversation that ends with an answer to something.
    """
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError('expected an object with "messages", a list of two or more')
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"message {index + 1} must have a text as content")
        if message.get("role") not in ROLES:
            raise ValueError(f"message {index + 1} has role {message.get('role')!r}, expected one of {', '.join(ROLES)}")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message is the {messages[-1]['role']}'s, expected the assistant's answer")
    if not messages[-1]["content"].strip():
        raise ValueError("the assistant's answer is empty")
    return Example(tuple({"role": message["role"], "content": message["content"]} for message in messages))


def encode_jsonl(examples: Iterable[Example]) -> bytes:
    """The bytes of a file that `read_jsonl` reads back; equal examples give equal bytes."""
    lines = [
        json.dumps({"messages": [dict(message) for message in example.messages]}, ensure_ascii=False) for example in examples
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
