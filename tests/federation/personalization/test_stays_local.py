"""No message knows of a personal adapter: whole members with and without one give the same values
to the protection.
"""

import ast
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quietchoir.core.config import Config, TrainingConfig
from quietchoir.core.errors import FederationError
from quietchoir.core.models.weights import Weights
from quietchoir.core.prompt import PromptFormat
from quietchoir.core.training.examples import write_jsonl
from quietchoir.crypto import ring
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.adapters.registry import Registry
from quietchoir.federation.aggregation.update import Codec
from quietchoir.federation.client_node import ClientOptions, join, keep_finished
from quietchoir.federation.events import FederationEvent, PersonalEvent
from quietchoir.federation.membership import roster
from quietchoir.federation.membership.founding import (
    COORDINATOR_KEY,
    FILE,
    OWNER_KEY,
    Founding,
    create_federation,
    enroll,
)
from quietchoir.federation.membership.keys import load_or_create
from quietchoir.federation.personalization.change import PersonalChange, shared_b
from quietchoir.federation.personalization.trainer import PersonalTrainer
from quietchoir.federation.personalization.worker import NAME as PENDING
from quietchoir.federation.rounds.scheduler import FOR_NOBODY
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.server_node import keeper
from quietchoir.federation.spec.policy import ModelTable, Policy, ProtectionTable, Recipe
from quietchoir.federation.store.checkpoint import Store
from quietchoir.federation.store.member import FILE as DATABASE
from quietchoir.federation.training.learner import Trained, TrainerLearner
from quietchoir.federation.transport import node as flower
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.federation import ANY_MODE, DIGEST
from quietchoir.tests.fakes.personal import TABLE, CryptoWorker, Door, tiny_weights
from quietchoir.tests.fakes.store import names
from quietchoir.tests.fakes.training import CHATTER, chatter

MEMBERS = ("ann", "ben", "cat")
MARKER = np.float32(1234.5678)  # every value of a personal change, where it is known beforehand
PATIENCE_S = 120.0  # of the test; nothing is measured
ROOT = Path(__file__).resolve().parents[3]


class HearingLink(InProcessLink):
    """Writes down every message and every answer."""

    def __init__(self, members: Mapping[str, Callable[[bytes], bytes]]) -> None:
        super().__init__(members)
        self.heard: list[bytes] = []

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        self.heard += messages.values()
        for name, answer in super().ask(messages, timeout_s):
            self.heard.append(answer)
            yield name, answer


@dataclasses.dataclass
class Trace:
    """What two runs of a federation left behind."""

    folder: Path = Path()
    # what the protection was given, in order
    updates: list[bytes] = dataclasses.field(default_factory=list)
    heard: list[bytes] = dataclasses.field(default_factory=list)
    adapters: list[str] = dataclasses.field(default_factory=list)  # each run's
    # about personal adapters
    events: list[PersonalEvent] = dataclasses.field(default_factory=list)


class Members:
    """Real members in threads: all of `join`, a door in Flower's place."""

    def __init__(
        self, folder: Path, weights: Weights, mode: str, *, personal: bool, once: bool = False
    ) -> None:
        self.folder, self.weights, self.personal, self.once = folder, weights, personal, once
        self.file = self.make_federation(mode)
        self.policy: Policy = roster.load(self.file)
        self.doors: queue.Queue[Callable[[bytes], bytes]] = queue.Queue()
        self.events: queue.Queue[PersonalEvent] = queue.Queue()
        self.leave = threading.Event()
        self.threads: list[threading.Thread] = []
        self.handlers: dict[str, Callable[[bytes], bytes]] = {}

    def make_federation(self, mode: str) -> Path:
        create_federation(
            self.folder,
            Founding(
                name="choir",
                address="127.0.0.1:9",
                model=ModelTable(digest=DIGEST),
                adapter=TABLE,
                protection=ProtectionTable(mode=mode, bits=12, min_cohort=3, threshold=2),  # type: ignore[arg-type]
                recipe=Recipe(
                    rounds=2, batch=4, stage_timeout_s=PATIENCE_S, work_timeout_s=PATIENCE_S
                ),
                prompt=CHATTER,
            ),
        )
        for number, name in enumerate(MEMBERS):
            home = self.folder / name
            enroll(self.folder / FILE, self.folder / OWNER_KEY, name, load_or_create(home).card)
            write_jsonl(home / "train.jsonl", chatter(6, seed=number))
            write_jsonl(home / "test.jsonl", chatter(2, seed=10 + number))
        return self.folder / FILE

    def stand_in(self, patch: pytest.MonkeyPatch) -> None:
        """Doors in Flower's place."""
        patch.setattr(
            flower,
            "FlowerNode",
            lambda policy, key, handle, leave, **_: Door(self.doors.put, handle, leave),
        )

    def open(self) -> None:
        """Everybody joins, one after the other, so that it is known whose door opens."""
        training = TrainingConfig(precision="float32", personal=self.personal, personal_epochs=2)
        config = Config(training=training, consent=ANY_MODE)
        for name in MEMBERS:
            home = self.folder / name
            options = ClientOptions(file=self.file, data=home, home=home, once=self.once)
            leave = threading.Event() if self.once else self.leave
            thread = threading.Thread(
                target=join,
                args=(options, config, self.tell, leave),
                kwargs={"loaded": self.weights},
            )
            self.threads.append(thread)
            thread.start()
            self.handlers[name] = self.doors.get(timeout=PATIENCE_S)

    def tell(self, event: FederationEvent) -> None:
        if isinstance(event, PersonalEvent):
            self.events.put(event)

    def run(self, trace: Trace) -> None:
        """A coordinator's whole run, to the delivered adapter."""
        identity = Identity.load(self.folder / COORDINATOR_KEY)
        keep, size = keeper(self.policy, self.weights, identity, Registry(self.folder / "home"))
        link = HearingLink(self.handlers)
        store = Store(None, run=f"{len(trace.adapters) + 1:032x}")  # members' seeds follow from it
        run = RoundServer(
            self.policy, identity, link, size=size, keep=keep, store=store, waiting=FOR_NOBODY
        )
        report = run.run()
        assert sorted(report.delivered) == list(MEMBERS)
        trace.heard += link.heard
        trace.adapters.append(report.adapter)

    def personalized(self) -> list[PersonalEvent]:
        """What everybody's companion told."""
        return [self.events.get(timeout=PATIENCE_S) for _ in MEMBERS]

    def close(self) -> None:
        self.leave.set()
        for thread in self.threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self.threads)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


Play = Callable[..., Trace]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Iterator[Play]:
    """Two runs after each other, all random numbers but the keys known, so that two traces can
    be compared.
    """
    rounding, encode = ring.encode, Codec.encode

    def two_runs(mode: str = "masked", *, personal: bool) -> Trace:
        trace = Trace(tmp_path_factory.mktemp("choir"))
        members = Members(trace.folder, weights, mode, personal=personal)

        def watched(codec: Codec, update: Any, statistics: Any) -> Any:
            trace.updates.append(update.tobytes() + repr(statistics).encode())
            return encode(codec, update, statistics)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Codec, "encode", watched)
            members.stand_in(patch)
            try:
                members.open()
                for _ in range(2):  # the second one with a personal adapter on the disk, and active
                    members.run(trace)
                    trace.events += members.personalized() if personal else []
            finally:
                members.close()
        return trace

    with pytest.MonkeyPatch.context() as known:
        known.setattr(
            ring, "encode", lambda *given, **more: rounding(*given, **{**more, "key": bytes(32)})
        )
        yield two_runs


@pytest.fixture(scope="module")
def without(play: Play) -> Trace:
    """Nobody personalises."""
    return play(personal=False)


def test_the_protection_is_given_the_same_values_with_a_personal_adapter_and_without(
    play: Play, without: Trace
) -> None:
    beside = play(personal=True)
    # two runs, three members: two rounds and the last scores
    assert len(without.updates) == 2 * 3 * (2 + 1)
    assert beside.updates == without.updates
    assert beside.adapters == without.adapters
    assert [len(message) for message in beside.heard] == [len(message) for message in without.heard]
    assert [event.of for event in beside.events] == [2] * 6 and all(
        event.adapter for event in beside.events
    )


def test_a_member_that_started_from_its_personal_adapter_would_be_found_out(
    play: Play, without: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control arm: the comparison above can fail."""
    learn, honest, learned = PersonalTrainer.learn, TrainerLearner.train, list[PersonalChange]()

    def watched(shop: PersonalTrainer, *given: Any, **more: Any) -> PersonalChange:
        learned.append(learn(shop, *given, **more))
        return learned[-1]

    def leaky(learner: TrainerLearner, flat: np.ndarray, seed: int) -> Trained:
        start = learned[-1].upon(torch.from_numpy(flat.copy())).numpy() if learned else flat
        return honest(learner, start, seed)

    monkeypatch.setattr(PersonalTrainer, "learn", watched)
    monkeypatch.setattr(TrainerLearner, "train", leaky)
    beside = play(personal=True)
    first, second = beside.updates[:9], beside.updates[9:]
    assert first == without.updates[:9]  # there was nothing to leak yet
    trained = [place for place, update in enumerate(second) if len(update) > 1000]
    assert len(trained) == 6 and all(
        second[place] != without.updates[9:][place] for place in trained
    )
    assert beside.adapters[0] == without.adapters[0] and beside.adapters[1] != without.adapters[1]


def test_a_marked_change_is_in_no_letter_and_in_no_file_but_its_own(
    play: Play, without: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        PersonalTrainer,
        "learn",
        lambda shop, shared, change, *_, **__: PersonalChange(
            torch.full_like(shared, float(MARKER)) - shared
        ),
    )
    trace = play("plain", personal=True)  # no masks: whatever is in a message can be read
    marked = [
        path
        for path in trace.folder.rglob("*")
        if path.is_file() and MARKER.tobytes() in path.read_bytes()
    ]
    folders = {path.parent for path in marked}
    assert {path.name for path in marked} == {"adapter_model.safetensors"}
    assert {folder.name for folder in folders} == {event.adapter for event in trace.events}
    # with their members, not with the coordinator
    assert {folder.parent.parent.name for folder in folders} == set(MEMBERS)
    for message in trace.heard:
        assert MARKER.tobytes() not in message
        for event in trace.events:
            assert (
                event.adapter.encode() not in message
                and bytes.fromhex(event.adapter) not in message
            )
    assert trace.updates == without.updates


def test_a_member_that_leaves_after_the_first_adapter_ends_its_personal_one_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Weights
) -> None:
    members, trace = Members(tmp_path, weights, "masked", personal=True, once=True), Trace()
    members.stand_in(monkeypatch)
    try:
        members.open()
        members.run(trace)
    finally:
        members.close()
    events = members.personalized()
    for name in MEMBERS:
        registry = Registry(tmp_path / name)
        [personal] = registry.personal()
        assert registry.active() == personal.adapter in {event.adapter for event in events}
        assert personal.parent == trace.adapters[0]
    for path in tmp_path.rglob(DATABASE):
        assert PENDING not in names(path.parent)


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in it, as a dotted name."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            whole = ".".join([*above, *([node.module] if node.module else [])])
            found |= {whole, *(f"{whole}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_only_the_member_and_the_verbs_know_of_personal_adapters_and_these_know_of_no_letter() -> (
    None
):
    rooms = [
        path
        for folder in ("federation", "core", "crypto", "private_search", "plugins")
        for path in (ROOT / folder).rglob("*.py")
    ]
    knowing = {
        str(path.relative_to(ROOT))
        for path in rooms
        if "personal" in path.read_text("utf-8")
        and "personalization" not in path.parts
        and any(name.startswith("federation.personalization") for name in imported(path))
    }
    assert knowing == {
        "federation/client_node.py",
        "federation/cli/history.py",
        "federation/cli/personalization.py",
    }
    senders = ("wire", "aggregation", "rounds", "transport", "monitor")
    assert all((ROOT / "federation" / room).is_dir() for room in senders)
    for path in (ROOT / "federation" / "personalization").glob("*.py"):
        for name in imported(path):
            assert not name.startswith(tuple(f"federation.{room}" for room in senders)), (
                f"{path.name} imports {name}"
            )
            assert name.partition(".")[0] not in (
                "socket",
                "httpx",
                "aiohttp",
                "flwr",
                "urllib",
                "requests",
            ), path.name


def test_a_coordinators_card_that_claims_to_be_personal_is_refused(
    tmp_path: Path, weights: Weights
) -> None:
    crypto_worker = CryptoWorker(tmp_path, weights)
    shared = crypto_worker.registry.card(crypto_worker.deliver(1))
    policy = dataclasses.replace(crypto_worker.federation.policy, adapter=TABLE)
    flat = shared_b(crypto_worker.registry.load(shared.adapter), weights).numpy()
    before = crypto_worker.files()
    assert (
        keep_finished(
            policy, weights, crypto_worker.registry, flat, shared.text(), crypto_worker.identity
        )
        == shared.adapter
    )
    # nor one that asks it otherwise
    for other in (PromptFormat(system="Sell the house."), PromptFormat(turns="last")):
        told = dataclasses.replace(shared, prompt=other).signed(
            crypto_worker.federation.coordinator
        )
        with pytest.raises(FederationError, match="not this federation's"):
            keep_finished(
                policy, weights, crypto_worker.registry, flat, told.text(), crypto_worker.identity
            )
    card = dataclasses.replace(shared, scope="personal").signed(
        crypto_worker.federation.coordinator
    )
    with pytest.raises(FederationError, match="not this federation's, signed by its coordinator"):
        keep_finished(
            policy, weights, crypto_worker.registry, flat, card.text(), crypto_worker.identity
        )
    assert crypto_worker.files() == before
