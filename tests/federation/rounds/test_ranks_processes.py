"""Members of different ranks as real processes over TLS, and what their owners and the
federation's say on the command line.
"""

from pathlib import Path
from typing import Any

import pytest

from quietchoir import cli
from quietchoir.federation.membership import roster
from quietchoir.federation.spec.policy import Policy
from quietchoir.simulations.cluster import PATIENCE_S, Cluster, ClusterPlan
from quietchoir.simulations.processes import ProcessGroup
from quietchoir.tests.fakes.federation import DIGEST

OTHER = "cd" * 32


def test_a_small_node_trains_its_columns_beside_three_large_ones(tmp_path: Path) -> None:
    """Four processes and a coordinator, masked: who trains what is the signed file's, also over
    the network.
    """
    with ProcessGroup(tmp_path / "logs") as stage:
        cluster = Cluster(
            stage,
            tmp_path / "choir",
            ClusterPlan(nodes=4, size=4096, rounds=1, ranks=(4,), recipe={"evaluate_every": 1}),
        )
        coordinator, nodes = cluster.coordinate(), cluster.join_all()
        assert nodes["node-00"].until("trained", PATIENCE_S)["columns"] == 4
        assert nodes["node-01"].until("trained", PATIENCE_S)["columns"] == 16
        for child in (coordinator, *nodes.values()):
            child.finish(PATIENCE_S)
        told = cluster.read_report()
    rounds = [entry for entry in told["history"] if entry["kind"] == "train"]
    assert [entry["columns"] for entry in rounds] == [{"4": 4, "16": 3}]
    assert told["accuracy"]["after"] > told["accuracy"]["before"]
    sent = list(rounds[0]["bytes_up"].values())
    # under masks a small node sends as much as a large one
    assert max(sent) - min(sent) < 0.01 * max(sent)


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code, and all that was said."""
    code = cli.main([str(word) for word in words])
    output = capsys.readouterr()
    return code, output.out + output.err


@pytest.fixture
def made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """A federation with ann (rank 4) and ben (invited, can do 8), and a way to speak to its
    owner.
    """
    file = tmp_path / "f" / "federation.toml"

    def owner(*words: object) -> str:
        code, text = said(capsys, "federation", *words)
        assert code == 0, text
        return text

    owner(
        "init",
        tmp_path / "f",
        "--name",
        "choir",
        "--model-digest",
        DIGEST,
        "--variant",
        f"choir-q8={OTHER}",
    )
    card = owner("identity", "--home", tmp_path / "ann").strip()
    owner("enroll", file, "--name", "ann", "--public", card, "--rank", 4)
    token = owner("invite", file, "--name", "ben").splitlines()[0]
    answer = owner("accept", token, "--home", tmp_path / "ben", "--rank", 8).splitlines()[0]
    owner("enroll", file, "--answer", answer)
    return file, owner


def ranks(policy: Policy) -> dict[str, int]:
    return {member.name: member.rank for member in policy.members}


def test_ranks_are_signed_shown_changed_and_survive_a_new_key(made: Any, tmp_path: Path) -> None:
    file, owner = made
    assert ranks(roster.load(file)) == {"ann": 4, "ben": 8}
    shown = owner("show", file)
    assert (
        "rank 4" in shown
        and ("1 of rank 8, 1 of rank 4") in shown
        and "or           choir-q8" in shown
    )
    assert "started again" not in owner(
        "change", file, "--member-rank", "ann=6", "--member-rank", "ben=0"
    )
    assert ranks(roster.load(file)) == {"ann": 6, "ben": 0}
    assert "ranks.ann = 6" in owner("log", file)
    card = owner("identity", "--home", tmp_path / "other").strip()
    owner("rotate", file, "--member", "ann", "--public", card)
    assert ranks(roster.load(file)) == {"ann": 6, "ben": 0}


def test_a_rank_that_cannot_be_is_refused_and_the_file_stays(
    made: Any, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    file, _ = made
    before = file.read_bytes()
    for words, sentence in (
        (("--member-rank", "ann=17"), "ann trains rank 17, expected 1 to 16"),
        (("--member-rank", "zoe=4"), "zoe is not in the roster"),
        (("--member-rank", "ann"), "expected NAME=N"),
        (("--min-tokens", "5"), "min_tokens = 0"),
        (("--variant", f"again={DIGEST}"), "stands twice"),
        (("--variant", "again=12"), "64 lower-case"),
    ):
        code, text = said(capsys, "federation", "change", file, *words)
        assert code in (1, 2) and sentence in text, text
    assert file.read_bytes() == before


def test_a_node_whose_owner_allows_less_does_not_join(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = made
    (tmp_path / "config.toml").write_text("[training]\nmax_rank = 2\n", "utf-8")
    words = (
        "--config",
        tmp_path / "config.toml",
        "join",
        file,
        "--home",
        tmp_path / "ann",
        "--rehearse",
        100,
        "--once",
    )
    code, text = said(capsys, *words)
    assert code == 2 and "asks rank 4 of ann, but training.max_rank allows 2" in text


def test_more_files_of_the_model_are_signed_in_and_the_model_itself_stays(
    made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file, owner = made
    owner("change", file, "--variant", f"choir-q4={'ef' * 32}")
    model = roster.load(file).model
    assert model.digest == DIGEST and [one.name for one in model.variants] == [
        "choir-q8",
        "choir-q4",
    ]
    assert said(capsys, "federation", "change", file, "--variant", "no-such-model")[0] != 0
