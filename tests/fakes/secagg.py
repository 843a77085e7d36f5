"""A cohort in one process: identities, values, and rounds whose every message a test can hold,
change or lose.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietchoir.core.errors import ProtocolError
from quietchoir.crypto.identity.keys import Ephemeral, Identity, bind
from quietchoir.crypto.ring import BitRing, Ring, Stream, expand
from quietchoir.crypto.secagg import (
    RevealLedger,
    SecAggClient,
    SecAggConfig,
    SecAggResult,
    SecAggServer,
)
from quietchoir.crypto.secagg.messages import Upload
from quietchoir.crypto.secagg.session import Session, mask_pair, mask_self

STAGES = ("advertise", "share", "mask", "consistency", "unmask")
FEDERATION = bytes(range(32))


class Cohort:
    """Members with known values."""

    def __init__(
        self,
        n: int = 5,
        *,
        length: int = 16,
        bits: int = 8,
        threshold: int | None = None,
        **floors: int,
    ) -> None:
        self.names = [f"node-{number:03}" for number in range(n)]
        self.identities = {name: Identity.generate() for name in self.names}
        rng = np.random.default_rng(n)
        self.values = {
            name: rng.integers(0, 1 << bits, length, dtype=np.uint32) for name in self.names
        }
        self.tokens = {name: 100 + number for number, name in enumerate(self.names)}
        self.fields: dict[str, Any] = {
            "federation": FEDERATION,
            "members": {name: identity.public for name, identity in self.identities.items()},
            "threshold": threshold or 2 * n // 3 + 1,
            "min_cohort": 3,
            "length": length,
            "bits": bits,
            **floors,
        }

    def config(self, round_: int = 1, attempt: int = 0, **other: Any) -> SecAggConfig:
        return SecAggConfig(**{**self.fields, "round": round_, "attempt": attempt, **other})

    def sum(self, names: Iterable[str]) -> NDArray[np.int64]:
        total: NDArray[np.int64] = np.sum(
            [self.values[name].astype(np.int64) for name in names], axis=0
        )
        return total


class Round:
    """One attempt, played stage by stage. `sent` and `brought` keep every message."""

    def __init__(
        self,
        cohort: Cohort,
        round_: int = 1,
        attempt: int = 0,
        *,
        ledgers: Mapping[str, RevealLedger] | None = None,
        ring: Ring | None = None,
        **other: Any,
    ) -> None:
        self.cohort, self.config = cohort, cohort.config(round_, attempt, **other)
        self.session = Session(self.config, ring)
        self.server = SecAggServer(self.config, ring=ring)
        self.clients = {
            name: SecAggClient(
                self.config,
                name,
                cohort.identities[name],
                ring=ring,
                ledger=(ledgers or {}).get(name),
            )
            for name in cohort.names
        }
        # per stage: coordinator → members
        self.brought: list[Mapping[str, bytes]] = [dict.fromkeys(cohort.names, b"")]
        self.sent: list[dict[str, bytes]] = []  # per stage: members → coordinator

    @property
    def result(self) -> SecAggResult:
        """The opened sum; the test fails where there is none."""
        assert self.server.result is not None
        return self.server.result

    @property
    def bits(self) -> int:
        """Width of the ring of sums."""
        assert isinstance(self.session.ring, BitRing)
        return self.session.ring.bits

    def ask(self, name: str, message: bytes | None = None, stage: int | None = None) -> bytes:
        """Call a member's method of the current stage with `message`, or with what the
        coordinator sent it.
        """
        at = len(self.sent) if stage is None else stage
        message = self.brought[at][name] if message is None else message
        call: Callable[..., bytes] = getattr(self.clients[name], STAGES[at])
        if at == 0:
            return call()
        if at == 2:
            return call(message, self.cohort.values[name], self.cohort.tokens[name])
        return call(message)

    def gather(self, silent: Collection[str] = ()) -> None:
        """Members answer and the coordinator receives; the stage stays open."""
        answers = {
            name: self.ask(name) for name in self.brought[len(self.sent)] if name not in silent
        }
        self.sent.append(answers)
        for name, answer in answers.items():
            self.server.receive(name, answer)

    def step(self, silent: Collection[str] = ()) -> None:
        """One whole stage."""
        self.gather(silent)
        self.brought.append(self.server.advance())

    def play(
        self, silent: Mapping[int, Collection[str]] | None = None, *, stages: int = 5
    ) -> "Round":
        """Play up to `stages`; `silent[stage]` fall silent in that stage and never come back."""
        while len(self.sent) < stages:
            self.step((silent or {}).get(len(self.sent), ()))
        return self


class Peeled:
    """One upload whose masks a curious coordinator takes off one by one."""

    def __init__(self, session: Session, upload: bytes, view: bytes) -> None:
        self.session = session
        self._tally = session.ring.tally()
        self._tally.add(Upload.decode(upload, session, view).values)

    def mask(self, quantity: str, key: bytes, *, subtract: bool) -> None:
        if quantity == "values":
            self._tally.mask(key, subtract=subtract)

    def without_self(self, seed: bytes) -> "Peeled":
        mask_self(self, self.session, seed, subtract=True)
        return self

    def without_pairs(self, owner: int, secret: bytes, peers: Mapping[int, bytes]) -> "Peeled":
        """Args: secret: the owner's mask key; peers: the mask public keys of those it masked
        with.
        """
        for peer, public in peers.items():  # swapped roles give the same stream with the other sign
            mask_pair(self, self.session, Ephemeral(secret), peer, owner, public)
        return self

    @property
    def values(self) -> NDArray[np.int64]:
        return self._tally.total()


class PrimeRing:
    """Z modulo a prime, as a sealed round will need: uniform by rejection, 8 bytes a value. Slow
    and plain.
    """

    def __init__(self, modulus: int, length: int) -> None:
        self.modulus, self.length, self.name, self.wire_bytes = (
            modulus,
            length,
            bind("Z mod t", modulus, length),
            8 * length,
        )

    def stream(self, key: bytes) -> NDArray[np.uint64]:
        top = (1 << 64) // self.modulus * self.modulus
        raw = np.frombuffer(expand(key, 8 * (4 * self.length + 64)), "<u8")
        mask: NDArray[np.uint64] = raw[raw < top][: self.length] % np.uint64(self.modulus)
        return mask

    def lift(self, values: NDArray[Any]) -> Any:
        return values.astype("<u8")

    def mask(self, words: Any, streams: Sequence[Stream]) -> None:
        for key, subtract in streams:
            stream = self.stream(key)
            words += np.uint64(self.modulus) - stream if subtract else stream
            words %= np.uint64(self.modulus)

    def close(self, words: Any) -> bytes:
        return bytes(words.tobytes())

    def tally(self) -> "PrimeTally":
        return PrimeTally(self)


class PrimeTally:
    """Sum modulo a prime."""

    def __init__(self, ring: PrimeRing) -> None:
        self.ring = ring
        self.words: NDArray[np.uint64] = np.zeros(ring.length, "<u8")

    def add(self, payload: bytes) -> None:
        if len(payload) != self.ring.wire_bytes:
            raise ProtocolError("wrong size")
        self.words = (self.words + np.frombuffer(payload, "<u8")) % np.uint64(self.ring.modulus)

    def mask(self, key: bytes, *, subtract: bool) -> None:
        self.ring.mask(self.words, [(key, subtract)])

    def total(self) -> NDArray[np.int64]:
        return self.words.astype(np.int64)


def frozen(thing: object, depth: int = 6) -> object:
    """Everything an object holds, comparable, to show that a refused message changed nothing."""
    if isinstance(thing, np.ndarray):
        return thing.tobytes()
    if isinstance(thing, (Identity, Ephemeral)) or depth == 0:
        return id(thing)
    if isinstance(thing, Mapping):
        return {key: frozen(value, depth - 1) for key, value in thing.items()}
    if isinstance(thing, (set, frozenset)):
        return frozenset(thing)
    if isinstance(thing, (list, tuple)):
        return [frozen(value, depth - 1) for value in thing]
    fields = getattr(thing, "__dict__", None)
    return (
        {key: frozen(value, depth - 1) for key, value in fields.items()}
        if fields is not None
        else thing
    )
