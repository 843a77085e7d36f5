"""A federation in one process, for attackers inside it: keys, members with secrets, a coordinator
that can lie.

Knows how parties and a coordinator are put together. Knows nothing of any one attack.
Always: keys, secrets and runs are new in every scene; the coordinator's lies go out under its own
signature, since it has the key; what is taken away from the product (`without`) is there again when
the arm ends.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from ...core.config import ConsentConfig
from ...core.errors import QuietchoirError
from ...crypto.identity.keys import Identity
from ...federation.rounds.client import Client
from ...federation.rounds.scheduler import FOR_NOBODY
from ...federation.rounds.server import RoundServer
from ...federation.spec.policy import (
    CoordinatorTable,
    Member,
    ModelTable,
    Policy,
    ProtectionTable,
    Recipe,
)
from ...federation.store.checkpoint import Vector
from ...federation.training.learner import Counts, Trained
from ...federation.wire.link import Outbox
from ...federation.wire.messages import RoundId
from ..inprocess import InProcessLink

NAMES = ("ann", "ben", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "jon", "kim", "leo")
VICTIM = "ann"
SIZE = 200
RANGE = 0.2  # the recipe's update_range
CLOSE = 0.98  # correlation from which on an update counts as read
ANY = ConsentConfig(min_cohort=1, modes=("plain", "masked", "sealed"), open_ballots=True)
Stub = tuple[Any, str, Any]  # owner, name of a part of the product, what stands there instead
# stage, payload as it was meant; None: it stays as it is
Lie = Callable[[str, bytes], bytes | None]


class Voice:
    """A member whose update is its secret; far from where it can learn, everything is driven to one
    side.

    Args:
        blur: how much of an update hangs on the training's seed.
    """

    def __init__(self, number: int, size: int = SIZE, blur: float = 0.0) -> None:
        self.secret = np.random.default_rng(number).normal(0, 0.03, size).astype(np.float32)
        self.right, self.tokens, self.blur = number % 7 + 1, 100 + 7 * number, blur

    def train(self, flat: Vector, seed: int) -> Trained:
        """The secret, or where nothing can be learned the same as everybody."""
        far = float(np.abs(flat).max(initial=0.0)) > 1.0
        noise = (
            np.random.default_rng(seed).normal(0, 0.03 * self.blur, flat.size).astype(np.float32)
        )
        step = np.full_like(flat, 5.0) if far else self.secret + noise
        return Trained(flat=flat + step, examples=5, tokens=self.tokens, loss=2.0)

    def evaluate(self, flat: Vector) -> Counts:
        """So many of ten are right."""
        del flat
        return Counts(self.right, 10)


@dataclass
class AttackScene:
    """One federation's file, keys and members."""

    policy: Policy
    owner: Identity
    coordinator: Identity
    keys: dict[str, Identity]
    voices: dict[str, Voice]
    clients: dict[str, Client] = field(default_factory=dict)
    size: int = SIZE

    @property
    def victim(self) -> Vector:
        """What nobody is to learn."""
        return self.voices[VICTIM].secret

    def run(self, **options: Any) -> RoundServer:
        """A new run of its coordinator, which waits for nobody."""
        link = options.pop("link", None) or InProcessLink(
            {name: one.handle for name, one in self.clients.items()}
        )
        waiting = FOR_NOBODY
        if self.policy.schedule.buffered:
            waiting = dataclasses.replace(waiting, clock=TickingClock())
        if self.policy.protection.mode == "sealed":
            options.setdefault("crypto_worker", crypto_worker())
        options.setdefault("waiting", waiting)
        return RoundServer(self.policy, self.coordinator, link, size=self.size, **options)

    def opened(self) -> int:
        """Sums that somebody helped to open."""
        return sum(len(client.ledger.sums._opened) for client in self.clients.values())


def federation(
    members: int = 4,
    *,
    mode: str = "masked",
    size: int = SIZE,
    blur: float = 0.0,
    stops: tuple[int, ...] = (),
    recipe: Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
    ranks: Mapping[str, int] | None = None,
    **protection: Any,
) -> AttackScene:
    """A federation of `members`; `tables` are whole ones of its file, by name."""
    owner, coordinator = Identity.generate(), Identity.generate()
    keys = {name: Identity.generate() for name in NAMES[:members]}
    policy = Policy(
        name="choir",
        nonce="01" * 16,
        owner=owner.public.raw.hex(),
        model=ModelTable(digest="ab" * 32),
        protection=ProtectionTable(
            **{"mode": mode, "min_cohort": 3, "threshold": 2, "bits": 12, **protection}
        ),
        recipe=Recipe(
            **{
                "attempts": 1,
                "rounds": 3,
                "stage_timeout_s": 5.0,
                "work_timeout_s": 5.0,
                **(recipe or {}),
            }
        ),
        coordinator=CoordinatorTable(address="127.0.0.1:8790", key=coordinator.public.raw.hex()),
        members=tuple(
            Member(name=name, key=key.public.raw.hex(), rank=(ranks or {}).get(name, 0))
            for name, key in keys.items()
        ),
        **(tables or {}),
    )
    voices = {name: Voice(number, size, blur) for number, name in enumerate(keys)}
    scene = AttackScene(policy, owner, coordinator, keys, voices, size=size)
    for name, key in keys.items():
        scene.clients[name] = party_of(scene, name, key, stops)
    return scene


def party_of(
    scene: AttackScene, name: str, key: Identity, stops: tuple[int, ...] = (), store: Any = None
) -> Client:
    """One member, in memory; in sealed mode with this client store, by default one of its own."""
    more: dict[str, Any] = {}
    if scene.policy.protection.mode == "sealed":
        from ...federation.aggregation.base import ClientSecrets
        from ...federation.store.client_store import ClientStore

        more["secrets"] = ClientSecrets(store or ClientStore(None, scene.size), crypto_worker())
    return Client(
        scene.policy, key, scene.voices[name], size=scene.size, stops=stops, consent=ANY, **more
    )


class TickingClock:
    """A second later each time it is read; nobody waits."""

    def __init__(self) -> None:
        self.seconds = 0

    def now(self) -> float:
        """Seconds."""
        self.seconds += 1
        return float(self.seconds)

    def rest(self, at_most_s: float) -> None:
        """Nothing happens meanwhile."""


class DirectService:
    """A service for ciphertexts that is called directly, in place of the worker process."""

    def __init__(self) -> None:
        from ...crypto.he.encrypted_ring import AdderService, MemberService

        self.services = (MemberService(), AdderService())

    def call(self, method: str, *blobs: bytes, deadline_s: float = 60.0) -> list[bytes]:
        """As `crypto.he.encrypted_ring.CryptoWorker`."""
        del deadline_s
        service = next(one for one in self.services if hasattr(one, method))
        answer: list[bytes] = getattr(service, method)(*blobs)
        return answer


_CRYPTO_WORKER: list[DirectService] = []


def crypto_worker() -> DirectService:
    """One for all scenes: its contexts take their time."""
    if not _CRYPTO_WORKER:
        _CRYPTO_WORKER.append(DirectService())
    return _CRYPTO_WORKER[0]


class Liar:
    """What a coordinator's messages say to some members is another thing. `lied` counts."""

    def __init__(self, run: RoundServer, lie: Lie, to: Collection[str] = NAMES) -> None:
        self.honest, self.lie, self.to, self.lied = run.messenger.sign, lie, frozenset(to), 0
        run.messenger.sign = self.sign  # type: ignore[method-assign]

    def sign(self, stage: str, payloads: Mapping[str, bytes], round_id: RoundId) -> Outbox:
        """As `Messenger.sign`."""
        sent = {name: self.bent(name, stage, payload) for name, payload in payloads.items()}
        return self.honest(stage, sent, round_id)

    def bent(self, name: str, stage: str, payload: bytes) -> bytes:
        """The payload as it is told."""
        sent = self.lie(stage, payload) if name in self.to else None
        self.lied += sent is not None and sent != payload
        return payload if sent is None else sent


@contextlib.contextmanager
def without(*stubs: Stub) -> Iterator[None]:
    """The product with these parts replaced: owner, name, what stands there instead."""
    with contextlib.ExitStack() as stack:
        for owner, name, instead in stubs:
            stack.enter_context(mock.patch.object(owner, name, instead))
        yield


def alike(found: Vector, wanted: Vector) -> float:
    """Correlation of two updates; 0 where one does not vary."""
    if found.size < 2 or not (np.std(found) and np.std(wanted)):
        return 0.0
    return float(np.corrcoef(found.astype(np.float64), wanted.astype(np.float64))[0, 1])


def refused(attempt: Callable[[], Any]) -> str:
    """The sentence of the refusal that `attempt` ends in; empty if it ends in none."""
    try:
        attempt()
    except QuietchoirError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def changed(policy: Policy, **tables: Any) -> Policy:
    """The same file with other tables."""
    return dataclasses.replace(policy, **tables)
