"""What `join` says before it works, and while it prepares."""

import dataclasses
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quietchoir import cli
from quietchoir.core.assistant.context import Message
from quietchoir.core.config import Config
from quietchoir.core.errors import DataError, FederationError
from quietchoir.core.history.store import HistoryStore
from quietchoir.core.training.examples import write_jsonl
from quietchoir.federation import client_node
from quietchoir.federation.client_node import (
    ClientOptions,
    LentHistory,
    destination_of,
    ending,
    examples_in,
    join,
    make_learner,
)
from quietchoir.federation.events import (
    FederationEvent,
    PreparingEvent,
    RestingEvent,
    StepEvent,
    WithheldEvent,
)
from quietchoir.federation.membership import founding, ownership, roster
from quietchoir.federation.membership.keys import load_or_create
from quietchoir.federation.monitor import event_printer
from quietchoir.federation.monitor.event_printer import printer
from quietchoir.federation.spec.policy import AdapterTable, ModelTable, ProtectionTable, Recipe
from quietchoir.tests.fakes.events import tables
from quietchoir.tests.fakes.federation import DIGEST, house
from quietchoir.tests.fakes.training import CHATTER, chatter, conversation, tiny_pair


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A federation whose one member lives in `tmp_path / "home"`; its model is nowhere."""
    asked = founding.Founding(
        name="choir",
        address="127.0.0.1:9",
        model=ModelTable(name="own", digest=DIGEST),
        adapter=AdapterTable(),
        protection=ProtectionTable(),
        recipe=Recipe(),
        prompt=CHATTER,
    )
    founding.create_federation(tmp_path / "f", asked)
    card = load_or_create(tmp_path / "home").card
    ownership.enroll(
        tmp_path / "f" / founding.FILE, tmp_path / "f" / founding.OWNER_KEY, "ann", card
    )
    return tmp_path / "f" / founding.FILE


def bad_line(folder: Path) -> Path:
    (folder / "train.jsonl").write_text("{}\n")
    return folder


def bad_test(folder: Path) -> Path:
    write_jsonl(folder / "train.jsonl", chatter(3))
    (folder / "test.jsonl").write_text("{\n")
    return folder


def parties(folder: Path) -> Path:
    for name in ("household-0", "household-1"):
        (folder / name).mkdir()
        write_jsonl(folder / name / "train.jsonl", chatter(3))
    return folder


def otherwise(folder: Path) -> Path:
    write_jsonl(
        folder / "train.jsonl", [conversation("a", "b"), conversation("c", "d", system="Do not.")]
    )
    return folder


def a_file(folder: Path) -> Path:
    write_jsonl(folder / "train.jsonl", chatter(3))
    return folder / "train.jsonl"


def empty(folder: Path) -> Path:
    (folder / "train.jsonl").write_text("\n")
    return folder


WRONG: dict[str, tuple[Callable[[Path], Path | None], str]] = {
    "none": (lambda folder: None, "name a folder with --data"),
    "no folder": (
        lambda folder: folder / "nowhere",
        "no such folder; expected a folder with train.jsonl",
    ),
    "a file": (a_file, "a file, expected a folder with train.jsonl"),
    "an empty folder": (lambda folder: folder, "no train.jsonl in it; make it with"),
    "all parties'": (parties, "name one of the folders in it: household-0, household-1"),
    "a bad line": (bad_line, "1 bad line, nothing was read. line 1"),
    "bad held-out ones": (bad_test, "test.jsonl: 1 bad line"),
    "ones that show the model something else": (
        otherwise,
        "of 2 examples, 1 do not begin with the system message 'Do it.'",
    ),
    "no lines": (empty, "no examples; each line must be"),
}


def test_a_folder_with_nothing_held_out_is_one_to_train_on(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", chatter(1))
    (tmp_path / "test.jsonl").write_bytes(b"")  # as `data build` leaves it for one example
    found = client_node.examples_in(tmp_path, CHATTER)
    assert (len(found.train), found.test) == (1, [])


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_or_missing_data_is_said_before_the_model_is_looked_for(
    kind: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, said = WRONG[kind]
    (tmp_path / "data").mkdir()
    data, events = make(tmp_path / "data"), list[dict[str, Any]]()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(client_node, "resident", never)
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    with pytest.raises(DataError) as caught:
        join(
            ClientOptions(file=file, data=data, home=tmp_path / "home"),
            Config(),
            tables(events.append),
        )
    assert said in str(caught.value) and events == []
    assert {
        path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()
    } == before


def test_a_model_that_is_not_here_is_said_with_how_to_name_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    write_jsonl(tmp_path / "train.jsonl", chatter(3))
    code = cli.main(["join", str(file), "--data", str(tmp_path), "--home", str(tmp_path / "home")])
    said = capsys.readouterr().err
    assert code == 1 and "3 examples to train on, 0 held out; loading the model own" in said
    assert "the federation's model own, sha256 abababab" in said and "with --model PATH" in said
    code = cli.main(
        [
            "join",
            str(file),
            "--data",
            str(tmp_path),
            "--home",
            str(tmp_path / "home"),
            "--model",
            str(file),
        ]
    )
    assert code == 1 and "the federation agreed on abababab" in capsys.readouterr().err


def test_progress_is_told_while_examples_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights: Any = tiny_pair()[0]
    policy = dataclasses.replace(
        house().policy, adapter=AdapterTable(rank=2, alpha=4.0, upper_layers=1)
    )
    write_jsonl(tmp_path / "train.jsonl", chatter(5))
    write_jsonl(tmp_path / "test.jsonl", chatter(2, seed=9))
    events: list[dict[str, Any]] = []
    options = ClientOptions(file=tmp_path, data=tmp_path, home=tmp_path)
    make_learner(
        options,
        Config(),
        policy,
        weights,
        "ann",
        tables(events.append),
        examples=examples_in(tmp_path, CHATTER),
    )
    told = [event for event in events if event["event"] == "preparing"]
    layers = weights.architecture.num_layers - 1
    # from the first moment on
    assert [event["layer"] for event in told] == 2 * list(range(layers + 1))
    assert [event["examples"] for event in told] == [5] * (layers + 1) + [2] * (layers + 1)
    say, now = printer(False), [100.0]
    capsys.readouterr()  # what training logs
    monkeypatch.setattr(event_printer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for layer in range(41):  # a fast machine: no flood
        say(PreparingEvent(what="training", examples=5, layer=layer, layers=40))
        now[0] += 0.5
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == ("preparing 5 training examples, once: layer 0 of 40") and lines[
        -1
    ].endswith("layer 40 of 40")
    assert len(lines) == 2 + 6


def test_a_node_whose_history_lends_nothing_waits_loads_nothing_and_dials_nobody(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[FederationEvent] = []
    leave = threading.Event()

    def tell(event: FederationEvent) -> None:
        told.append(event)
        leave.set()

    def never(*_: object, **__: object) -> Any:
        raise AssertionError("a node that lends nothing went on")

    monkeypatch.setattr(client_node, "resident", never)
    monkeypatch.setattr(client_node.ClientNode, "take_part", never)
    with closing(HistoryStore(tmp_path / "home")) as store:
        store.keep("talk", [Message("user", "a"), Message("assistant", "b")], source="page")
        store.approve("talk")
    options = ClientOptions(file=file, data=None, home=tmp_path / "home", patient=True)
    join(options, Config(), tell, leave)
    assert [event.table() for event in told] == [
        {"event": "withheld", "federation": "choir", "withheld": 1}
    ]
    with pytest.raises(DataError, match=r"nothing may train choir \(1 examples are withheld\)"):
        join(dataclasses.replace(options, patient=False), Config(), told.append)


def test_a_waiting_node_goes_on_as_soon_as_its_owner_consents(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = roster.load(file)

    def consent(event: FederationEvent) -> None:
        if isinstance(event, WithheldEvent):
            with closing(HistoryStore(tmp_path / "home")) as store:
                store.keep("talk", [Message("user", "a"), Message("assistant", "b")], source="page")
                store.approve("talk")
                store.consent("conversation", "talk", destination_of(policy))

    monkeypatch.setattr(client_node, "CONSENT_POLL_S", 0.01)
    lent = LentHistory(tmp_path / "home", policy, ())
    assert lent.wait(True, threading.Event(), consent)
    [example] = lent.current().train
    assert [one["content"] for one in example.messages] == [CHATTER.system, "a", "b"]


def test_a_node_that_may_not_train_says_why_loads_nothing_and_dials_nobody(
    file: Path, tmp_path: Path
) -> None:
    told, leave = list[FederationEvent](), threading.Event()

    def tell(event: FederationEvent) -> None:
        told.append(event)
        leave.set()

    # with no examples and no model there: whatever came after this would be an error
    options = ClientOptions(file=file, data=tmp_path / "nowhere", home=tmp_path / "home")
    join(options, Config(), tell, leave, resting=lambda: "it is noon")
    assert told == [RestingEvent(reason="it is noon")]
    with pytest.raises(DataError):
        join(options, Config(), tell, leave, resting=str)


def test_training_ends_at_the_step_after_which_it_may_not_go_on() -> None:
    reasons, told = iter(["", "on battery"]), list[FederationEvent]()
    tell = ending(told.append, lambda: next(reasons))
    step = StepEvent(step=1, steps=9, loss=1.0)
    tell(PreparingEvent(what="train", examples=1, layer=1, layers=1))  # nobody is asked here
    tell(step)
    with pytest.raises(FederationError, match="given up: on battery"):
        tell(step)
    assert told[1:] == [step, step]
