"""Members away, as real processes: the coordinator waits, and starts again on a finished run just
to hand the adapter out.
"""

from pathlib import Path

from quietchoir.simulations.cluster import PATIENCE_S, Cluster, ClusterPlan
from quietchoir.simulations.processes import ProcessGroup

PLAN = ClusterPlan(
    nodes=4,
    rounds=4,
    size=2_000,
    recipe={"attempts": 1, "stage_timeout_s": 20.0, "work_timeout_s": 20.0},
)


def test_a_run_outlives_its_members_and_hands_its_adapter_to_the_last_of_them(
    tmp_path: Path,
) -> None:
    absent, *others = PLAN.names
    with ProcessGroup(tmp_path / "logs") as stage:
        cluster = Cluster(stage, tmp_path, PLAN)
        run = cluster.coordinate("coordinator", "--grace", "0")
        run.until("starting", PATIENCE_S)  # before anything is loaded
        run.until("open", PATIENCE_S)
        nodes = {name: cluster.join(name) for name in others}
        run.until("round", PATIENCE_S, round=1)
        for node in nodes.values():
            node.kill()
        # and it does: `attempts = 1`, and it goes on once they are back
        run.until("waiting", PATIENCE_S, present=0)
        nodes = {name: cluster.join(name) for name in others}
        run.finish(PATIENCE_S)
        report = cluster.read_report()
        assert (
            report["rounds"] == PLAN.rounds
            and report["delivered"] == others
            and report["members"] == list(PLAN.names)
        )
        for node in nodes.values():
            node.finish(PATIENCE_S)

        late = cluster.join(absent)
        waits = late.until("disconnected", PATIENCE_S)
        assert "nobody listens there" in waits["reason"]
        assert ("hands out when it is started again") in waits["waits_for"] and "--once" in waits[
            "waits_for"
        ]
        again = cluster.coordinate("again")
        staying = again.until("staying", PATIENCE_S)
        assert staying["missing"] == [absent] and 3590 < staying["seconds"] <= 3600
        late.until("adopted", PATIENCE_S)
        again.finish(PATIENCE_S)
        late.finish(PATIENCE_S)
        assert (
            cluster.read_report()["delivered"] == list(PLAN.names)
            and cluster.read_report()["history"] == report["history"]
        )

        # all have it: there is nothing to stay for
        cluster.coordinate("once more").finish(PATIENCE_S)
