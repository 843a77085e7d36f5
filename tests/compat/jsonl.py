"""Files of examples as people have them: what can be trained on is, what cannot is refused by
name, nothing is lost.
"""

import gzip
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from quietchoir.core import log
from quietchoir.core.errors import QuietchoirError
from quietchoir.core.toolcall import ToolCall, parse_all, render
from quietchoir.core.training.dataset import Division, build_jsonl, list_datasets
from quietchoir.core.training.examples import Example, read_jsonl

ASKED = {"role": "user", "content": "Turn on the lamp"}
SAID = {"role": "assistant", "content": "Done."}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "turn_on", "parameters": {"type": "object", "properties": {}}},
    }
]
LAMP = ToolCall("turn_on", {"name": "lamp"})
Row = Mapping[str, Any]


def called(*calls: Any, **more: Any) -> dict[str, Any]:
    """An assistant's message that makes calls."""
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def call(arguments: Any = '{"name": "lamp"}', name: str = "turn_on", **more: Any) -> dict[str, Any]:
    return {
        "id": "call_1",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
        **more,
    }


def row(*messages: Row, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def asks(number: object, **more: Any) -> dict[str, Any]:
    return row(
        {"role": "user", "content": f"What is {number}?"},
        {"role": "assistant", "content": f"It is {number}."},
        **more,
    )


# name: format, row → contents of each conversation that is learned
GIVES: dict[str, tuple[str, Row, list[list[str]]]] = {
    "plain": ("chat", row(ASKED, SAID), [["Turn on the lamp", "Done."]]),
    "parts that are texts": (
        "chat",
        row(
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            SAID,
        ),
        [["ab", "Done."]],
    ),
    "a developer's message": (
        "chat",
        row({"role": "developer", "content": "Be brief."}, ASKED, SAID),
        [["Be brief.", "Turn on the lamp", "Done."]],
    ),
    "nulls and empty lists beside": (
        "chat",
        row(
            {**ASKED, "name": None},
            {
                **SAID,
                "tool_calls": None,
                "function_call": None,
                "refusal": None,
                "audio": None,
                "annotations": [],
            },
            images=[],
            system="",
            label=True,
        ),
        [["Turn on the lamp", "Done."]],
    ),
    "a call": ("chat", row(ASKED, called(call()), tools=TOOLS), [["Turn on the lamp", "CALL"]]),
    "a call with an object": (
        "chat",
        row(ASKED, called(call({"name": "lamp"}))),
        [["Turn on the lamp", "CALL"]],
    ),
    "a call and an empty text": (
        "chat",
        row(ASKED, called(call(), content="")),
        [["Turn on the lamp", "CALL"]],
    ),
    "a call, its result, an answer": (
        "chat",
        row(
            ASKED,
            called(call()),
            {"role": "tool", "tool_call_id": "call_1", "name": "turn_on", "content": "on"},
            SAID,
            tools=TOOLS,
        ),
        [["Turn on the lamp", "CALL", "on", "Done."]],
    ),
    "weights": (
        "chat",
        row(ASKED, {**SAID, "weight": 0}, ASKED, {**SAID, "content": "Now.", "weight": 1}),
        [["Turn on the lamp", "Done.", "Turn on the lamp", "Now."]],
    ),
    "a weight of 0 at the end": (
        "chat",
        row(ASKED, {**SAID, "weight": 1}, ASKED, {**SAID, "content": "No.", "weight": 0}),
        [["Turn on the lamp", "Done."]],
    ),
    "two weights of 1": (
        "chat",
        row(ASKED, {**SAID, "weight": 1}, ASKED, {**SAID, "content": "Now.", "weight": 1}),
        [["Turn on the lamp", "Done."], ["Turn on the lamp", "Done.", "Turn on the lamp", "Now."]],
    ),
    "emoji and Persian": (
        "chat",
        row(ASKED, {**SAID, "content": "👨‍👩‍👧 می‌خواهم"}),
        [["Turn on the lamp", "👨‍👩‍👧 می‌خواهم"]],
    ),
    "a line separator": (
        "chat",
        row(ASKED, {**SAID, "content": "a\u2028b"}),
        [["Turn on the lamp", "a\u2028b"]],
    ),
    "ShareGPT": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        [["a", "b"]],
    ),
    "ShareGPT with a system text": (
        "sharegpt",
        {
            "system": "s",
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b", "markdown": None},
            ],
        },
        [["s", "a", "b"]],
    ),
    "two calls to learn": (
        "chat",
        row(ASKED, called(call(), call())),
        [["Turn on the lamp", "CALLS"]],
    ),
    "ShareGPT with a call": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {
                    "from": "function_call",
                    "value": '{"name": "turn_on", "arguments": {"name": "lamp"}}',
                },
                {"from": "observation", "value": "on"},
                {"from": "gpt", "value": "b"},
            ],
            "tools": '[{"name": "turn_on"}]',
        },
        [["a", "CALL", "on", "b"]],
    ),
    "Alpaca": (
        "alpaca",
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        [["Add.\n\n1 and 2", "3"]],
    ),
    "Alpaca without input": (
        "alpaca",
        {"instruction": "Hi", "input": "", "output": "Hello"},
        [["Hi", "Hello"]],
    ),
    "Alpaca with history": (
        "alpaca",
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        [["s", "a", "b", "c", "d"]],
    ),
}
REFUSED: dict[str, tuple[str, Row, str]] = {  # name: format, row, a word of the sentence
    "a text and calls": ("chat", row(ASKED, called(call(), content="I will.")), "a text and calls"),
    "a call to no tool of the row": (
        "chat",
        row(ASKED, called(call(name="turn_off")), tools=TOOLS),
        "not among the row's tools",
    ),
    "arguments that are no JSON": ("chat", row(ASKED, called(call("{"))), "not JSON"),
    "arguments that are a list": ("chat", row(ASKED, called(call("[]"))), "an object"),
    "calls that are no list": (
        "chat",
        row(ASKED, {**SAID, "content": None, "tool_calls": 5}),
        "tool_calls",
    ),
    "no calls": ("chat", row(ASKED, called()), "tool_calls"),
    "a call of another kind": ("chat", row(ASKED, called(call(type="custom"))), "a call must be"),
    "a user's call": ("chat", row({**ASKED, "tool_calls": [call()]}, SAID), "only the assistant"),
    "tools that are a text": ("chat", row(ASKED, SAID, tools="turn_on"), '"tools"'),
    "the old functions": ("chat", row(ASKED, SAID, functions=[{"name": "turn_on"}]), '"functions"'),
    "an old call": (
        "chat",
        row(ASKED, {"role": "assistant", "content": None, "function_call": {"name": "turn_on"}}),
        "function_call",
    ),
    "a picture": (
        "chat",
        row({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, SAID),
        "image_url",
    ),
    "a part with more": (
        "chat",
        row({"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]}, SAID),
        "parts",
    ),
    "a part without text": (
        "chat",
        row({"role": "user", "content": [{"type": "text"}]}, SAID),
        "parts",
    ),
    "a refusal": ("chat", row(ASKED, {**SAID, "refusal": "I cannot."}), "refusal"),
    "thoughts": ("chat", row(ASKED, {**SAID, "reasoning_content": "hm"}), "reasoning_content"),
    "a name": ("chat", row({**ASKED, "name": "ann"}, SAID), "'name'"),
    "weight of half": ("chat", row(ASKED, {**SAID, "weight": 0.5}), "weight 0.5"),
    "weight of true": ("chat", row(ASKED, {**SAID, "weight": True}), "weight True"),
    "a user's weight": ("chat", row({**ASKED, "weight": 1}, SAID), "weight"),
    "nothing but weights of 0": ("chat", row(ASKED, {**SAID, "weight": 0}), "nothing to learn"),
    "an answer to nothing": (
        "chat",
        row({**SAID, "weight": 1}, ASKED, {**SAID, "weight": 1}),
        "answer to nothing",
    ),
    "null without calls": ("chat", row(ASKED, {**SAID, "content": None}), "a text as content"),
    "half a surrogate in an answer": (
        "chat",
        row(ASKED, {**SAID, "content": "a\ud83d"}),
        "half a character",
    ),
    "half a surrogate in a call": (
        "chat",
        row(ASKED, called(call('{"name": "\\ud83d"}'))),
        "half a character",
    ),
    "ShareGPT without its flag": (
        "chat",
        {"conversations": [{"from": "human", "value": "a"}]},
        "--format sharegpt",
    ),
    "Alpaca without its flag": ("chat", {"instruction": "a", "output": "b"}, "--format alpaca"),
    "ShareGPT from somebody": (
        "sharegpt",
        {"conversations": [{"from": "bing", "value": "a"}, {"from": "gpt", "value": "b"}]},
        "'bing'",
    ),
    "ShareGPT that ends with a question": (
        "sharegpt",
        {"conversations": [{"from": "gpt", "value": "b"}, {"from": "human", "value": "a"}]},
        "expected the assistant's",
    ),
    "ShareGPT with a page": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "a", "html": "<p>"},
                {"from": "gpt", "value": "b"},
            ]
        },
        "'html'",
    ),
    "a system text beside": ("chat", row(ASKED, SAID, system="Be brief."), "'system'"),
    "pictures beside": ("chat", row(ASKED, SAID, images=["a.png"]), "'images'"),
    "an answer that is marked bad": ("chat", row(ASKED, SAID, kto_tag=False), "'kto_tag'"),
    "a row of preferences": ("chat", row(ASKED, SAID, rejected="No."), "'rejected'"),
    "ShareGPT with a picture": (
        "sharegpt",
        {
            "image": "a.png",
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        },
        "'image'",
    ),
    "ShareGPT with another word for system": (
        "sharegpt",
        {
            "system_prompt": "s",
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        },
        "'system_prompt'",
    ),
    "ShareGPT with roles": (
        "sharegpt",
        {
            "conversations": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
            ]
        },
        "call the key messages",
    ),
    "Alpaca with tools": ("alpaca", {"instruction": "a", "output": "b", "tools": TOOLS}, "'tools'"),
    "Alpaca that is marked bad": (
        "alpaca",
        {"instruction": "a", "output": "b", "label": False},
        "'label'",
    ),
    "Dolly": (
        "alpaca",
        {"instruction": "a", "context": "", "response": "b"},
        "found the keys context, instruction, response",
    ),
    "Alpaca without output": (
        "alpaca",
        {"instruction": "a", "input": "", "output": ""},
        '"output"',
    ),
    "preferences": ("chat", {"prompt": "a", "chosen": "b", "rejected": "c"}, '"messages"'),
}


def packed(rows: Sequence[Row]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in rows)


ROWS = [asks(number) for number in range(6)]
FILES: dict[str, tuple[bytes, str]] = {  # name: content → a word of the sentence, "" if it is read
    "UTF-8 with a mark": (b"\xef\xbb\xbf" + packed(ROWS), ""),
    "line ends of Windows": (packed(ROWS).replace(b"\n", b"\r\n"), ""),
    "no last line end": (packed(ROWS).rstrip(), ""),
    "UTF-16 with a mark": (packed(ROWS).decode().encode("utf-16"), "UTF-16"),
    "UTF-16 without one": (packed(ROWS).decode().encode("utf-16-le"), "UTF-16"),
    "UTF-32": (packed(ROWS).decode().encode("utf-32"), "UTF-32"),
    "gzip": (gzip.compress(packed(ROWS)), "gunzip"),
    "zip": (b"PK\x03\x04rest", "unzip"),
    "zstd": (b"\x28\xb5\x2f\xfdrest", "unzstd"),
    "xz": (b"\xfd7zXZ\x00rest", "unxz"),
    "bzip2": (b"BZh9rest", "bunzip2"),
    "Parquet": (b"PAR1rest", "Parquet"),
    "an array": (json.dumps(ROWS).encode(), "array"),
    "an array over lines": (json.dumps(ROWS, indent=2).encode(), "array"),
    "one object over lines": (json.dumps(ROWS[0], indent=2).encode(), "pretty-printed"),
    "objects over lines": (
        b"\n".join(json.dumps(one, indent=1).encode() for one in ROWS),
        "pretty-printed",
    ),
    "Latin-1": (
        packed(ROWS) + '{"messages": "é"}\n'.encode("latin-1"),
        "line 7: not UTF-8 at byte",
    ),
    "CSV": (b"question,answer\na,b\n", "begins with 'question,answer'"),
    "a page": (b"<!DOCTYPE html>\n<html>404</html>\n", "HTML"),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "Git LFS",
    ),
    "texts": (b'"a"\n"b"\n', "lines 1, 2: expected an object"),
    "nothing": (b"\n \n", "no examples"),
    "a comma at each end": (packed(ROWS).replace(b"\n", b",\n"), "lines 1, 2"),
    "half a row at the end": (packed(ROWS)[:-9], "line 6: not JSON at character"),
    "one fault in all lines": (
        b'{"messages": 5}\n' * 40,
        "lines 1, 2, 3, 4, 5, 6, 7, 8 and 32 more: expected an object",
    ),
}
PARTIES: dict[str, tuple[list[object], list[str]]] = {  # name: values of the key → folders
    "letters of every script": (
        ["Ναταλία", "Дом", "家", "الأسرة", "ครัว", "ann"],
        ["ann", "ναταλία", "дом", "الأسرة", "ครัว", "家"],
    ),
    "a composed and a decomposed one": (["caf\u00e9", "cafe\u0301"], ["café-*", "café-*"]),
    "upper and lower case": (["Red", "RED", "red"], ["red-*", "red-*", "red-*"]),
    "case in other scripts": (["STRASSE", "straße"], ["strasse-*", "straße-*"]),
    "blanks and hyphens": (["x y", "x-y"], ["x-y-*", "x-y-*"]),
    "nothing but marks": (["!", "?"], ["party-*", "party-*"]),
    "a way out": (["../../etc", "/root"], ["etc", "root"]),
    "a device": (["con", "x"], ["party-con", "x"]),
    "a number and its text": ([1, "1", 2], ["1", "2"]),
    "very long": (["ab" * 100 + "x", "ab" * 100 + "y"], ["ab" * 32 + "-*"] * 2),
    "very long, four bytes each": (["𐎠" * 90, "x"], ["x", "𐎠" * 50]),
}


def differs(found: object, wanted: object) -> str:
    """ "" if they are alike."""
    return "" if found == wanted else f"gave {found!r}, expected {wanted!r}"


def refused(folder: Path, act: Callable[[], object], word: str) -> str:
    """ "" if `act` ends with a sentence that holds `word`, and nothing was written below
    `folder`.
    """
    before = sorted(folder.rglob("*"))
    try:
        act()
    except QuietchoirError as error:
        left = [str(path) for path in sorted(folder.rglob("*")) if path not in before]
        return (
            ""
            if word in str(error) and not left
            else (f"said {str(error)!r}, left {left}; expected {word!r}")
        )
    return "was read"


def contents(example: Example) -> list[str]:
    return [
        {1: "CALL", 2: "CALLS"}[len(calls)]
        if (calls := parse_all(message["content"])) and set(map(render, calls)) == {render(LAMP)}
        else message["content"]
        for message in example.messages
    ]


def check() -> Iterator[tuple[str, str]]:
    """Rows, then whole files, then parties."""
    log.get("training").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as name:
            yield from checked(Path(name))
    finally:
        log.get("training").setLevel(logging.NOTSET)


def checked(folder: Path) -> Iterator[tuple[str, str]]:
    """Every case, each with a folder of its own."""
    file, out = folder / "rows.jsonl", folder / "out"
    other = {
        "chat": asks(0),
        "sharegpt": {
            "conversations": [
                {"from": "human", "value": "What is 0?"},
                {"from": "gpt", "value": "It is 0."},
            ]
        },
        "alpaca": {"instruction": "What is 0?", "output": "It is 0."},
    }
    for index, (name, (kind, one, wanted)) in enumerate(GIVES.items()):
        file.write_bytes(packed([other[kind], one]))
        [party] = build_jsonl(file, out / f"g{index}", kind=kind)
        learned = [
            contents(example)
            for part in ("train", "test")
            for example in read_jsonl(party.folder / f"{part}.jsonl")
        ]
        yield (
            f"is learned: {name}",
            differs(sorted(learned), sorted([["What is 0?", "It is 0."], *wanted])),
        )
    for name, (kind, one, word) in REFUSED.items():
        file.write_bytes(packed([other[kind], other[kind], one]))
        act = partial(build_jsonl, file, out / "r", kind=kind)
        yield f"is refused: {name}", refused(folder, act, word) or refused(folder, act, "line 3: ")
    for name, (content, word) in FILES.items():
        file.write_bytes(content)
        if word:
            yield f"is named: {name}", refused(folder, lambda: build_jsonl(file, out / "f"), word)
        else:
            yield (
                f"is read: {name}",
                differs(
                    sum(info.train + info.test for info in build_jsonl(file, out / name)), len(ROWS)
                ),
            )
    yield from divided(folder, file)


def divided(folder: Path, file: Path) -> Iterator[tuple[str, str]]:
    """Parties, shares, limits, and what a bad second party leaves."""
    for index, (name, (values, wanted)) in enumerate(PARTIES.items()):
        file.write_bytes(
            packed(
                [
                    asks(f"{number} {at}", team=value)
                    for at, value in enumerate(values)
                    for number in range(3)
                ]
            )
        )
        out = folder / f"parties-{index}"
        found = [info.name for info in build_jsonl(file, out, Division(partition_by="team"))]
        fits = len(found) == len(wanted) and all(
            one.startswith(two[:-1]) if two.endswith("*") else one == two
            for one, two in zip(sorted(found), sorted(wanted), strict=True)
        )
        apart = len({one.casefold() for one in found}) == len(found) and {
            info.name for info in list_datasets(out)
        } == set(found)
        yield f"parties: {name}", "" if fits and apart else f"gave {found}, expected {wanted}"
    half = asks(1, team="\ud83d")
    file.write_bytes(packed([asks(1, team="a"), asks(2, team="a"), half]))
    yield (
        "a party of half a character",
        refused(
            folder,
            lambda: build_jsonl(file, folder / "h", Division(partition_by="team")),
            "lines 3",
        ),
    )
    file.write_bytes(packed([asks(1, team="a"), asks(2, team="a"), asks(3, team="b")]))
    counts = [
        (info.train, info.test)
        for info in build_jsonl(file, folder / "one", Division(partition_by="team"))
    ]
    yield "a second party with one row", differs(counts, [(1, 1), (1, 0)])
    blocked = folder / "blocked"
    blocked.mkdir()
    (blocked / "b").write_text("a file stands where the second party's folder should be")
    file.write_bytes(
        packed([asks(f"{number}{team}", team=team) for team in "ab" for number in range(3)])
    )
    yield (
        "a second party that the disk refuses",
        refused(
            folder,
            lambda: build_jsonl(file, blocked, Division(partition_by="team")),
            "nothing was written",
        ),
    )
    file.write_bytes(packed([asks(number) for number in range(100)]))
    [info] = build_jsonl(file, folder / "limit", Division(limit=10, test_share=0.3))
    yield "a limit and a share", differs((info.train, info.test), (7, 3))
    kept = [
        (folder / "limit" / info.name / part).read_bytes() for part in ("train.jsonl", "test.jsonl")
    ]
    build_jsonl(file, folder / "again", Division(limit=10, test_share=0.3))
    same = [
        (folder / "again" / info.name / part).read_bytes() for part in ("train.jsonl", "test.jsonl")
    ]
    build_jsonl(file, folder / "other", Division(limit=10, test_share=0.3, seed=2))
    other = [
        (folder / "other" / info.name / part).read_bytes() for part in ("train.jsonl", "test.jsonl")
    ]
    yield "the seed decides which", differs((kept == same, kept == other), (True, False))
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("share", {"test_share": 1.0}),
        ("seed", {"seed": -1}),
        ("limit", {"limit": 1}),
    )
    for name, choices in wrong:
        yield f"a {name} that leaves nothing", refused(folder, partial(Division, **choices), name)
