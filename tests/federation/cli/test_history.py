"""What was said, what it may train and what is forgotten, as an owner types it."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from quietchoir import cli, documents
from quietchoir.core import paths
from quietchoir.core.assistant.context import Message
from quietchoir.core.engine.conversations import FOLDER
from quietchoir.core.history.remains import forgotten_at
from quietchoir.core.history.store import HistoryStore
from quietchoir.core.models import weights as model_files
from quietchoir.core.models.hub import catalog
from quietchoir.core.models.weights import Weights
from quietchoir.federation.client_node import destination_of
from quietchoir.federation.membership import roster
from quietchoir.federation.personalization.keeping import personalize
from quietchoir.federation.personalization.settings import PersonalSettings
from quietchoir.tests.fakes.federation import DIGEST
from quietchoir.tests.fakes.personal import CryptoWorker, Judged, as_workshop, tiny_weights

INIT = ("--name", "choir", "--model-digest", DIGEST, "--prompt-system", "", "--prompt-answers",
        "any", "--prompt-turns", "all")  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with twelve examples of one conversation each, and one that nobody may have."""
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "home"))
    with closing(HistoryStore(tmp_path / "home")) as store:
        for place in range(12):
            say(store, f"talk-{place}", f"what is {place} plus one?", str(place + 1))
        say(store, "private", "where is the key of Mary Smith?", "under the mat")
    return tmp_path / "home"


def say(store: HistoryStore, name: str, request: str, answer: str) -> None:
    store.keep(name, [Message("user", request), Message("assistant", answer)], source="page")
    store.approve(name)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, what was printed, what was said beside it."""
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_an_owner_gives_conversations_to_a_federation_and_sees_the_bytes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "federation", "init", tmp_path / "f", *INIT)[0] == 0
    file = tmp_path / "f" / "federation.toml"
    assert run(capsys, "data", "show", "--for", file)[1] == ""
    for name in (*(f"talk-{place}" for place in range(12)), "private"):
        code, out, _ = run(capsys, "data", "consent", "conversation", name, file)
        assert code == 0 and destination_of(roster.load(file)) in out
    code, shown, told = run(capsys, "data", "show", "--for", file)
    requests = [json.loads(line)["messages"][-2]["content"] for line in shown.splitlines()]
    assert 0 < len(requests) < 13 and "Mary" not in shown
    assert f"{len(requests)} examples train, {13 - len(requests)} judge" in told
    run(capsys, "data", "consent", "conversation", "private", "never")
    assert "1 not consented" in run(capsys, "data", "show", "--for", file)[2]
    code, out, _ = run(capsys, "data", "conversations")
    assert code == 0 and "talk-3" in out and "never" in out
    assert "what is 3" in run(capsys, "data", "show")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("consent", "conversation", "nowhere", "personal"), "no conversation 'nowhere'"),
        (("consent", "conversation", "private", "everybody"), "the file of a federation"),
        (("forget",), "name examples, or --conversation NAME, or --matching TEXT"),
        (("forget", "--matching", "no such words"), "no such example is here"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_changes_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    code, _, told = run(capsys, "data", *words)
    assert code != 0 and said in told and len(told.splitlines()) == 1
    with closing(HistoryStore(home)) as store:
        assert len(store.examples()) == 13 and store.consents() == []


@pytest.mark.parametrize("columns", [80, 0])
def test_an_id_as_the_tables_show_it_is_taken_by_the_next_command(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
) -> None:
    """On a terminal of 80 columns, and piped."""
    if columns:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setenv("COLUMNS", str(columns))
    said = "A long question that no column of a narrow terminal has any room for, of the meal?"
    with closing(HistoryStore(home)) as store:
        say(store, "chat-844b152f00112233", said, "under the mat " * 9)
        [kept] = store.examples("chat-844b152f00112233")
    assert run(capsys, "federation", "init", tmp_path / "f", *INIT)[0] == 0
    file = tmp_path / "f" / "federation.toml"
    for given in ("chat-844b152f00112233", "chat-844b…", "chat-844b"):
        assert run(capsys, "data", "consent", "conversation", given, file)[0] == 0
    for verb in ("show", "conversations"):
        shown = run(capsys, "data", verb)[1]
        assert "chat-844b152f00112233" in shown
        assert destination_of(roster.load(file))[:19] in shown or columns
        assert max(map(len, shown.splitlines())) <= (columns or 1000)
        assert columns or "…" not in shown
    assert kept.id in run(capsys, "data", "show")[1]
    assert run(capsys, "data", "forget", f"{kept.id[:9]}…")[0] == 0
    assert kept.id not in run(capsys, "data", "show")[1]


def test_a_beginning_of_two_ids_or_of_another_name_is_not_taken(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(HistoryStore(home)) as store:
        for end in ("0", "1"):
            say(store, f"chat-0123456789abcde{end}", f"what is {end}?", "a digit")
        store.forget((), "talk-1")
    code, _, told = run(capsys, "data", "consent", "conversation", "chat-01", "personal")
    assert code != 0 and "2 conversations begin with chat-01, expected one" in told
    assert run(capsys, "data", "forget", "--conversation", "chat-01")[0] != 0
    assert run(capsys, "data", "forget", "--conversation", "talk-1")[0] != 0  # nor talk-10
    with closing(HistoryStore(home)) as store:
        assert len(store.examples()) == 14 and store.consents() == []


def test_what_is_forgotten_is_gone_with_the_states_that_were_computed_of_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = paths.private_folder(home / FOLDER) / "0000-aa.conversation"
    states.write_bytes(b"keys and values")
    with closing(documents.open_memory()) as memory:
        memory.propose("hides a key", conversation="private", turn=1, said="key of Mary Smith?")
        memory.propose("has a key", conversation="private", turn=1, said="of Mary", kept=True)
        memory.propose("adds up", conversation="talk-1", turn=1, said="what is 1 plus one?")
    before = forgotten_at(home)
    code, out, _ = run(capsys, "data", "forget", "--conversation", "private")
    assert code == 0 and out.startswith("1 example forgotten")
    assert not states.exists()
    assert forgotten_at(home) > before  # a node that runs saves none of its own
    with closing(documents.open_memory()) as memory:
        kept = [(fact.text, fact.said) for fact in memory.facts()]
    assert kept == [("has a key", ""), ("adds up", "what is 1 plus one?")]
    assert b"Mary" not in b"".join(path.read_bytes() for path in home.glob("memory*"))
    assert b"under the mat" not in b"".join(path.read_bytes() for path in home.glob("history*"))


@pytest.fixture
def crypto_worker(home: Path, monkeypatch: pytest.MonkeyPatch) -> CryptoWorker:
    """The same node, with a tiny model."""
    made = CryptoWorker(home, tiny_weights())
    tiny: Weights = made.weights
    monkeypatch.setattr(catalog, "find", lambda name: home)
    monkeypatch.setattr(model_files, "load", lambda path: tiny)
    return made


def personal(crypto_worker: CryptoWorker, store: HistoryStore) -> tuple[str, str]:
    """A shared adapter, and this owner's on top, which learned every example."""
    shared = crypto_worker.deliver(1)
    outcome = personalize(
        crypto_worker.owner, shared, as_workshop(Judged(6)), PersonalSettings(epochs=1)
    )
    for adapter in (shared, outcome.adapter):
        store.note_trained(adapter, [one.id for one in store.examples()])
    return shared, outcome.adapter


def test_a_personal_adapter_that_learned_it_is_deleted_and_made_anew(
    crypto_worker: CryptoWorker, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(HistoryStore(home)) as store:
        shared, old = personal(crypto_worker, store)
        for place in range(12):
            store.consent("conversation", f"talk-{place}", "personal")
    code, out, err = run(capsys, "data", "forget", "--matching", "mary smith", "--home", home)
    assert code == 0, err
    assert f"adapter {shared[:12]}" in out and "the federation's next rounds do without" in out
    assert f"personal adapter {old[:12]} is deleted" in out
    assert old not in crypto_worker.registry.list() and shared in crypto_worker.registry.list()
    made = [card.adapter for card in crypto_worker.registry.personal()]
    assert crypto_worker.registry.active() == (made[0] if made else shared)
    with closing(HistoryStore(home)) as store:
        assert set(store.marks()) == {shared}
    listed = run(capsys, "adapter", "list", "--home", home)[1]
    assert "trained on 1 that were forgotten" in listed


def test_with_too_little_left_the_shared_adapter_answers_again(
    crypto_worker: CryptoWorker, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(HistoryStore(home)) as store:
        shared, _ = personal(crypto_worker, store)
    out = run(capsys, "data", "forget", "--matching", "mary smith", "--home", home)[1]
    assert "too little is left to train it anew" in out
    assert crypto_worker.registry.list() == [shared] and crypto_worker.registry.active() == shared
