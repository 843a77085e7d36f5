"""What members with a joint key refuse: foreign, broken and hostile messages, files that make no
sense.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import (
    CryptoError,
    MessageError,
    ProtocolError,
    RoundAborted,
    ThresholdError,
)
from quietchoir.crypto.experimental.threshold import request
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.aggregation import parts
from quietchoir.federation.aggregation.encrypted import WITNESS
from quietchoir.federation.aggregation.experimental import dkg_client, threshold
from quietchoir.federation.aggregation.experimental.key_group import round_number
from quietchoir.federation.aggregation.state_transfer import SAYS
from quietchoir.federation.store.client_store import SHARE, SHARE_MEMORY
from quietchoir.federation.store.member import FILE
from quietchoir.federation.wire import messages
from quietchoir.tests.fakes.federation import SilentLink, coordinator, house
from quietchoir.tests.fakes.joint import (
    CRYPTO_WORKER,
    SIZE,
    KeepingLink,
    config_of,
    joint_house,
    keys,
    ongoing,
    stage_of,
)
from quietchoir.tests.fakes.sealed import client_store_of, own, sealed_clients
from quietchoir.tests.fakes.store import damage, query


@pytest.mark.parametrize("broken", ["share", "memory", "no memory"])
def test_a_damaged_share_or_one_without_its_memory_is_given_up(broken: str, tmp_path: Path) -> None:
    home = joint_house(4)
    link = KeepingLink(sealed_clients(home, SIZE, folder=tmp_path, crypto_worker=CRYPTO_WORKER))
    run = coordinator(home, {}, SIZE, crypto_worker=CRYPTO_WORKER, link=link)
    run.train_round()
    assert (
        keys(sealed_clients(home, SIZE, folder=tmp_path, crypto_worker=CRYPTO_WORKER))[0]
        is not None
    )
    if broken == "no memory":
        query(tmp_path / "ann" / FILE, "DELETE FROM records WHERE name = ?", SHARE_MEMORY)
    else:
        damage(tmp_path / "ann", SHARE if broken == "share" else SHARE_MEMORY)
    members = sealed_clients(home, SIZE, folder=tmp_path, crypto_worker=CRYPTO_WORKER)
    assert keys(members)[0] is None
    link.parties = {name: client.handle for name, client in members.items()}
    run.train_round()
    assert len(set(keys(members))) == 1  # a new key for all


def test_parts_are_given_for_the_sum_that_enough_members_signed_and_for_no_other() -> None:
    home = joint_house(4)
    members, halves, link = ongoing(home)
    ann, total = halves["ann"], set(link.payloads(WITNESS).values()).pop()
    signed = {SAYS + name: half.sum.witness(total) for name, half in halves.items()}
    key_share, names = ann.key_share, ann.key_share.plan.names
    number = round_number(ann.context.round_id)
    good = request(key_share.plan, number, names[:3], names)
    before = key_share.memory.encode()
    for given, error in (
        ({dkg_client.REQUEST: good}, ThresholdError),  # signed by nobody
        ({dkg_client.REQUEST: good, **dict(list(signed.items())[:2])}, ThresholdError),
        ({dkg_client.REQUEST: good, **signed, SAYS + "ben": signed[SAYS + "cat"]}, MessageError),
        (
            {dkg_client.REQUEST: request(key_share.plan, number, names[:3], names[:3]), **signed},
            MessageError,
        ),  # three of four
        (
            {dkg_client.REQUEST: request(key_share.plan, number + 2, names[:3], names), **signed},
            MessageError,
        ),
        ({dkg_client.REQUEST: good[:-1], **signed}, ProtocolError),
        (signed, ProtocolError),
    ):
        with pytest.raises(error):
            ann.answer(threshold.OPEN, parts.join(given))
    assert key_share.memory.encode() == before and ann.stages == threshold.STAGES
    assert ann.answer(threshold.OPEN, parts.join({dkg_client.REQUEST: good, **signed}))
    with pytest.raises(ProtocolError, match="answered before"):
        ann.answer(threshold.OPEN, parts.join({dkg_client.REQUEST: good, **signed}))
    for first in (1, 2):
        other = request(key_share.plan, number, (*names, *names)[first : first + 3], names)
        ann.answer(threshold.OPEN, parts.join({dkg_client.REQUEST: other, **signed}))
    with pytest.raises(MessageError, match="3 times"):
        ann.answer(threshold.OPEN, parts.join({dkg_client.REQUEST: good, **signed}))
    assert not any(
        client_store_of(client).progress(ann.context.round_id.run).steps
        for client in members.values()
    )


@pytest.mark.parametrize("kind", ["card", "opening", "part"])
def test_a_hostile_members_message_costs_it_its_place_and_nobody_else_theirs(kind: str) -> None:
    """dan's own bytes are wrong, under a message that it signed itself."""
    home = joint_house(5, open_with=3)
    members = sealed_clients(home, SIZE, crypto_worker=CRYPTO_WORKER)
    stage = {"card": dkg_client.COMMIT, "opening": dkg_client.REVEAL, "part": threshold.OPEN}[kind]
    handle = members["dan"].handle

    def hostile(message: bytes) -> bytes:
        answer = handle(message)
        if stage_of(message) != stage:
            return answer
        reply = messages.decode_reply(answer, home.policy, message)
        if len(reply.payload) <= 32:  # nothing, or a tag
            return answer
        changed = reply.payload[:40] + bytes([reply.payload[40] ^ 1]) + reply.payload[41:]
        return messages.encode_reply(
            dataclasses.replace(reply, payload=changed), home.policy, home.members["dan"]
        )

    members["dan"].handle = hostile  # type: ignore[method-assign]
    link = SilentLink(
        {name: client.handle for name, client in members.items()}, lambda name, message: False
    )
    run = coordinator(home, members, SIZE, crypto_worker=CRYPTO_WORKER, link=link)
    run.train_round()
    others = [client for name, client in members.items() if name != "dan"]
    assert len({client_store_of(client).key_name(home.policy.digest) for client in others}) == 1
    assert all(client_store_of(client).progress(run.state.run).steps == 1 for client in others)
    in_sum = kind == "part"
    assert run.state.history[0]["parties"] == sorted(
        name for name in members if name != "dan" or in_sum
    )


def test_a_federation_file_that_makes_no_sense_is_refused() -> None:
    for wrong in (
        {"mode": "masked"},
        {"open_with": 1},
        {"key": "shared", "open_with": 3},
        {"recipe": {"cohort": 3}},
    ):
        with pytest.raises(ValueError, match=r"key = |at least 2"):
            joint_house(4, **wrong)


def test_fewer_members_than_open_with_asks_for_make_no_key() -> None:
    home = joint_house(5, open_with=5)
    members = sealed_clients(home, SIZE, crypto_worker=CRYPTO_WORKER)
    link = KeepingLink(members, lambda name, message: None if name == "eve" else message)
    with pytest.raises(RoundAborted, match="need 5"):
        coordinator(home, members, SIZE, crypto_worker=CRYPTO_WORKER, link=link).train_round()
    assert dkg_client.COMMIT not in link.stages()


def test_a_member_takes_part_in_no_ceremony_but_its_own_federations() -> None:
    home = joint_house(4)
    members = sealed_clients(home, SIZE, crypto_worker=CRYPTO_WORKER)
    link = KeepingLink(
        members, lambda name, message: None if stage_of(message) == dkg_client.REVEAL else message
    )
    with pytest.raises(RoundAborted):
        coordinator(home, members, SIZE, crypto_worker=CRYPTO_WORKER, link=link).train_round()
    setup = own(members["ann"]).setup
    assert setup.dkg is not None and setup.box_key is not None
    round_id, asked = setup.box_key[0], parts.split(link.payloads(dkg_client.COMMIT)["ann"])
    circle = asked[dkg_client.NAMES]
    state = setup.dkg._ongoing
    for wrong in (
        {**asked, dkg_client.NAMES: circle.replace(b'"dan"', b'"mal"')},  # a stranger
        {
            **asked,
            dkg_client.NAMES: circle.replace(b',"cat","dan"', b""),
        },  # below the file's minimum
        {**asked, dkg_client.NAMES: circle.replace(b'"ann",', b"")},  # without this member
        {**asked, dkg_client.NUMBER: b"\7"},  # of another ceremony
        {**asked, dkg_client.NAMES: b"{}"},
        {dkg_client.NAMES: circle},
    ):
        with pytest.raises(MessageError):
            setup.answer(round_id, dkg_client.COMMIT, parts.join(wrong))
    with pytest.raises(MessageError, match="expected reveal"):
        setup.answer(round_id, dkg_client.SETTLE, parts.join({}))
    with pytest.raises(MessageError, match="not greeted"):
        setup.answer(dataclasses.replace(round_id, attempt=9), dkg_client.COMMIT, parts.join(asked))
    with pytest.raises(MessageError, match="protection"):
        setup.answer(round_id, "deal", parts.join({}))
    assert setup.dkg._ongoing is state and keys(members) == [None] * 4
    shared = house(4, mode="sealed")
    other = sealed_clients(shared, SIZE, crypto_worker=CRYPTO_WORKER)["ann"]
    with pytest.raises(MessageError, match="protection"):
        own(other).setup.answer(round_id, dkg_client.COMMIT, parts.join(asked))


def test_broken_letters_of_a_ceremony_are_refused_with_typed_errors_and_change_nothing() -> None:
    home, rng = joint_house(3), np.random.default_rng(7)
    caught: dict[str, bytes] = {}
    members = sealed_clients(home, SIZE, crypto_worker=CRYPTO_WORKER)

    def attack(name: str, message: bytes) -> bytes:
        stage = stage_of(message)
        if name != "ann" or stage not in dkg_client.STAGES[1:] or stage in caught:
            return message
        caught[stage] = payload = messages.split(message)[1]
        ann = own(members["ann"]).setup
        assert ann is not None and ann.dkg is not None and ann.box_key is not None
        expects = ann.dkg._ongoing.expects  # type: ignore[union-attr]
        for _ in range(60):
            bad = bytearray(payload)
            reach = len(bad) if rng.integers(2) else min(len(bad), 400)
            for at in rng.integers(0, reach, rng.integers(1, 4)):
                bad[at] ^= 1 << int(rng.integers(8))
            cut = bytes(bad[: rng.integers(len(bad))]) if rng.integers(4) == 0 else bytes(bad)
            if cut != payload:
                with pytest.raises((MessageError, CryptoError)):
                    ann.answer(ann.box_key[0], stage, cut)
        assert ann.dkg._ongoing.expects == expects  # type: ignore[union-attr]
        assert keys(members)[0] is None
        return message  # and the true one still works

    run = coordinator(
        home, members, SIZE, crypto_worker=CRYPTO_WORKER, link=KeepingLink(members, attack)
    )
    run.train_round()
    assert (
        set(caught) == set(dkg_client.STAGES[1:])
        and len(set(keys(members))) == 1
        and run.aborted == []
    )


def test_who_is_not_of_the_circle_cannot_stand_in_for_it() -> None:
    home = joint_house(4)
    ann = ongoing(home)[1]["ann"]
    with pytest.raises(ProtocolError, match="took no part"):
        round_id = ann.context.round_id
        config = dataclasses.replace(
            config_of(home, round_id),
            members={**config_of(home, round_id).members, "eve": Identity.generate().public},
            threshold=4,
        )
        threshold.make_joint_ring(
            home.policy, config, ann.key_share.plan, ann.key_share.key_id, 1, b""
        )
    with pytest.raises(ProtocolError, match="made for"):
        threshold.make_joint_ring(
            home.policy,
            dataclasses.replace(config_of(home, round_id), bits=4),
            ann.key_share.plan,
            ann.key_share.key_id,
            1,
            b"",
        )
