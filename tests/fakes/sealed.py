"""Sealed federations in one process: ciphertext services without a child, members with vaults, a
worker that crashes.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quietchoir.crypto.he.bfv import Packing, key_id
from quietchoir.crypto.he.encrypted_ring import AdderService, MemberService, Seal, SealedRing
from quietchoir.crypto.ring import BitRing
from quietchoir.federation.aggregation.base import ClientSecrets
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.rounds.member_held import OwnModel
from quietchoir.federation.store.client_store import ClientStore, Progress
from quietchoir.federation.store.database import Database
from quietchoir.federation.store.ledger import AnsweredRounds
from quietchoir.federation.store.member import open_member
from quietchoir.tests.fakes.federation import ANY_MODE, FixedLearner, House

SEED = bytes(range(32))
MARK = 1  # in the last byte of a ciphertext's padding: brings `CrashingAdder` down


class BothServices(MemberService, AdderService):
    """For tests in which one process plays everybody."""

    def __init__(self) -> None:
        MemberService.__init__(self)
        AdderService.__init__(self)


class LocalCryptoWorker:
    """A service called directly; it remembers what it was asked for."""

    def __init__(self, service: Any = None) -> None:
        self.service = service or BothServices()
        self.asked: list[str] = []

    def call(self, method: str, *blobs: bytes, deadline_s: float = 60.0) -> list[bytes]:
        del deadline_s
        self.asked.append(method)
        answer: list[bytes] = getattr(self.service, method)(*blobs)
        return answer


class CrashingAdder(AdderService):
    """Dies as SEAL does, on ciphertexts with a mark in their padding."""

    def check(self, parameters: bytes, *payload: bytes) -> list[bytes]:
        if payload[0][-1] == MARK:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().check(parameters, *payload)


class MarkingCryptoWorker(LocalCryptoWorker):
    """A hostile member's: its ciphertexts carry the mark."""

    def call(self, method: str, *blobs: bytes, deadline_s: float = 60.0) -> list[bytes]:
        answer = super().call(method, *blobs, deadline_s=deadline_s)
        return [row[:-1] + bytes((MARK,)) for row in answer] if method == "encrypt" else answer


class DriftingClientStore(ClientStore):
    """Steps to another adapter than the others, as a machine with a broken library would."""

    def keep_progress(self, run: str, progress: Progress) -> None:
        if progress.steps > self.progress(run).steps:
            progress.server.flat[0] += np.float32(np.random.default_rng(id(self)).random())
        super().keep_progress(run, progress)


def sealed_ring(
    length: int,
    *,
    parties: int,
    bits: int = 8,
    counters: int = 3,
    seed: bytes | None = SEED,
    crypto_worker: Any = None,
    bound: bytes = b"",
) -> SealedRing:
    """A ring for `length` sealed values; a coordinator's with seed None."""
    seal = (
        Seal(packing=Packing(length=length, bits=bits, parties=parties), key_id=key_id(SEED))
        if length
        else None
    )
    open_part = BitRing(length=counters, bits=bits, parties=parties)
    return SealedRing(
        seal, open_part, bound=bound, seed=seed, crypto_worker=crypto_worker or LocalCryptoWorker()
    )


def sealed_clients(
    home: House,
    size: int,
    learner: Callable[[str], Any] = lambda name: FixedLearner(),
    *,
    folder: Path | None = None,
    crypto_worker: Any = None,
    client_store: Callable[[Database | None, int], ClientStore] = ClientStore,
    adopt: Callable[[str], Any] = lambda name: None,
) -> dict[str, Client]:
    """Every member as a `Client` with a client store of its own; with `folder`, on disk."""
    shared, clients = crypto_worker or LocalCryptoWorker(), {}
    for name, identity in home.members.items():
        place = None if folder is None else open_member(folder / name)
        ledger = AnsweredRounds(place)
        secrets = ClientSecrets(client_store(place, size), shared)
        clients[name] = Client(
            home.policy,
            identity,
            learner(name),
            size=size,
            consent=ANY_MODE,
            ledger=ledger,
            secrets=secrets,
            adopt=adopt(name),
        )
    return clients


def own(client: Client) -> OwnModel:
    """Where the adapter lives, at a member that steps it itself."""
    assert isinstance(client.model, OwnModel)
    return client.model


def client_store_of(client: Client) -> ClientStore:
    """A member's secrets."""
    assert client.secrets is not None
    return client.secrets.store


def adapter_of(client: Client, run: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The adapter that a member holds."""
    return client_store_of(client).progress(run).server.flat
