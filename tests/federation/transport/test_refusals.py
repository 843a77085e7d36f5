"""A member that refuses for a reason of its own is away, and the run waits for it: as real
processes, and by the clock.
"""

import logging
import shutil
from pathlib import Path

import pytest

from quietchoir.federation.membership import founding, ownership
from quietchoir.federation.transport.refusals import AGAIN_S, LONGEST_S, REDIALLED_S, Refusals
from quietchoir.simulations.cluster import PATIENCE_S, Cluster, ClusterPlan
from quietchoir.simulations.processes import ProcessGroup

# `attempts = 1`: a refusal that were counted would end the run
PLAN = ClusterPlan(
    nodes=3,
    rounds=12,
    size=2_000,
    recipe={"attempts": 1, "stage_timeout_s": 20.0, "work_timeout_s": 20.0},
)


def test_a_member_with_an_older_file_is_waited_for_until_it_has_the_newest(tmp_path: Path) -> None:
    *others, stale = PLAN.names
    with ProcessGroup(tmp_path / "logs") as stage:
        cluster = Cluster(stage, tmp_path, PLAN)
        old = tmp_path / "old.toml"
        shutil.copy(cluster.file, old)
        key = tmp_path / founding.OWNER_KEY
        ownership.change(cluster.file, key, {"recipe": {"rounds": PLAN.rounds + 1}})
        nodes = {name: cluster.join(name) for name in others}
        late = cluster.join(stale, file=old)
        run = cluster.coordinate("coordinator", "--grace", "0")
        refusal = run.until("refusal", PATIENCE_S)
        assert (refusal["party"], refusal["kind"]) == (stale, "RosterError")
        assert late.process.wait(PATIENCE_S) == 1  # it says so itself
        assert run.process.poll() is None
        nodes[stale] = cluster.join(stale)
        run.finish(PATIENCE_S)
        for node in nodes.values():
            node.finish(PATIENCE_S)
        report, said = cluster.read_report(), run.log.read_text("utf-8")
    assert report["rounds"] == PLAN.rounds + 1 and report["delivered"] == list(PLAN.names)
    assert said.count("it does not go on under version") == 1


def test_members_of_another_run_are_waited_for_and_go_on_with_theirs(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path / "logs") as stage:
        cluster = Cluster(stage, tmp_path, PLAN)
        first = cluster.coordinate("first")
        nodes = cluster.join_all()
        first.until("round", PATIENCE_S, round=1)
        first.kill()
        rival = cluster.coordinate("rival", state="fresh")
        rival.until("refusal", PATIENCE_S, kind="RivalError")
        rival.until("waiting", PATIENCE_S, present=0)
        assert rival.process.poll() is None
        rival.kill()
        said = rival.log.read_text("utf-8")
        assert "takes this run up after 120 minutes" in said
        assert sum(event["event"] == "aborted" for event in rival.events) == 1
        again = cluster.coordinate("again")
        again.finish(PATIENCE_S)
        for node in nodes.values():
            node.finish(PATIENCE_S)
        assert cluster.read_report()["rounds"] == PLAN.rounds


class Played:
    """Refusals of ann, on a clock that the test sets."""

    def __init__(self) -> None:
        self.time, self.dialled = 0.0, -1.0
        self.refusals = Refusals(lambda: self.time)

    def is_away(self) -> bool:
        return self.refusals.away(lambda name: self.dialled) == {"ann"}

    def refuse(self, kind: str) -> None:
        self.refusals.note("ann", kind, 7)
        self.refusals.settle()


def test_who_refuses_again_and_again_is_asked_less_and_less_but_is_never_away_for_good() -> None:
    played, pauses = Played(), list[float]()
    for _ in range(2000):  # days; a member that dials in at once each time, and one that never does
        played.refuse("RosterError")
        played.dialled, began = played.time + 0.5, played.time
        assert played.is_away()
        while played.is_away():
            played.time += 1.0
        pauses.append(played.time - began)
    assert pauses[:3] == [REDIALLED_S, 2 * REDIALLED_S, 4 * REDIALLED_S]
    assert pauses == sorted(pauses) and pauses[-1] == LONGEST_S
    still = Played()
    still.refuse("RivalError")
    still.time = AGAIN_S - 1
    assert still.is_away()
    still.time = AGAIN_S
    assert not still.is_away()


def test_who_dials_in_anew_while_others_work_is_away_until_these_are_done() -> None:
    played = Played()
    played.refusals.note("ann", "FileVersionError", 7)
    played.dialled, played.time = 1.0, 500.0
    assert played.is_away()
    played.refusals.settle()
    assert played.is_away()  # when it is asked why too few were ready
    played.time += REDIALLED_S
    assert not played.is_away()


def test_refusals_that_blame_the_coordinator_keep_nobody_away_and_reasons_are_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    played = Played()
    with caplog.at_level(logging.WARNING):
        for kind in ("StaleError", "MessageError", "DataError", "", "x" * 9999):
            played.refuse(kind)
            assert not played.is_away()
        caplog.clear()
        for _ in range(3):
            played.refuse("RosterError")
    assert len(caplog.records) == 1 and "version 7" in caplog.text
    played.refusals.forget()
    assert not played.is_away()
