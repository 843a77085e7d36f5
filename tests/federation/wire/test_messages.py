"""What crosses the border: refused messages leave memory and disk as they were."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.config import ConsentConfig
from quietchoir.core.errors import ConfigError, FederationError, MessageError, RosterError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.aggregation.base import Contributors
from quietchoir.federation.aggregation.secagg import encode_contributors
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.spec.policy import ModelTable
from quietchoir.federation.store.ledger import AnsweredRounds
from quietchoir.federation.store.member import FILE, open_member
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import Reply, RoundId, Task
from quietchoir.tests.fakes.federation import ANY_MODE, FixedLearner, House, clients, house
from quietchoir.tests.fakes.store import contents, query

SIZE = 50
RUN = "0a" * 16


@pytest.fixture
def home() -> House:
    return house(mode="masked", recipe={"download": "adapter"})


@pytest.fixture
def ann(home: House, tmp_path: Path) -> Client:
    return clients(home, SIZE, folder=tmp_path)["ann"]


def order(home: House, **changes: object) -> bytes:
    """Work for everybody, unless changed."""
    fields = {"flat": np.zeros(SIZE, np.float32), "cohort": tuple(sorted(home.members)), **changes}
    return messages.encode_work(messages.Work(**fields))  # type: ignore[arg-type]


def letter(
    home: House, *, signer: Identity | None = None, policy: object = None, **changes: object
) -> bytes:
    """A good first message to ann, unless changed."""
    payload = order(home)
    fields = {
        "round_id": RoundId(RUN, 1, 1),
        "stage": messages.TRAIN,
        "recipient": "ann",
        "payload": payload,
        **changes,
    }
    task, key = Task(**fields), signer or home.coordinator  # type: ignore[arg-type]
    return messages.encode_task(task, policy or home.policy, key)  # type: ignore[arg-type]


def snapshot(client: Client, folder: Path) -> object:
    """Everything a refused message must not change."""
    files = contents(folder)
    attempt = None if client.attempt is None else (client.attempt.round_id, client.attempt.done)
    return (
        files,
        attempt,
        dict(client.ledger.marks),
        client.ledger.sums.snapshot(),
        len(client.learner.trained),  # type: ignore[attr-defined]
    )


BAD: dict[str, Callable[[House], bytes]] = {
    "unsigned": lambda home: letter(home)[:-64] + bytes(64),
    "signed by a member": lambda home: letter(home, signer=home.members["ben"]),
    "of another federation": lambda home: letter(
        home, policy=dataclasses.replace(home.policy, nonce="02" * 16)
    ),
    "on another model": lambda home: letter(
        home, policy=dataclasses.replace(home.policy, model=ModelTable(digest="cd" * 32))
    ),
    "under another version": lambda home: letter(
        home, policy=dataclasses.replace(home.policy, version=2)
    ),
    "for somebody else": lambda home: letter(home, recipient="ben"),
    "of an unknown stage": lambda home: letter(home, stage="confess"),
    "of a later stage": lambda home: letter(home, stage="unmask"),
    "with a short adapter": lambda home: letter(
        home, payload=order(home, flat=np.zeros(SIZE - 1, np.float32))
    ),
    "with an infinite adapter": lambda home: letter(
        home, payload=order(home, flat=np.full(SIZE, np.inf, np.float32))
    ),
    "for nobody": lambda home: letter(home, payload=order(home, cohort=())),
    "for a cohort without us": lambda home: letter(
        home, payload=order(home, cohort=("ben", "cat", "dan"), absent=("ann",))
    ),
    "for a cohort with a stranger": lambda home: letter(
        home, payload=order(home, cohort=("ann", "ben", "cat", "zoe"))
    ),
    "for a cohort of our choice": lambda home: letter(
        home, payload=order(home, cohort=("ann", "ben", "cat"))
    ),
    "for too few": lambda home: letter(
        home, payload=order(home, cohort=("ann", "ben"), absent=("cat", "dan"))
    ),
    "with ranges nobody agreed on": lambda home: letter(
        home, payload=order(home, ranges=((SIZE, 0.1),))
    ),
    "to undo a step": lambda home: letter(home, stage=messages.UNDO),
    "truncated": lambda home: letter(home)[:-70],
    "empty": lambda home: b"",
    "a reply": lambda home: messages.encode_reply(
        Reply(
            round_id=RoundId(RUN, 1, 1), stage=messages.TRAIN, sender="ann", task="", payload=b""
        ),
        home.policy,
        home.coordinator,
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_letter_is_refused_and_changes_nothing(
    home: House, ann: Client, tmp_path: Path, kind: str
) -> None:
    before = snapshot(ann, tmp_path)
    with pytest.raises(MessageError, match=r"refused|give both the newest file"):
        ann.handle(BAD[kind](home))
    assert snapshot(ann, tmp_path) == before
    ann.handle(letter(home))  # and the good one still works


def test_no_changed_byte_is_accepted(home: House, ann: Client) -> None:
    good = letter(home)
    for at in [*range(0, len(good), 37), len(good) - 1]:
        changed = bytearray(good)
        changed[at] ^= 1
        with pytest.raises(MessageError):
            ann.handle(bytes(changed))
    assert ann.learner.trained == []  # type: ignore[attr-defined]


def test_a_replayed_letter_changes_nothing_even_after_a_restart(
    home: House, ann: Client, tmp_path: Path
) -> None:
    ann.handle(letter(home, round_id=RoundId(RUN, 2, 1)))
    before = snapshot(ann, tmp_path)
    for round_id in (RoundId(RUN, 2, 1), RoundId(RUN, 1, 9)):
        with pytest.raises(MessageError, match="already answered"):
            ann.handle(letter(home, round_id=round_id))
    assert snapshot(ann, tmp_path) == before
    again = Client(
        home.policy,
        home.members["ann"],
        FixedLearner(),
        size=SIZE,
        consent=ANY_MODE,
        ledger=AnsweredRounds(open_member(tmp_path / "ann")),
    )
    with pytest.raises(MessageError, match="older state"):
        again.handle(letter(home, round_id=RoundId(RUN, 2, 1)))
    again.handle(letter(home, round_id=RoundId(RUN, 2, 2)))


def test_stages_come_in_order_and_once(home: House, ann: Client) -> None:
    ann.handle(letter(home))
    cohort = encode_contributors(Contributors(("ann", "ben", "cat"), ()))
    for stage in ("share", "send", "unmask"):
        with pytest.raises(MessageError, match="expected advertise"):
            ann.handle(letter(home, stage=stage, payload=b""))
    with pytest.raises(MessageError, match="expected advertise of round 1"):
        ann.handle(letter(home, stage="advertise", round_id=RoundId(RUN, 1, 2), payload=cohort))
    ann.handle(letter(home, stage="advertise", payload=cohort))
    with pytest.raises(MessageError, match="expected share"):
        ann.handle(letter(home, stage="advertise", payload=cohort))


@pytest.mark.parametrize(
    "cohort",
    [
        b'{"ready":["ann","ben"],"scoring":[]}',
        b'{"ready":["ben","cat","dan"],"scoring":[]}',
        b'{"ready":["ann","ben","eve"],"scoring":[]}',
        b'{"ready":["ben","ann","cat"],"scoring":[]}',
        b'{"ready":["ann","ann","ben"],"scoring":[]}',
        b'{"ready":["ann","ben","cat"],"scoring":["dan"]}',
        b'{"ready":["ann","ben","cat"],"scoring":["ann"]}',
        b'{"ready":["ann","ben","cat"],"scoring":["cat","ben"]}',
        b'{"ready": ["ann","ben","cat"],"scoring":[]}',
        b'{"ready":["ann","ben","cat"]}',
        b'["ann","ben","cat"]',
        b'{"ready":[1,2,3],"scoring":[]}',
        b"{",
    ],
)
def test_a_cohort_that_the_roster_does_not_allow_is_refused(
    home: House, ann: Client, tmp_path: Path, cohort: bytes
) -> None:
    ann.handle(letter(home))
    before = snapshot(ann, tmp_path)
    with pytest.raises(MessageError, match="refused"):
        ann.handle(letter(home, stage="advertise", payload=cohort))
    assert snapshot(ann, tmp_path) == before


def test_a_reply_counts_only_for_the_task_it_answers(home: House, ann: Client) -> None:
    task, other = letter(home), letter(home, round_id=RoundId(RUN, 1, 2))
    answer = ann.handle(task)
    assert messages.decode_reply(answer, home.policy, task).sender == "ann"
    with pytest.raises(MessageError, match="another task"):
        messages.decode_reply(answer, home.policy, other)
    forged = Reply(
        round_id=RoundId(RUN, 1, 1),
        stage=messages.TRAIN,
        sender="ann",
        task=messages.fingerprint(task),
        payload=b"",
    )
    with pytest.raises(MessageError, match="not signed by ann"):
        messages.decode_reply(
            messages.encode_reply(forged, home.policy, home.members["ben"]), home.policy, task
        )
    with pytest.raises(MessageError, match="was asked"):
        messages.decode_reply(
            ann.handle(letter(home, round_id=RoundId(RUN, 1, 3))),
            home.policy,
            letter(home, recipient="ben"),
        )


def test_a_stranger_cannot_be_a_party(home: House) -> None:
    with pytest.raises(RosterError, match="not in the roster"):
        Client(home.policy, Identity.generate(), FixedLearner(), size=SIZE, consent=ANY_MODE)


def test_a_federation_below_the_owners_floor_is_refused() -> None:
    plain = house(mode="plain")
    with pytest.raises(ConfigError, match=r"consent\.modes"):
        Client(plain.policy, plain.members["ann"], FixedLearner(), size=SIZE)
    masked = house(mode="masked")
    with pytest.raises(ConfigError, match=r"consent\.min_cohort asks for 5"):
        Client(
            masked.policy,
            masked.members["ann"],
            FixedLearner(),
            size=SIZE,
            consent=ConsentConfig(min_cohort=5),
        )


def test_a_damaged_ledger_stops_the_node(tmp_path: Path) -> None:
    open_member(tmp_path).close()
    path = tmp_path / FILE
    whole = path.read_bytes()
    for stump in (b"{", b"no database" * 100, whole[:5000]):
        path.write_bytes(stump)
        with pytest.raises(FederationError, match="damaged"):
            open_member(tmp_path)
        assert path.read_bytes() == stump
    path.write_bytes(whole)
    ledger = AnsweredRounds(open_member(tmp_path))
    ledger.record(RoundId(RUN, 1, 1))
    query(path, "UPDATE records SET digest = x'00' WHERE name = 'last heard'")
    with pytest.raises(FederationError, match="damaged"):
        AnsweredRounds(open_member(tmp_path))


WORK = messages.Work(
    flat=np.array([1, -2.5], np.float32),
    evaluate=True,
    card="é",
    state="ab",
    ranges=((1, 0.1), (2, 1e-07)),
    cohort=("ann", "ben"),
    absent=("cat",),
    round=3,
)
WORK_HEADER = (
    rb'{"absent":["cat"],"card":"\u00e9","cohort":["ann","ben"],"evaluate":true,'
    rb'"ranges":[[1,0.1],[2,1e-07]],"rates":[1.0],"round":3,"state":"ab"}'
)
GROUP = messages.Group(
    version=9,
    state="cd",
    members=(("ann", 3), ("ben", 4)),
    adapters=((3, "x", "y"), (4, "z", "")),
    ranges=((2, 0.25),),
)
GROUP_HEADER = (
    b'{"adapters":[[3,"x","y"],[4,"z",""]],"members":[["ann",3],["ben",4]],'
    b'"ranges":[[2,0.25]],"state":"cd","version":9}'
)
READY = messages.Ready(scores=True, before=(("ann", "ben"), ()), ballot=(-3,))
READY_HEADER = b'{"ballot":[-3],"before":[["ann","ben"],[]],"scores":true}'


def test_every_message_has_the_bytes_that_are_written_here(home: House) -> None:
    length = len(WORK_HEADER).to_bytes(4, "big")
    vector = b"\0\0\x80\x3f\0\0\x20\xc0"
    assert messages.encode_work(WORK) == length + WORK_HEADER + vector
    assert messages.encode_delta_work(WORK, b"steps") == length + WORK_HEADER + b"steps"
    assert messages.encode_train(7, b"work") == b"\0\0\0\0\0\0\0\7work"
    assert messages.encode_offer(7, "aa" * 32, "") == b"\0\0\0\0\0\0\0\7" + b"\xaa" * 32
    assert messages.encode_ready(READY) == READY_HEADER
    assert messages.encode_group(GROUP) == GROUP_HEADER
    task = letter(home, payload=b"payload")
    policy, header = home.policy, task[8:-71]
    assert task[:4] == b"QCM1" and task[4:8] == len(header).to_bytes(4, "big")
    assert header.decode("ascii") == (
        f'{{"attempt":1,"federation":"{policy.federation.hex()}","kind":"task",'
        f'"model":"{policy.model.digest}","policy":"{policy.digest.hex()}","recipient":"ann",'
        f'"round":1,"run":"{RUN}","stage":"train"}}'
    )
    assert task[-71:-64] == b"payload"
    assert task[-64:] == home.coordinator.sign(b"quietchoir task v1", task[:-64])


def test_every_message_is_read_as_it_was_written() -> None:
    read = messages.decode_work(messages.encode_work(WORK), 2)
    assert read.header() == WORK.header() and (read.flat == WORK.flat).all()
    assert messages.decode_ready(READY_HEADER) == READY
    assert messages.decode_group(GROUP_HEADER) == GROUP
    offer = messages.encode_offer(7, "aa" * 32, "bb" * 32)
    assert messages.decode_offer(offer) == (7, ("aa" * 32, "bb" * 32))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"ann"', b"7"),
        (b"[1,0.1]", b"[1]"),
        (b"[1,0.1]", b"[1,0.1,0.1]"),
        (b"[1,0.1]", b"[0.1,1]"),
        (b"0.1", b"NaN"),
        (b"true", b"1"),
        (b'"cohort":["ann","ben"]', b'"cohort":"ann"'),
        (b'"absent":["cat"],', b""),
        (b'"absent"', b'"absint"'),
        (b'{"', b'{"a":0,"'),
        (b'{"', b'{ "'),
        (b"}", b""),
        (b'"ab"', b'"' + bytes([0xFF]) + b'"'),
    ],
)
def test_a_header_with_another_field_or_kind_or_spelling_is_refused(old: bytes, new: bytes) -> None:
    header = WORK_HEADER.replace(old, new)
    assert header != WORK_HEADER
    with pytest.raises(MessageError, match="header of a work is malformed"):
        messages.split_work(len(header).to_bytes(4, "big") + header)
    with pytest.raises(MessageError, match="does not fit"):
        messages.split_work((len(header) + 1).to_bytes(4, "big") + header)
