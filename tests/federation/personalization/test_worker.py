"""Personal training in the background: it rests for others, survives what goes wrong, and harms
nobody.
"""

import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quietchoir.core.assistant.context import Message
from quietchoir.core.errors import DataError, FederationError, QuietchoirError
from quietchoir.core.history.store import HistoryStore
from quietchoir.core.models.lora.layout import AdapterShape
from quietchoir.core.training.evaluate import Score
from quietchoir.federation.client_node import begin_personal
from quietchoir.federation.events import FederationEvent, StaysEvent
from quietchoir.federation.personalization.keeping import PersonalOutcome
from quietchoir.federation.personalization.settings import PersonalSettings
from quietchoir.federation.personalization.trainer import PersonalVerdict
from quietchoir.federation.personalization.worker import (
    NAME,
    Pending,
    PersonalizationWorker,
    one_at_a_time,
)
from quietchoir.federation.store.member import open_member
from quietchoir.federation.training.consented import ConsentedLearner
from quietchoir.federation.training.learner import TrainerLearner
from quietchoir.tests.fakes.events import tables
from quietchoir.tests.fakes.personal import CryptoWorker, open_trainer, tiny_weights

PATIENCE_S = 60.0
ONE, TWO = "aa" * 32, "bb" * 32


class Scripted(PersonalizationWorker):
    """Its work is what the test says: by default, done at once."""

    script: Callable[["Scripted", str], None] = staticmethod(lambda companion, name: None)

    def work(self, name: str) -> PersonalOutcome:
        self.script(self, name)
        return PersonalOutcome(
            name, "cc" * 32, "", PersonalVerdict(Score(1, 2), Score(2, 2)), active=True
        )


class Scene:
    """Companions on one folder, one after another."""

    def __init__(self, folder: Path) -> None:
        self.database = open_member(folder)
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.made: list[PersonalizationWorker] = []

    def start(
        self, script: Callable[[Scripted, str], None] | None = None, **options: Any
    ) -> Scripted:
        kind = (
            Scripted
            if script is None
            else type("Told", (Scripted,), {"script": staticmethod(script)})
        )
        companion: Scripted = kind(
            SimpleNamespace(),
            SimpleNamespace(),
            PersonalSettings(),
            self.database,
            on_event=tables(self.events.put),
            **options,
        )
        self.made.append(companion)
        return companion

    def told(self) -> dict[str, Any]:
        return self.events.get(timeout=PATIENCE_S)

    def pending(self) -> str:
        record = self.database.get(NAME)
        return "" if record is None else json.dumps(record.fields)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    playing = Scene(tmp_path)
    yield playing
    for personalization_worker in playing.made:
        personalization_worker.close()
        personalization_worker.thread.join(PATIENCE_S)
        assert not personalization_worker.thread.is_alive()


def test_what_came_of_it_is_told_in_numbers_and_words(scene: Scene) -> None:
    companion = scene.start()
    companion.adopted(ONE)
    event = scene.told()
    assert (event["parent"], event["adapter"], event["active"]) == (ONE, "cc" * 32, True)
    assert (event["right"], event["shared_right"], event["of"]) == (2, 1, 2)
    companion.finish()
    assert scene.pending() == "" and not companion.thread.is_alive()


def test_it_rests_while_a_letter_is_answered_and_while_somebody_waits_for_the_machine(
    scene: Scene,
) -> None:
    begun, answering, answered, busy = (threading.Event() for _ in range(4))
    asked: queue.Queue[bool] = queue.Queue()

    def work(companion: Scripted, name: str) -> None:
        begun.set()
        assert answering.wait(PATIENCE_S)
        companion.rest()
        assert answered.is_set() and not busy.is_set()

    def is_busy() -> bool:
        asked.put(busy.is_set())
        return busy.is_set()

    companion = scene.start(work, busy=is_busy)
    busy.set()

    def answer(message: bytes) -> bytes:
        answering.set()
        answered.set()
        return message[::-1]

    companion.adopted(ONE)
    assert begun.wait(PATIENCE_S)
    assert companion.attend(answer)(b"abc") == b"cba"
    # it looks again, and goes on resting
    assert asked.get(timeout=PATIENCE_S) and asked.get(timeout=PATIENCE_S)
    assert scene.events.empty()
    busy.clear()
    assert scene.told()["adapter"]


def test_a_letter_that_fails_ends_the_rest_too(scene: Scene) -> None:
    companion = scene.start(lambda companion, name: companion.rest())

    def refuse(message: bytes) -> bytes:
        companion.adopted(ONE)
        raise FederationError("refused")

    with pytest.raises(FederationError, match="refused"):
        companion.attend(refuse)(b"")
    assert scene.told()["adapter"] and companion.answering == 0


def test_a_failure_is_told_and_the_next_adapter_is_worked_on(scene: Scene) -> None:
    faults: list[Exception] = [QuietchoirError("the disk is full"), MemoryError("no room")]

    def fail(companion: Scripted, name: str) -> None:
        if faults:
            raise faults.pop(0)

    companion = scene.start(fail)
    companion.adopted(ONE)
    assert "the disk is full" in scene.told()["words"]
    broken = threading.Event()
    listener = logging.Handler()
    listener.emit = lambda record: broken.set()  # type: ignore[method-assign]
    logging.getLogger("quietchoir.federation.personalization").addHandler(listener)
    companion.adopted(ONE)
    assert broken.wait(PATIENCE_S)
    logging.getLogger("quietchoir.federation.personalization").removeHandler(listener)
    companion.adopted(TWO)
    assert scene.told()["parent"] == TWO and scene.pending() == ""


def test_a_newer_adapter_takes_the_place_of_the_one_that_is_worked_on(scene: Scene) -> None:
    begun, newer = threading.Event(), threading.Event()

    def work(companion: Scripted, name: str) -> None:
        begun.set()
        assert newer.wait(PATIENCE_S)
        companion.rest()

    companion = scene.start(work)
    companion.adopted(ONE)
    assert begun.wait(PATIENCE_S)
    companion.adopted(TWO)
    newer.set()
    assert scene.told()["parent"] == TWO
    companion.finish()
    assert scene.events.empty()


def test_work_that_a_leaving_node_gives_up_is_begun_again_by_the_next_one(scene: Scene) -> None:
    begun = threading.Event()

    def endless(companion: Scripted, name: str) -> None:
        begun.set()
        while True:
            companion.rest()

    first = scene.start(endless)
    first.adopted(ONE)
    assert begun.wait(PATIENCE_S)
    first.close()
    assert ONE in scene.pending() and '"tries": 0' in scene.pending()
    scene.start()
    assert scene.told()["parent"] == ONE
    idle = scene.start()
    idle.close()
    assert scene.pending() == ""


def test_work_that_kills_the_node_again_and_again_is_left(scene: Scene) -> None:
    for tries in (3, 2):  # as three kills, and two, would leave it
        Pending(scene.database).write(ONE, tries)
        companion = scene.start()
        event = scene.told()
        companion.finish()
        assert ("never ended" in event["words"]) == (tries == 3) and scene.pending() == ""
    for damaged in ({}, {"tries": 1}, {"adapter": "x", "tries": "many"}):
        scene.database.put(NAME, damaged)
        scene.start().finish()
    assert scene.events.empty()


def test_a_disk_that_refuses_harms_nobody(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.database.connection.execute("PRAGMA query_only = ON")
    companion = scene.start()
    companion.adopted(ONE)
    assert "not written" in scene.told()["words"]
    companion.finish()


def test_a_node_without_held_out_examples_is_told_so(tmp_path: Path) -> None:
    crypto_worker, shop = (
        CryptoWorker(tmp_path / "home", tiny_weights()),
        open_trainer(tiny_weights()),
    )
    parent = crypto_worker.deliver(1)
    database = open_member(tmp_path / "choir")
    before, events = crypto_worker.files(), queue.Queue[dict[str, Any]]()
    learner = TrainerLearner(shop.trainer, shop.train, None, None)  # type: ignore[arg-type]
    personalization_worker = PersonalizationWorker(
        crypto_worker.owner, learner, PersonalSettings(), database, on_event=tables(events.put)
    )
    personalization_worker.adopted(parent)
    assert "test.jsonl" in events.get(timeout=PATIENCE_S)["words"]
    personalization_worker.finish()
    assert crypto_worker.files() == before


def test_an_adapter_of_other_layers_than_the_federation_now_trains_is_left_to_its_owner(
    tmp_path: Path,
) -> None:
    crypto_worker, shop = (
        CryptoWorker(tmp_path / "home", tiny_weights()),
        open_trainer(tiny_weights()),
    )
    parent = crypto_worker.deliver(1, AdapterShape(rank=2, alpha=4.0, upper_layers=1))
    database = open_member(tmp_path / "choir")
    before, events = crypto_worker.files(), queue.Queue[dict[str, Any]]()
    learner = TrainerLearner(shop.trainer, shop.train, shop.test, None)  # type: ignore[arg-type]
    personalization_worker = PersonalizationWorker(
        crypto_worker.owner, learner, PersonalSettings(), database, on_event=tables(events.put)
    )
    personalization_worker.adopted(parent)
    assert ("changes 1 layers, the federation now trains 2") in events.get(timeout=PATIENCE_S)[
        "words"
    ]
    personalization_worker.finish()
    assert crypto_worker.files() == before


def test_from_which_kept_examples_a_personal_adapter_comes_is_written_down(tmp_path: Path) -> None:
    verdict = PersonalVerdict(Score(1, 2), Score(2, 2))
    learner = ConsentedLearner.__new__(ConsentedLearner)
    with closing(HistoryStore(tmp_path)) as store:
        ids = []
        for name in ("one", "two"):
            said = [Message("user", name), Message("assistant", "wrong")]
            store.keep(name, said, source="page")
            ids.append(store.correct(name, "right"))
        kept, gone = ids
        learner.consented = SimpleNamespace(set=SimpleNamespace(ids=(kept, gone)))  # type: ignore
        note = begin_personal(tmp_path, learner)
        note(PersonalOutcome("shared", "", "", verdict, active=False))  # none was kept
        note(PersonalOutcome("shared", "mine", "", verdict, active=True))
        assert store.marks() == {}
        learner.consented = SimpleNamespace(set=SimpleNamespace(ids=(kept,)))  # type: ignore
        next_note = begin_personal(tmp_path, learner)
        store.forget([gone])
        assert store.marks() == {"mine": 1}
        carried = PersonalOutcome("shared", "next", "mine", verdict, active=True)
        with pytest.raises(DataError, match="forgotten meanwhile"):  # through what it goes on from
            next_note(carried)
        assert store.marks() == {"mine": 1}


def test_two_tellers_never_speak_at_once() -> None:
    inside, most = 0, 0

    def tell(event: FederationEvent) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        inside -= 1

    speak = one_at_a_time(tell)
    threads = [
        threading.Thread(target=lambda: [speak(StaysEvent()) for _ in range(200)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
