"""Facts about anybody's own file, divided among parties."""

import json
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import DataError
from quietchoir.core.training.dataset import Division, build_jsonl, list_datasets
from quietchoir.core.training.examples import read_jsonl


def record(request: str, **keys: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": request},
        {"role": "assistant", "content": request.upper()},
    ]
    return {"messages": messages, **keys}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_each_value_of_the_key_becomes_a_party_and_nothing_is_lost(tmp_path: Path) -> None:
    records = [
        record(f"{team} {index}", team=team) for team in ("Red Team", "blue") for index in range(10)
    ]
    built = build_jsonl(
        write(tmp_path / "a.jsonl", records), tmp_path / "out", Division(partition_by="team")
    )
    assert [(info.name, info.train, info.test) for info in built] == [
        ("blue", 8, 2),
        ("red-team", 8, 2),
    ]
    assert list_datasets(tmp_path / "out") == built
    for info, team in zip(built, ("blue", "Red Team"), strict=True):
        parts = [read_jsonl(info.folder / name) for name in ("train.jsonl", "test.jsonl")]
        requests = [example.request for part in parts for example in part]
        assert sorted(requests) == sorted(f"{team} {index}" for index in range(10))


def test_the_split_follows_from_the_seed_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [record(f"r{index}") for index in range(30)])
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        build_jsonl(file, tmp_path / name, Division(seed=seed))
    assert tree(tmp_path / "x") == tree(tmp_path / "y")
    assert tree(tmp_path / "x") != tree(tmp_path / "z")


def test_a_repeated_request_never_stands_on_both_sides(tmp_path: Path) -> None:
    records = [record(f"r{index % 6}") for index in range(60)]
    (info,) = build_jsonl(
        write(tmp_path / "a.jsonl", records), tmp_path / "out", Division(test_share=0.5)
    )
    train, test = (
        {example.request for example in read_jsonl(info.folder / f"{part}.jsonl")}
        for part in ("train", "test")
    )
    assert train
    assert test
    assert not train & test


def test_bad_lines_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl", [record("a"), {"messages": "no"}, record("b"), {"nothing": 1}]
    )
    with pytest.raises(DataError, match=r"line 2: .*line 4: "):
        build_jsonl(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        (
            [record("a", team="x"), record("b"), record("c", team="x"), record("d", team=[1])],
            r"lines 2, 4",
        ),
        ([record("a", team="x"), record("b", team="\ud83d")], "lines 2"),
    ],
)
def test_a_key_that_does_not_divide_well_writes_nothing(
    tmp_path: Path, records: list[dict[str, Any]], fault: str
) -> None:
    file = write(tmp_path / "a.jsonl", records)
    with pytest.raises(DataError, match=fault):
        build_jsonl(file, tmp_path / "out", Division(partition_by="team"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "what"),
    [([record("c")], "one example"), ([record("c")] * 3, "3 examples that all ask the same")],
)
def test_a_party_that_has_nothing_to_hold_out_trains_and_is_told(
    tmp_path: Path, rows: list[dict[str, Any]], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    others = [record(text, team="x") for text in "ab"]
    lone = [row | {"team": "lone"} for row in rows]
    file = write(tmp_path / "a.jsonl", [*others, *lone])
    (tmp_path / "out/lone").mkdir(parents=True)
    (tmp_path / "out/lone/test.jsonl").write_text("of an earlier build")
    with caplog.at_level("WARNING", logger="quietchoir"):
        found = build_jsonl(file, tmp_path / "out", Division(partition_by="team"))
    assert [(one.name, one.train, one.test) for one in found] == [
        ("lone", len(rows), 0),
        ("x", 1, 1),
    ]
    assert (tmp_path / "out/lone/test.jsonl").read_bytes() == b""
    assert "lone" in caplog.text and what in caplog.text and "no part in votes" in caplog.text


def test_a_party_s_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    records = [record(f"r{index}", team=team) for team in ("../../etc", "..") for index in range(4)]
    build_jsonl(
        write(tmp_path / "a.jsonl", records),
        tmp_path / "deep" / "out",
        Division(partition_by="team"),
    )
    assert {path.parent.parent for path in tmp_path.rglob("train.jsonl")} == {
        tmp_path / "deep" / "out"
    }


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_that_leaves_one_side_empty_is_refused(tmp_path: Path, share: float) -> None:
    file = write(tmp_path / "a.jsonl", [record("a"), record("b")])
    with pytest.raises(DataError, match="between 0 and 1"):
        build_jsonl(file, tmp_path / "out", Division(test_share=share))


def test_keys_that_nothing_is_read_from_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [record(f"{index}", team="a", id=index, source="web") for index in range(4)]
    del rows[0]["source"]
    build_jsonl(write(tmp_path / "a.jsonl", rows), tmp_path / "out", Division(partition_by="team"))
    assert "not trained on: id (4 rows), source (3 rows)" in caplog.text
    assert "team" not in caplog.text
