"""What crosses the border: refused letters leave memory and disk as they were."""

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
from quietchoir.federation.wire import message, work
from quietchoir.federation.wire.message import Place, Reply, Task
from quietchoir.tests.fakes.federation import ANY_MODE, FixedLearner, House, house, parties
from quietchoir.tests.fakes.store import contents, query

SIZE = 50
RUN = "0a" * 16


@pytest.fixture
def home() -> House:
    return house(mode="masked", recipe={"download": "adapter"})


@pytest.fixture
def ann(home: House, tmp_path: Path) -> Client:
    return parties(home, SIZE, folder=tmp_path)["ann"]


def order(home: House, **changes: object) -> bytes:
    """Work for everybody, unless changed."""
    fields = {"flat": np.zeros(SIZE, np.float32), "cohort": tuple(sorted(home.members)), **changes}
    return work.encode(work.Work(**fields))  # type: ignore[arg-type]


def letter(
    home: House, *, signer: Identity | None = None, policy: object = None, **changes: object
) -> bytes:
    """A good first letter to ann, unless changed."""
    payload = order(home)
    fields = {
        "place": Place(RUN, 1, 1),
        "stage": work.TRAIN,
        "recipient": "ann",
        "payload": payload,
        **changes,
    }
    return message.encode_task(Task(**fields), policy or home.policy, signer or home.coordinator)  # type: ignore[arg-type]


def snapshot(party: Client, folder: Path) -> object:
    """Everything a refused letter must not change."""
    files = contents(folder)
    attempt = None if party.attempt is None else (party.attempt.place, party.attempt.done)
    return (
        files,
        attempt,
        dict(party.ledger.marks),
        party.ledger.sums.snapshot(),
        len(party.learner.trained),  # type: ignore[attr-defined]
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
    "to undo a step": lambda home: letter(home, stage=work.UNDO),
    "truncated": lambda home: letter(home)[:-70],
    "empty": lambda home: b"",
    "a reply": lambda home: message.encode_reply(
        Reply(place=Place(RUN, 1, 1), stage=work.TRAIN, sender="ann", task="", payload=b""),
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
    ann.handle(letter(home, place=Place(RUN, 2, 1)))
    before = snapshot(ann, tmp_path)
    for place in (Place(RUN, 2, 1), Place(RUN, 1, 9)):
        with pytest.raises(MessageError, match="already answered"):
            ann.handle(letter(home, place=place))
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
        again.handle(letter(home, place=Place(RUN, 2, 1)))
    again.handle(letter(home, place=Place(RUN, 2, 2)))


def test_stages_come_in_order_and_once(home: House, ann: Client) -> None:
    ann.handle(letter(home))
    cohort = encode_contributors(Contributors(("ann", "ben", "cat"), ()))
    for stage in ("share", "send", "unmask"):
        with pytest.raises(MessageError, match="expected advertise"):
            ann.handle(letter(home, stage=stage, payload=b""))
    with pytest.raises(MessageError, match="expected advertise of round 1"):
        ann.handle(letter(home, stage="advertise", place=Place(RUN, 1, 2), payload=cohort))
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
    task, other = letter(home), letter(home, place=Place(RUN, 1, 2))
    answer = ann.handle(task)
    assert message.decode_reply(answer, home.policy, task).sender == "ann"
    with pytest.raises(MessageError, match="another task"):
        message.decode_reply(answer, home.policy, other)
    forged = Reply(
        place=Place(RUN, 1, 1),
        stage=work.TRAIN,
        sender="ann",
        task=message.fingerprint(task),
        payload=b"",
    )
    with pytest.raises(MessageError, match="not signed by ann"):
        message.decode_reply(
            message.encode_reply(forged, home.policy, home.members["ben"]), home.policy, task
        )
    with pytest.raises(MessageError, match="was asked"):
        message.decode_reply(
            ann.handle(letter(home, place=Place(RUN, 1, 3))),
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
    ledger.record(Place(RUN, 1, 1))
    query(path, "UPDATE records SET digest = x'00' WHERE name = 'last heard'")
    with pytest.raises(FederationError, match="damaged"):
        AnsweredRounds(open_member(tmp_path))
