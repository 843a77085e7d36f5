"""What `quietchoir bench` writes, on sizes that take seconds. No figure is judged here."""

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from quietchoir.cli import main
from quietchoir.core.errors import ConfigError, QuietchoirError
from quietchoir.simulations import commands
from quietchoir.simulations.bench import suites
from quietchoir.simulations.bench.cohort import play
from quietchoir.simulations.bench.figures import (
    Figure,
    Keep,
    look_up,
    misses,
    number,
    put_share,
    rounded,
    so_far,
)
from quietchoir.simulations.bench.members import Setting
from quietchoir.simulations.bench.parts import run_parts
from quietchoir.simulations.bench.stopwatch import Arm, Sample, interleaved

PROMISED = (
    "mask_ms_per_peer",
    "mask_over_aes_bound",
    "flower_mask_ratio",
    "secagg_bytes_per_param",
    "secagg_bytes_per_param_4bit",
    "sealed_bytes_per_param.up",
    "sealed_bytes_per_param.down",
    "sealed_encrypt_s",
    "sealed_decrypt_s",
    "tenseal_default_ratio.bytes",
    "tenseal_default_ratio.time",
)

CIRCLE = (
    "ceremony_s",
    "ceremony_up_mb",
    "ceremony_down_mb",
    "encrypt_s",
    "part_s",
    "combine_s",
    "up_bytes_per_param",
    "part_bytes_per_param",
    "down_bytes_per_param",
)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """One quick run: report on standard output, table on standard error, the same report in a
    file.
    """
    file = tmp_path_factory.mktemp("bench") / "crypto.json"
    command = [
        sys.executable,
        "-m",
        "quietchoir.cli",
        "bench",
        "crypto",
        "--quick",
        "--json",
        "--out",
        str(file),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == 0, ended.stderr
    # standard output holds the report and nothing else
    return json.loads(ended.stdout), ended.stderr, file


def test_the_report_has_every_promised_key_and_every_sum_was_exact(
    printed: tuple[dict[str, Any], str, Path],
) -> None:
    report, _, file = printed
    assert all(look_up(report, key) > 0 for key in PROMISED)
    assert report["exact"] is True
    for parties, run in report["end_to_end"].items():
        assert (
            run["exact"] is True
            and run["client_s"] > 0
            and run["server_s"] > 0
            and 0 < run["dropped"] < int(parties)
        )
    for run in report["threshold"].values():
        assert run["exact"] is True and run["openers"] == 3 and min(run[key] for key in CIRCLE) > 0
    assert json.loads(file.read_text()) == report


def test_every_number_has_its_machine_seed_repeats_and_peers(
    printed: tuple[dict[str, Any], str, Path],
) -> None:
    report, _, _ = printed
    assert (
        "tenseal" in report["machine"] and report["seed"] == 1 and report["repeats"]["masks"] >= 2
    )
    assert (
        report["peers"]["flower_mask_ms"] > 0
        and report["peers"]["tenseal_default"]["bytes_per_param"] > 0
    )
    for key, (low, high) in report["spread"].items():
        assert low <= look_up(report, key) <= high


def test_the_table_says_what_a_quick_run_is_worth(
    printed: tuple[dict[str, Any], str, Path],
) -> None:
    report, table, _ = printed
    assert report["quick"] is True and report["aims_missed"] == {}
    assert "mean nothing" in table and "missed" not in table and "Flower" in table


def test_a_missed_aim_is_said_with_by_how_much() -> None:
    rows = [
        Figure("a.b", "s", "x", at_most=1.0),
        Figure("c", "×", "y", at_least=10),
        Figure("d", "s", "z"),
    ]
    assert misses({"a": {"b": 1.25}, "c": 5.0, "d": 9.0}, rows) == {
        "a.b": "missed by 25 %",
        "c": "missed by 50 %",
    }
    assert misses({"a": {"b": 1.0}, "c": 10.0, "d": 9.0}, rows) == {}
    assert [row.aim for row in rows] == ["≤ 1", "≥ 10", ""]


def test_an_unknown_suite_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="crypto"):
        commands.run_bench(Namespace(suite="engin", json=False, out=None, quick=True, only=None))


def test_without_a_name_every_suite_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, **_: Any) -> tuple[dict[str, Any], list[Figure]]:
        fixed = {
            "machine": "here",
            "what": "w",
            "seed": 1,
            "repeats": {},
            "clock": "c",
            "spread": {},
            "exact": True,
        }
        return {"suite": name, "quick": False, "aims_missed": {}, **fixed, "x": 2.0}, [
            Figure("x", "s", "row")
        ]

    monkeypatch.setattr(suites, "run", run)
    assert main(["bench", "--json"]) == 0
    assert tuple(json.loads(capsys.readouterr().out)) == suites.here()
    assert set(suites.SUITES) - set(suites.here()) <= {"gpu"}


class Cut:
    """A suite that ends after its first part."""

    def measure(self, *, quick: bool, tell: Callable[[str], None], keep: Keep) -> dict[str, Any]:
        report: dict[str, Any] = {"what": "w", "spread": {}, "first": {"a": 0.123456789}}
        keep(report)
        report["first"]["b"] = 2.0
        keep(report)
        raise QuietchoirError("somebody pulled the plug")

    def figures(self, report: dict[str, Any]) -> Iterator[Figure]:
        yield Figure("first.a", "s", "one")
        yield Figure("first.b", "s", "two")
        # nobody knows its name yet
        yield Figure(f"second.{report['second']['name']}", "s", "three")


class Eager(Cut):
    """One that makes all of its rows before any is looked at."""

    def figures(self, report: dict[str, Any]) -> Any:
        return list(super().figures(report))


def test_rows_that_cannot_be_made_yet_do_not_end_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suites, "SUITES", {"cut": "short"})
    monkeypatch.setitem(sys.modules, f"{suites.__package__}.cut", Eager())
    with pytest.raises(QuietchoirError, match="the plug"):  # its own end
        commands.run_bench(Namespace(suite="cut", json=True, out=None, quick=False, only=None))
    assert "so far" not in capsys.readouterr().err


class Judged:
    """A suite of attacks of which so many broke a promise."""

    def __init__(self, broken: int) -> None:
        self.broken = broken

    def measure(self, *, quick: bool, tell: Callable[[str], None], keep: Keep) -> dict[str, Any]:
        return {
            "what": "w", "seed": "none", "clock": "none", "repeats": {}, "spread": {},
            "exact": True, "broken": self.broken,
        }  # fmt: skip

    def figures(self, report: dict[str, Any]) -> list[Figure]:
        return [Figure("broken", "", "promises broken", at_most=0)]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_promise_ends_the_command_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: int
) -> None:
    monkeypatch.setattr(suites, "SUITES", {"judged": "attacks"})
    monkeypatch.setitem(sys.modules, f"{suites.__package__}.judged", Judged(broken))
    asked = Namespace(suite="judged", json=True, out=None, quick=False, only=None)
    assert commands.run_bench(asked) == broken
    assert json.loads(capsys.readouterr().out)["broken"] == broken


@pytest.mark.parametrize("name", ["assistant", "confidence", "context", "retrieval", "silence"])
def test_a_suite_tells_of_its_parts_as_they_come(name: str) -> None:
    suite = importlib.import_module(f"{suites.__package__}.{name}")
    parts = {"in_prompt.ours.1k": 1.0, "python.hybrid.recall_5": 0.9, "injection.acted": 0,
             "confirm.other.coverage": 0.1, "home.talk.served": 0.02}  # fmt: skip
    report: dict[str, Any] = {"spread": {}}
    for key, value in parts.items():
        *outer, inner = key.split(".")
        place = report
        for part in outer:
            place = place.setdefault(part, {})
        place[inner] = value
    shown = {row.key for row in so_far(report, suite.figures)}
    assert shown and shown <= parts.keys()
    with pytest.raises(
        ConfigError, match=f"has no part 'nothing'; there are {next(iter(suite.PARTS))}: "
    ):
        suites.run(name, quick=True, tell=lambda words: None, only=("nothing",))


def test_a_share_of_few_cases_is_told_with_how_little_they_say() -> None:
    report: dict[str, Any] = {"spread": {}}
    put_share(report, "a.few", [True] * 6)
    put_share(report, "a.many", [True, False] * 500)
    assert report["a"] == {"few": 1.0, "many": 0.5}
    (low, high), (least, most) = report["spread"].values()
    assert (round(low, 2), high) == (0.61, 1.0) and 0.46 < least < 0.5 < most < 0.54


class InParts:
    """A suite of two parts."""

    PARTS: ClassVar = {"first": "one", "second": "two"}

    def measure(self, *, only: Sequence[str] = ("first", "second"), **_: Any) -> dict[str, Any]:
        return {"spread": {}, **{part: 1.0 for part in self.PARTS if part in only}}

    def figures(self, report: dict[str, Any]) -> Iterator[Figure]:
        yield from (Figure(part, "s", "row") for part in self.PARTS if part in report)


def test_one_part_of_a_suite_is_measured_by_its_name_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, f"{suites.__package__}.parts", InParts())
    monkeypatch.setitem(sys.modules, f"{suites.__package__}.cut", Cut())
    for only, keys in ((("second",), ["second"]), ((), ["first", "second"])):
        _, rows = suites.run("parts", quick=True, tell=lambda words: None, only=only)
        assert [row.key for row in rows] == keys
    for name, said in (("parts", "there are first: one; second: two"), ("cut", "it runs whole")):
        with pytest.raises(ConfigError, match=f"bench {name} has no part 'third'; {said}"):
            suites.run(name, quick=True, tell=lambda words: None, only=("second", "third")[1:])
    with pytest.raises(ConfigError, match="--only names parts of one suite"):
        main_of = Namespace(suite=None, json=True, out=None, quick=True, only="long")
        commands.run_bench(main_of)


class Stumbling:
    """A suite of three parts, the second of which falls, by a fault of ours or by its machine's."""

    PARTS: ClassVar = {"first": "one", "second": "two", "third": "three"}

    def __init__(self, fault: Exception) -> None:
        self.fault = fault

    def measure(
        self, *, tell: Callable[[str], None], keep: Keep, only: Sequence[str] = (), **_: Any
    ) -> dict[str, Any]:
        report: dict[str, Any] = {"what": "w", "seed": 1, "repeats": {}, "clock": "c"}
        report |= {"spread": {}, "exact": True}

        def second() -> None:
            raise self.fault

        parts = {"first": lambda: report.update(first=1.0), "second": second,
                 "third": lambda: report.update(third=3.0)}  # fmt: skip
        run_parts(parts, only, report, tell, keep)
        return report

    def figures(self, report: dict[str, Any]) -> list[Figure]:
        return [Figure(part, "s", f"row of the {part}", at_least=1) for part in self.PARTS]


@pytest.mark.parametrize("fault", [QuietchoirError("the disk is full"), KeyError("of ours")])
def test_a_part_that_fails_is_named_and_stops_no_other(
    fault: Exception,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(suites, "SUITES", {"stumbling": "in parts"})
    monkeypatch.setitem(sys.modules, f"{suites.__package__}.stumbling", Stumbling(fault))
    file = tmp_path / "parts.json"
    asked = Namespace(suite="stumbling", json=False, out=file, quick=False, only=None)
    assert commands.run_bench(asked) == 1
    written = json.loads(file.read_text("utf-8"))
    assert (written["first"], written["third"], written["parts"]) == (1, 3, [*Stumbling.PARTS])
    assert list(written["failed"]) == ["second"] and fault.args[0] in written["failed"]["second"]
    table, said = capsys.readouterr()
    assert "part second failed" in table and "part second failed, the others go on" in said
    assert "row of the third" in table and "row of the second" not in table
    # what is left out is no failure
    asked.only = "third"
    assert commands.run_bench(asked) == 0
    assert json.loads(file.read_text("utf-8"))["parts"] == ["third"]


def test_a_run_that_is_cut_off_has_told_and_written_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suites, "SUITES", {"cut": "short"})
    monkeypatch.setitem(sys.modules, f"{suites.__package__}.cut", Cut())
    file = tmp_path / "cut.json"
    with pytest.raises(QuietchoirError, match="the plug"):
        commands.run_bench(Namespace(suite="cut", json=True, out=file, quick=False, only=None))
    written = json.loads(file.read_text("utf-8"))
    assert (
        written["unfinished"] is True
        and written["first"] == {"a": 0.12346, "b": 2.0}
        and written["suite"] == "cut"
    )
    out, err = capsys.readouterr()
    assert out == "" and [err.count(words) for words in ("first.a = 0.123 s", "first.b = 2 s")] == [
        1,
        1,
    ]


def test_a_finished_report_is_not_called_unfinished(
    printed: tuple[dict[str, Any], str, Path],
) -> None:
    report, told, _ = printed
    assert "unfinished" not in report and "mask_ms_per_peer = " in told


def test_arms_take_turns() -> None:
    order: list[str] = []
    found = interleaved(
        {"a": Arm(lambda: order.append("a"), 2), "b": Arm(lambda: order.append("b"))}, 3
    )
    assert order == ["a", "b", *(["a", "a", "b"] * 3)]
    assert len(found["a"].seconds) == 3
    assert Sample((2.0, 9.0, 4.0)).over(Sample((1.0, 3.0, 4.0))).seconds == (2.0, 3.0, 1.0)
    assert Sample((2.0, 9.0, 4.0)).median == 4.0 and Sample((2.0, 9.0, 4.0)).spread == (2.0, 9.0)


def test_a_cohort_that_loses_members_still_sums_exactly() -> None:
    setting = Setting(parties=7, length=50, bits=4)
    assert len(setting.dropped) == 1 and setting.dropped == Setting(parties=7, length=50).dropped
    outcome = play(setting)
    assert outcome.exact and outcome.sent_bytes > 50 * 7 / 8
    assert (
        outcome.client_s <= outcome.client_spread_s[1]
        and sum(outcome.server_stages_s.values()) == outcome.server_s
    )


def test_members_in_several_processes_sum_as_exactly() -> None:
    setting = Setting(parties=5, length=40)
    outcome = play(setting, processes=2)
    assert outcome.exact and 0 < outcome.client_s <= outcome.client_spread_s[1]


def test_numbers_are_cut_to_what_the_clock_knows() -> None:
    assert rounded({"a": [0.123456789, 7], "b": {"c": True, "d": "x"}}) == {
        "a": [0.12346, 7],
        "b": {"c": True, "d": "x"},
    }
    assert number(0.12345) == "0.123" and number(12345.6) == "12346"
