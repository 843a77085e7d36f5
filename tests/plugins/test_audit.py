"""The log of calls holds names and sizes, and notices when it is changed."""

import json
from pathlib import Path

import pytest

from quietchoir.core.errors import PluginError
from quietchoir.plugins.audit import START, Audit, Call, verify

CALL = Call(plugin="a/b", tool="lamp", sent_bytes=3, received_bytes=4, seconds=0.1, outcome="ok")


def written(path: Path, count: int = 3) -> list[bytes]:
    """A log of `count` calls, as lines."""
    audit = Audit(path, clock=lambda: 1.0)
    for _ in range(count):
        audit.write(CALL)
    return path.read_bytes().splitlines(keepends=True)


def test_lines_are_added_and_chained_across_openings(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    assert verify(path) == (0, START)
    written(path, 2)
    again = Audit(path)
    again.write(CALL)
    assert verify(path) == (3, again.head)
    assert path.stat().st_mode & 0o077 == 0


def test_two_writers_in_turn_keep_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    first, second = Audit(path), Audit(path)
    for audit in (first, second, first):
        audit.write(CALL)
    assert verify(path)[0] == 3


@pytest.mark.parametrize("change", ["edit", "remove", "swap"])
def test_a_changed_log_is_noticed_and_says_where(tmp_path: Path, change: str) -> None:
    path = tmp_path / "audit.jsonl"
    lines = written(path)
    if change == "edit":
        row = json.loads(lines[1])
        lines[1] = json.dumps(row | {"tool": "oven"}).encode() + b"\n"
    elif change == "remove":
        del lines[1]
    else:
        lines[1], lines[2] = lines[2], lines[1]
    path.write_bytes(b"".join(lines))
    with pytest.raises(PluginError, match="line 2 does not follow"):
        Audit(path)


def test_half_a_line_after_a_power_cut_is_dropped_at_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines) + lines[0][:20])
    audit = Audit(path)
    audit.write(CALL)
    assert verify(path) == (4, audit.head)


def test_a_link_in_the_logs_place_is_not_followed(tmp_path: Path) -> None:
    decoy = tmp_path / "decoy"
    decoy.write_text("")
    (tmp_path / "audit.jsonl").symlink_to(decoy)
    with pytest.raises(PluginError, match="cannot be logged"):
        Audit(tmp_path / "audit.jsonl").write(CALL)
    assert decoy.read_text() == ""
