"""The verbs, as a user types them; what can be mended is a sentence and an exit code."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quietchoir import cli
from quietchoir.core import paths
from quietchoir.core.models.weights import digest_of
from quietchoir.core.prompt import AS_IT_COMES, HOUSEHOLD, PromptFormat
from quietchoir.federation.membership import roster
from quietchoir.federation.spec import flags
from quietchoir.federation.spec.policy import Policy
from quietchoir.tests.fakes.federation import DIGEST
from quietchoir.tests.fakes.models import GgufWriter, make_model

INIT = ("--name", "choir", "--model-digest", DIGEST)


def quietchoir(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code, and all that was said."""
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out + said.err


def founded(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> Policy:
    code, said = quietchoir(capsys, "federation", "init", folder, *INIT, *words)
    assert code == 0, said
    return roster.load(folder / "federation.toml")


def test_a_federation_is_founded_enrolled_and_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    policy = founded(capsys, tmp_path / "f", "--bits", "6", "--rounds", "4", "--lr", "0.015")
    assert (policy.protection.bits, policy.recipe.rounds, policy.recipe.lr) == (6, 4, 0.015)
    file, card = tmp_path / "f" / "federation.toml", tmp_path / "card"
    code, line = quietchoir(capsys, "federation", "identity", "--home", tmp_path / "node")
    card.write_text(line, "ascii")
    assert (
        quietchoir(capsys, "federation", "enroll", file, "--name", "ann", "--public", card)[0] == 0
    )
    code, shown = quietchoir(capsys, "federation", "show", file)
    assert code == 0 and "version 2, every signature valid" in shown and "ann" in shown


def test_a_rehearsal_is_shown_as_one_and_asks_for_no_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--name", "trial", "--rehearse")
    assert quietchoir(capsys, "federation", "init", tmp_path / "f", *words)[0] == 0
    code, shown = quietchoir(capsys, "federation", "show", tmp_path / "f" / "federation.toml")
    assert code == 0 and "a rehearsal has no model" in shown and "pull" not in shown


def test_a_federation_over_more_layers_than_its_model_has_is_not_founded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "home"))
    model = tmp_path / "small.gguf"
    GgufWriter(make_model("smollm2"), model).write()
    words = ("federation", "init", tmp_path / "f", "--name", "choir")
    code, said = quietchoir(capsys, *words, "--model", model, "--upper-layers", "9")
    assert code and "upper_layers is 9, the model has 8 layers" in said
    assert not (tmp_path / "f").exists()
    assert quietchoir(capsys, *words, "--model", model, "--upper-layers", "8")[0] == 0
    # founded where the model is not, and shown where it is
    named = ("--model", model, "--model-digest", digest_of(model), "--upper-layers", "9")
    assert quietchoir(capsys, *words[:2], tmp_path / "g", *words[3:], *named)[0] == 0
    code, shown = quietchoir(capsys, "federation", "show", tmp_path / "g" / "federation.toml")
    assert code == 0 and "nobody can take part: upper_layers is 9" in shown and "pull" not in shown


def test_an_owner_invites_rotates_revokes_and_the_log_tells(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    founded(capsys, tmp_path / "f", "--privacy-mechanism", "skellam", "--privacy-epsilon", "4")
    file, node = tmp_path / "f" / "federation.toml", tmp_path / "node"

    def federation(*words: object) -> str:
        code, said = quietchoir(capsys, "federation", *words)
        assert code == 0, said
        return said

    token = federation("invite", file, "--name", "zoe", "--days", "2").splitlines()[0]
    answer = federation("accept", token, "--home", node, "--file", file).splitlines()[0]
    assert "zoe is in" in federation("enroll", file, "--answer", answer, "--days", "365")
    assert (
        "open invitation" in quietchoir(capsys, "federation", "enroll", file, "--answer", answer)[1]
    )
    card = federation("identity", "--home", tmp_path / "other").strip()
    assert "zoe has a new key" in federation("rotate", file, "--member", "zoe", "--public", card)
    for what in ("--owner", "--coordinator", "--certificate"):
        assert "new" in federation("rotate", file, what)
    assert "zoe is out" in federation("revoke", file, "--name", "zoe", "--reason", "lost laptop")
    assert "started again" in federation("change", file, "--rounds", "4", "--privacy-epsilon", "2")
    federation("change", file, "--days", "30")
    log = federation("log", file).splitlines()
    kinds = [
        "found",
        "enroll",
        "rotate",
        "rotate",
        "rotate",
        "rotate",
        "revoke",
        "change",
        "change",
    ]
    assert [line.split()[5] for line in log[:-1]] == kinds
    assert "zoe, invited" in log[1] and "lost laptop" in log[6] and "privacy.epsilon = 2" in log[7]
    shown = federation("show", file)
    assert (
        "founder" in shown
        and "epsilon at most 2" in shown
        and ("bytes of a round: pull the model") in shown
    )
    for words, sentence in (
        (("enroll", file, "--public", card), "needs --name"),
        (("rotate", file, "--member", "zoe"), "needs --public"),
        (("change", file), "nothing to change"),
    ):
        code, said = quietchoir(capsys, "federation", *words)
        assert code == 2 and sentence in said


def test_a_sealed_federation_is_founded_like_any_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _ = quietchoir(
        capsys, "federation", "init", tmp_path / "f", *INIT, "--protection", "sealed"
    )
    assert code == 0
    assert (
        "sealed, 8 bits"
        in quietchoir(capsys, "federation", "show", tmp_path / "f" / "federation.toml")[1]
    )


@pytest.mark.parametrize(
    "words, code, sentence",
    [
        (["federation", "show", "nowhere.toml"], 2, "no such file"),
        (["join", "nowhere.toml"], 2, "no such file"),
        (
            ["federation", "init", "f", "--name", "f", "--address", "nowhere", "--model", "none"],
            2,
            "nowhere",
        ),
        (
            ["federation", "init", "f", *INIT, "--min-cohort", "5", "--cohort", "4"],
            2,
            "recipe.cohort = 4 must be 0 (everybody who is there) or at least 5",
        ),
        (["adapter", "show", "abc", "--home", "."], 1, "join a federation first"),
        (["adapter", "rollback", "--home", "."], 1, "nothing to roll back"),
    ],
)
def test_what_can_be_mended_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, said = quietchoir(capsys, *words)
    assert (found, said.count("\n")) == (code, 1)
    assert sentence in said
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_is_not_enrolled_is_told_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    founded(capsys, tmp_path / "f")
    join = (
        "join",
        tmp_path / "f" / "federation.toml",
        "--home",
        tmp_path / "node",
        "--rehearse",
        "5",
    )
    code, said = quietchoir(capsys, *join)
    assert code == 1 and "federation identity" in said


def test_more_bytes_than_consented_to_are_refused_before_anything_is_dialled(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    founded(capsys, tmp_path / "f")
    file, node = tmp_path / "f" / "federation.toml", tmp_path / "node"
    card = quietchoir(capsys, "federation", "identity", "--home", node)[1].strip()
    quietchoir(capsys, "federation", "enroll", file, "--name", "ann", "--public", card)
    for line, sentence in (
        ("max_upload_bytes = 1000", "bytes up in a round"),
        ("max_epsilon = 1", "no differential privacy"),
    ):
        (tmp_path / "config.toml").write_text(f"[consent]\n{line}\n")
        words = (
            "--config",
            tmp_path / "config.toml",
            "join",
            file,
            "--home",
            node,
            "--rehearse",
            "5000",
        )
        code, said = quietchoir(capsys, *words)
        assert code == 2 and sentence in said and f"consent.{line.split()[0]}" in said


def test_a_proxy_that_is_none_is_refused_before_anything_is_dialled(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    founded(capsys, tmp_path / "f")
    words = (
        "join",
        tmp_path / "f" / "federation.toml",
        "--home",
        tmp_path / "node",
        "--rehearse",
        "5",
    )
    code, said = quietchoir(capsys, *words, "--proxy", "socks5://127.0.0.1:1080")
    assert code == 2 and "expected http://HOST:PORT" in said and "Traceback" not in said
    assert not (tmp_path / "node").exists()


def test_too_few_members_are_told_apart_from_silence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    founded(capsys, tmp_path / "f")
    file = tmp_path / "f" / "federation.toml"
    code, said = quietchoir(
        capsys,
        "coordinate",
        file,
        "--state",
        tmp_path / "s",
        "--home",
        tmp_path / "h",
        "--rehearse",
        "5",
    )
    assert code == 2 and "enroll more" in said
    assert not (tmp_path / "s").exists()


def test_ctrl_c_ends_a_waiting_node_with_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    founded(capsys, tmp_path / "f", "--address", "127.0.0.1:9")
    file, node = tmp_path / "f" / "federation.toml", tmp_path / "node"
    card = quietchoir(capsys, "federation", "identity", "--home", node)[1].strip()
    quietchoir(capsys, "federation", "enroll", file, "--name", "ann", "--public", card)
    words = ["join", str(file), "--home", str(node), "--rehearse", "5", "--json-lines"]
    with subprocess.Popen(
        [sys.executable, "-m", "quietchoir.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "disconnected" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said and "Traceback" not in said


def test_the_file_says_how_the_adapter_is_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert founded(capsys, tmp_path / "f").prompt == HOUSEHOLD
    words = ("--prompt-system", "Be brief.", "--prompt-answers", "any", "--prompt-turns", "all")
    policy = founded(capsys, tmp_path / "g", *words)
    assert policy.prompt == PromptFormat(system="Be brief.")
    file = tmp_path / "g" / "federation.toml"
    assert ("texts and calls to whole conversations, after 'Be brief.'") in quietchoir(
        capsys, "federation", "show", file
    )[1]
    assert quietchoir(capsys, "federation", "change", file, "--prompt-system", "")[0] == 0
    assert roster.load(file).prompt == AS_IT_COMES
    alone = founded(capsys, tmp_path / "h", "--prompt-answers", "any")  # no sentence for tool calls
    assert (alone.prompt.system, alone.prompt.answers) == ("", "any")
    calls = founded(capsys, tmp_path / "i")
    assert calls.prompt.system == HOUSEHOLD.system
    kept = tmp_path / "i" / "federation.toml"
    assert quietchoir(capsys, "federation", "change", kept, "--prompt-answers", "text")[0] == 0
    assert roster.load(kept).prompt.system == ""
    before = file.read_bytes()
    code, said = quietchoir(capsys, "federation", "change", file, "--prompt-system", "a\u202eb")
    assert code == 2 and "visible characters" in said and file.read_bytes() == before


def test_every_flag_of_init_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert {table: set(fields) for table, fields in flags.HELP.items()} == {
        table: {field for one, field, _ in flags.fields() if one == table} for table in flags.TABLES
    }
    for verb in ("init", "change"):
        with pytest.raises(SystemExit):
            cli.main(["federation", verb, "--help"])
        shown = capsys.readouterr().out
        assert ("(default: 0.7)" in shown) == (verb == "init") and "is never opened" in shown
        assert ("(default: as it is)" in " ".join(shown.split())) == (verb == "change")


def test_a_federation_for_rehearsals_needs_no_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, keys = tmp_path / "f" / "federation.toml", tmp_path / "node"
    words = ("init", tmp_path / "f", "--name", "choir", "--rehearse")
    code, said = quietchoir(capsys, "federation", *words)
    assert code == 0, said
    card = quietchoir(capsys, "federation", "identity", "--home", keys)[1].strip()
    quietchoir(capsys, "federation", "enroll", file, "--name", "ann", "--public", card)
    rows = [{"role": "system", "content": HOUSEHOLD.system}, {"role": "user", "content": "hi"}]
    rows.append({"role": "assistant", "content": '{"name": "a", "arguments": {}}'})
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(json.dumps({"messages": rows}) + "\n")
    code, said = quietchoir(capsys, "join", file, "--home", keys, "--data", data)
    assert code == 2 and "add --rehearse N" in said


def test_what_is_wrong_in_a_table_is_said_with_its_value(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words, sentence in (
        (("--threshold", "5"), "threshold = 5 must lie between 1 and min_cohort = 3"),
        (("--rounds", "0"), "rounds = 0 must be at least 1"),
        (("--lr", "0"), "lr = 0.0 must be above 0"),
        (("--evaluate-every", "-1"), "evaluate_every = -1 must be at least 0"),
    ):
        code, said = quietchoir(capsys, "federation", "init", tmp_path / "f", *INIT, *words)
        assert code == 2 and sentence in said, said
    assert not (tmp_path / "f").exists()
