"""A member of secure aggregation that is put into bytes between its stages, and taken out again,
goes on as it was.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from quietchoir.core.errors import ProtocolError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.crypto.ring import BitRing, Ring
from quietchoir.crypto.secagg import RevealLedger, SecAggClient, SecAggConfig, SecAggServer, Stage
from quietchoir.crypto.secagg.session import Floor
from quietchoir.crypto.secagg.snapshot import freeze, read_config, spell_config, thaw

NAMES = ("ann", "ben", "cat", "dan")
KEYS = {name: Identity.generate() for name in NAMES}
VALUES = {name: np.arange(8, dtype=np.uint64) + place for place, name in enumerate(NAMES)}


def agreed(**changed: object) -> SecAggConfig:
    members = {name: key.public for name, key in KEYS.items()}
    fields = {
        "federation": b"f" * 32,
        "round": 1,
        "attempt": 1,
        "threshold": 3,
        "min_cohort": 3,
        "length": 8,
        "bits": 8,
    }
    return SecAggConfig(members=members, **{**fields, **changed})  # type: ignore[arg-type]


def ring_of(config: SecAggConfig) -> Ring:
    return BitRing(length=config.length, bits=config.bits, parties=len(config.members))


def again(client: SecAggClient, name: str, ledger: RevealLedger) -> SecAggClient:
    return thaw(freeze(client), name, KEYS[name], ring_of=ring_of, ledger=ledger)


def test_a_sum_of_members_frozen_before_every_stage_is_right_also_when_one_drops_out() -> None:
    config = agreed(floors=(Floor(frozenset(NAMES[:3]), 3),))
    ledgers = {name: RevealLedger() for name in NAMES}
    clients = {name: SecAggClient(config, name, KEYS[name], ledger=ledgers[name]) for name in NAMES}
    server = SecAggServer(config)
    steps: dict[str, Callable[[SecAggClient, str, bytes], bytes]] = {
        "advertise": lambda client, name, payload: client.advertise(),
        "share": lambda client, name, payload: client.share(payload),
        "mask": lambda client, name, payload: client.mask(payload, VALUES[name], 5),
        "consistency": lambda client, name, payload: client.consistency(payload),
        "unmask": lambda client, name, payload: client.unmask(payload),
    }
    payloads, copy, opening = dict.fromkeys(NAMES, b""), b"", b""
    for stage, step in steps.items():
        for name, payload in payloads.items():
            if (stage, name) == ("mask", "dan"):
                continue  # drops out after its shares
            if (stage, name) == ("unmask", "ann"):
                copy = freeze(clients[name])
            clients[name] = again(clients[name], name, ledgers[name])
            server.receive(name, step(clients[name], name, payload))
        opening = payloads.get("ann", b"")
        payloads = dict(server.advance() or {})
    assert server.result is not None
    whole = sum(VALUES[name] for name in NAMES[:3])
    assert server.result.total.tolist() == whole.tolist()  # type: ignore[union-attr]
    assert clients["ann"].stage is Stage.DONE
    with pytest.raises(ProtocolError, match="over"):
        freeze(clients["ann"])
    older = thaw(copy, "ann", KEYS["ann"], ring_of=ring_of, ledger=ledgers["ann"])
    # the ledger, not the bytes, says what was revealed
    with pytest.raises(ProtocolError, match="opened"):
        older.unmask(opening)


def test_what_was_frozen_is_taken_up_by_its_own_member_in_its_own_session_alone() -> None:
    client = SecAggClient(agreed(), "ann", KEYS["ann"])
    client.advertise()
    kept = freeze(client)
    assert (
        thaw(kept, "ann", KEYS["ann"], ring_of=ring_of, ledger=RevealLedger()).stage is Stage.SHARE
    )
    with pytest.raises(ProtocolError, match="another"):
        thaw(kept, "ann", KEYS["ben"], ring_of=ring_of, ledger=RevealLedger())
    with pytest.raises(ProtocolError, match="another"):
        thaw(
            kept.replace(b'"attempt":1', b'"attempt":2'),
            "ann",
            KEYS["ann"],
            ring_of=ring_of,
            ledger=RevealLedger(),
        )
    with pytest.raises(ProtocolError, match="another"):
        thaw(
            kept,
            "ann",
            KEYS["ann"],
            ring_of=lambda config: BitRing(length=8, bits=8, parties=5),
            ledger=RevealLedger(),
        )


def test_every_part_of_a_configuration_is_kept() -> None:
    config = agreed(
        min_tokens=7,
        corrupt_percent=5,
        drop_percent=6,
        floors=(Floor(frozenset({"ann", "ben"}), 2),),
    )
    assert set(spell_config(config)) == {field.name for field in dataclasses.fields(SecAggConfig)}
    assert read_config(spell_config(config)) == config
