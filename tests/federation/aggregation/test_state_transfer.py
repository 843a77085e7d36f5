"""What members of a sealed federation hand each other: keys, adapters, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import AuthenticationError, ConfigError, FederationError, MessageError
from quietchoir.crypto.identity.keys import Ephemeral, Identity
from quietchoir.federation.aggregation import parts, state_transfer
from quietchoir.federation.aggregation.hello import Hello, SealedEnvelope
from quietchoir.federation.aggregation.state_transfer import StateTransfer
from quietchoir.federation.spec.policy import Policy
from quietchoir.federation.store.client_store import (
    GROUP_KEY,
    TAG_BYTES,
    ClientStore,
    Progress,
    model_of,
)
from quietchoir.federation.store.member import FILE, open_member
from quietchoir.federation.wire.messages import RoundId
from quietchoir.tests.fakes.federation import House, house
from quietchoir.tests.fakes.store import damage

ROUND_ID = RoundId("ab" * 16, 1, 1)


@dataclasses.dataclass
class Meeting:
    """Members before a round, and what they greeted with."""

    home: House
    members: dict[str, StateTransfer]
    hellos: dict[str, bytes]

    @property
    def policy(self) -> Policy:
        return self.home.policy


@pytest.fixture
def meeting() -> Meeting:
    home = house(4, mode="sealed", min_cohort=4, threshold=3)
    members = {
        name: StateTransfer(home.policy, name, key, ClientStore(None, 5))
        for name, key in home.members.items()
    }
    return Meeting(
        home,
        members,
        {name: one.answer(ROUND_ID, state_transfer.GREET, b"") for name, one in members.items()},
    )


def share_key(meeting: Meeting) -> None:
    """Ann deals, the others take."""
    asked = {state_transfer.TO + name: meeting.hellos[name] for name in ("ben", "cat", "dan")}
    dealt = parts.split(
        meeting.members["ann"].answer(ROUND_ID, state_transfer.DEAL, parts.join(asked))
    )
    meeting.hellos["ann"] = dealt[state_transfer.OWN]
    for name in ("ben", "cat", "dan"):
        given = parts.join(
            {state_transfer.FROM: b"ann", state_transfer.ENVELOPE: dealt[state_transfer.TO + name]}
        )
        meeting.hellos[name] = meeting.members[name].answer(ROUND_ID, state_transfer.TAKE, given)


def test_the_key_is_sealed_for_members_that_asked_in_this_attempt_and_for_nobody_else(
    meeting: Meeting,
) -> None:
    ann, stranger = meeting.members["ann"], Identity.generate()
    forged = Hello(sender="ben", public=Ephemeral.generate().public).signed(
        meeting.policy, ROUND_ID, stranger
    )
    outsider = Hello(sender="mallory", public=Ephemeral.generate().public).signed(
        meeting.policy, ROUND_ID, stranger
    )
    later = RoundId(ROUND_ID.run, ROUND_ID.round, ROUND_ID.attempt + 1)
    for name, asked, round_id in (
        ("ben", forged, ROUND_ID),
        ("mallory", outsider, ROUND_ID),
        ("ben", meeting.hellos["cat"], ROUND_ID),
        ("ben", meeting.hellos["ben"], later),
        ("ben", meeting.hellos["ben"][:-1], ROUND_ID),
    ):
        with pytest.raises(MessageError):
            ann.answer(round_id, state_transfer.DEAL, parts.join({state_transfer.TO + name: asked}))
    assert ann.store.seed(meeting.policy.digest) is None  # refused before a key was made
    share_key(meeting)
    seeds = {one.store.seed(meeting.policy.digest) for one in meeting.members.values()}
    assert len(seeds) == 1 and None not in seeds


def test_a_parcel_opens_for_its_receiver_and_purpose_alone(meeting: Meeting) -> None:
    policy, ben = meeting.policy, meeting.members["ben"]
    asked = {state_transfer.TO + name: meeting.hellos[name] for name in ("ben", "cat")}
    dealt = parts.split(
        meeting.members["ann"].answer(ROUND_ID, state_transfer.DEAL, parts.join(asked))
    )
    own, other = dealt[state_transfer.TO + "ben"], dealt[state_transfer.TO + "cat"]
    flipped = own[:40] + bytes((own[40] ^ 1,)) + own[41:]
    for sender, envelope in (
        (b"ann", other),
        (b"cat", own),
        (b"ann", flipped),
        (b"ann", b""),
        (b"mallory", own),
    ):
        with pytest.raises((MessageError, AuthenticationError)):
            ben.answer(
                ROUND_ID,
                state_transfer.TAKE,
                parts.join({state_transfer.FROM: sender, state_transfer.ENVELOPE: envelope}),
            )
    with pytest.raises(MessageError):
        ben.answer(
            ROUND_ID,
            state_transfer.FOLLOW,
            parts.join({state_transfer.FROM: b"ann", state_transfer.ENVELOPE: own}),
        )
    with pytest.raises(MessageError, match="sender's name"):
        ben.answer(ROUND_ID, state_transfer.TAKE, parts.join({state_transfer.ENVELOPE: own}))
    assert ben.store.seed(policy.digest) is None
    ben.answer(
        ROUND_ID, state_transfer.GREET, b""
    )  # a new box key: the parcel for the old one is worthless
    with pytest.raises(AuthenticationError):
        ben.answer(
            ROUND_ID,
            state_transfer.TAKE,
            parts.join({state_transfer.FROM: b"ann", state_transfer.ENVELOPE: own}),
        )


def test_an_adapter_is_taken_only_if_enough_members_say_that_it_is_theirs(meeting: Meeting) -> None:
    share_key(meeting)
    policy, dan = meeting.policy, meeting.members["dan"]
    seed = meeting.members["ann"].store.seed(policy.digest)
    server = dataclasses.replace(
        dan.store.progress(ROUND_ID.run).server, flat=np.arange(5, dtype=np.float32)
    )
    good = Progress(7, server)
    for name in ("ann", "ben", "cat"):
        meeting.members[name].store.keep_progress(ROUND_ID.run, good)
        meeting.hellos[name] = meeting.members[name].hello(ROUND_ID)

    def envelope(content: bytes) -> bytes:
        box = SealedEnvelope(
            purpose="state",
            policy=policy,
            round_id=ROUND_ID,
            sender="ann",
            receiver="dan",
            content=content,
        )
        return box.sealed(
            meeting.home.members["ann"],
            Hello.decode(meeting.hellos["dan"], policy, ROUND_ID, "dan").public,
        )

    def follow(content: bytes, *witnesses: str) -> bytes:
        said = {state_transfer.SAYS + name: meeting.hellos[name] for name in witnesses}
        return dan.answer(
            ROUND_ID,
            state_transfer.FOLLOW,
            parts.join(
                {state_transfer.FROM: b"ann", state_transfer.ENVELOPE: envelope(content), **said}
            ),
        )

    poisoned = Progress(7, dataclasses.replace(server, flat=server.flat + 1)).encode()
    assert state_transfer.witnesses(policy) == 3
    for content, witnesses in (
        (good.encode(), ("ann", "ben")),
        (poisoned, ("ann", "ben", "cat")),
        (b"short", ("ann", "ben", "cat")),
    ):
        with pytest.raises(FederationError):
            follow(content, *witnesses)
    assert dan.store.progress(ROUND_ID.run).steps == 0
    follow(good.encode(), "ann", "ben", "cat")
    assert seed is not None and dan.store.progress(ROUND_ID.run).tag(
        seed, ROUND_ID.run
    ) == good.tag(seed, ROUND_ID.run)


def test_what_is_damaged_in_a_vault_is_handed_over_again_and_a_readable_one_refused(
    tmp_path: Path,
) -> None:
    run, epoch = "ab" * 16, b"\1" * 32
    client_store = ClientStore(open_member(tmp_path), 4)
    seed = client_store.make_seed(epoch)
    client_store.keep_progress(run, Progress(2, client_store.progress(run).server))
    with pytest.raises(FederationError, match="run = "):
        client_store.progress("../escape")
    again = ClientStore(open_member(tmp_path), 4)
    assert again.seed(epoch) == seed and again.progress(run).steps == 2
    damage(tmp_path, model_of(run))
    again = ClientStore(open_member(tmp_path), 4)
    assert again.seed(epoch) == seed and again.progress(run).steps == 0
    damage(tmp_path, GROUP_KEY)
    assert ClientStore(open_member(tmp_path), 4).seed(epoch) is None
    (tmp_path / FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="lets others read"):
        open_member(tmp_path)


def test_a_tag_tells_equal_adapters_from_others_and_needs_the_key() -> None:
    zero = ClientStore(None, 4).progress("ab" * 16)
    assert zero.tag(bytes(32), "ab" * 16) == ClientStore(None, 4).progress("ab" * 16).tag(
        bytes(32), "ab" * 16
    )
    others = {
        zero.tag(bytes(32), "ab" * 16),
        zero.tag(b"\1" * 32, "ab" * 16),
        zero.tag(bytes(32), "cd" * 16),
        dataclasses.replace(zero, steps=1).tag(bytes(32), "ab" * 16),
    }
    assert len(others) == 4
    assert {len(tag) for tag in others} == {TAG_BYTES}
    with pytest.raises(FederationError, match="expected 32"):
        Progress.decode(zero.encode()[:-4], 4)
    with pytest.raises(FederationError, match="not finite"):
        Progress.decode(zero.encode()[:-4] + np.float32(np.nan).tobytes(), 4)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\0\0\0\2{}x",
        b"\0\0\0\x05[1,2]",
        b'\0\0\0\x08{"a":-1}',
        b'\0\0\0\x07{"a":9}',
        b"\xff" * 9,
    ],
)
def test_parts_that_do_not_add_up_are_refused(bad: bytes) -> None:
    with pytest.raises(MessageError):
        parts.split(bad)
    assert parts.split(parts.join({"b": b"2", "a": b""})) == {"a": b"", "b": b"2"}
