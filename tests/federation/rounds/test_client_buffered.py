"""What a member refuses in buffered rounds: each refusal leaves it as it was, and a contribution
leaves it once.
"""

import dataclasses
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import CryptoError, MessageError, QuietchoirError, RoundAborted
from quietchoir.federation.aggregation.base import Contributors, ServerContext
from quietchoir.federation.aggregation.secagg import MaskedServer
from quietchoir.federation.aggregation.update import Codec, SumContext
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.rounds.contribution_buffer import (
    NAME,
    Contribution,
    ContributionBuffer,
    rules_of,
)
from quietchoir.federation.store.database import Database
from quietchoir.federation.store.member import FILE, open_member
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import Group, RoundId
from quietchoir.tests.fakes.buffered import (
    RUN,
    SIZE,
    ZEROS,
    NapLink,
    answer,
    buffered,
    group_letter,
    group_of,
    member,
    run_of,
    stage_letter,
    train_letter,
)
from quietchoir.tests.fakes.federation import House, clients, trainings
from quietchoir.tests.fakes.store import contents, damage, everywhere, names


def offer(version: int) -> bytes:
    """What a member answers that was told zeros under this version."""
    return messages.encode_offer(
        version, *group_of(version, [("ann", version)]).adapter_of(version)
    )


@pytest.mark.parametrize("state", ["x", "ab", "g" * 64, "AB" * 32, "ab" * 33])
def test_a_state_whose_name_is_none_is_refused(state: str) -> None:
    with pytest.raises(MessageError, match="no digest"):
        messages.check_train(messages.Work(flat=np.zeros(SIZE, np.float32), state=state))
    messages.check_train(messages.Work(flat=np.zeros(SIZE, np.float32), state="ab" * 32))


TRAINED, CALLED = RoundId(RUN, 4, 1), RoundId(RUN, 6, 1)
GROUP = group_of(4, (("ann", 3), ("ben", 4), ("cat", 1)))


@pytest.fixture
def home() -> House:
    return buffered(mode="masked", schedule={"max_staleness": 3})


@pytest.fixture
def ann(home: House, tmp_path: Path) -> Iterator[Client]:
    """A member whose contribution is from version 3."""
    client = member(home, "ann", tmp_path)
    assert answer(home, client, train_letter(home, "ann", TRAINED, 3)) == offer(3)
    yield client


def snapshot(client: Client, folder: Path) -> object:
    """Everything a refused message must not change."""
    files = contents(folder)
    attempt = None if client.attempt is None else (client.attempt.round_id, client.attempt.done)
    assert client.buffer is not None
    kept = client.buffer.look(RUN, rules_of(client.policy))
    starts = len(trainings(client))
    return files, attempt, dict(client.ledger.marks), client.ledger.sums.snapshot(), kept, starts


def spelled(home: House, payload: bytes) -> bytes:
    """A call in these very bytes."""
    return stage_letter(home, "ann", CALLED, messages.GROUP, payload)


BAD: dict[str, Callable[[House], bytes]] = {
    "without this member": lambda home: called(home, ("ben", 4), ("cat", 1), ("dan", 4)),
    "with a stranger": lambda home: called(home, ("ann", 3), ("ben", 4), ("zoe", 4)),
    "of too few": lambda home: called(home, ("ann", 3), ("ben", 4)),
    "from a version it was not handed": lambda home: called(
        home, ("ann", 4), ("ben", 4), ("cat", 1)
    ),
    "with a contribution too stale": lambda home: called(home, ("ann", 3), ("ben", 4), ("cat", 0)),
    "with a contribution from the future": lambda home: called(
        home, ("ann", 3), ("ben", 4), ("cat", 5)
    ),
    "with a negative version": lambda home: called(home, ("ann", 3), ("ben", 4), ("cat", -1)),
    "out of order": lambda home: called(home, ("ben", 4), ("ann", 3), ("cat", 1)),
    "with somebody twice": lambda home: called(home, ("ann", 3), ("ann", 3), ("cat", 1)),
    "with ranges nobody agreed on": lambda home: group_letter(
        home, "ann", CALLED, group_of(4, GROUP.members, ranges=((SIZE, 0.1),))
    ),
    "of more steps than there were rounds": lambda home: group_letter(
        home, "ann", CALLED, group_of(6, (("ann", 3), ("ben", 4), ("cat", 4)))
    ),
    "of another adapter under its version": lambda home: group_letter(
        home,
        "ann",
        CALLED,
        dataclasses.replace(
            GROUP, adapters=(GROUP.adapters[0], (3, "ab" * 32, ZEROS.state), GROUP.adapters[2])
        ),
    ),
    "of another state under its version": lambda home: group_letter(
        home,
        "ann",
        CALLED,
        dataclasses.replace(
            GROUP,
            adapters=(GROUP.adapters[0], (*GROUP.adapters[1][:2], "ab" * 32), GROUP.adapters[2]),
        ),
    ),
    "without an adapter for a version": lambda home: group_letter(
        home, "ann", CALLED, dataclasses.replace(GROUP, adapters=GROUP.adapters[1:])
    ),
    "at a place that was answered": lambda home: group_letter(home, "ann", TRAINED, GROUP),
    "of another run": lambda home: group_letter(home, "ann", RoundId("0b" * 16, 6, 1), GROUP),
    "that is no JSON": lambda home: spelled(home, b"{"),
    "that is another table": lambda home: spelled(home, b'{"members":[]}'),
    "in another spelling": lambda home: spelled(
        home, messages.encode_group(GROUP).replace(b":", b": ", 1)
    ),
    "with a member that is no name": lambda home: spelled(
        home, b'{"adapters":[],"members":[[1,2]],"ranges":[],"version":4}'
    ),
    "with a range that is no number": lambda home: spelled(
        home, b'{"adapters":[],"members":[],"ranges":[[1,NaN]],"version":4}'
    ),
    "of a drawn cohort": lambda home: stage_letter(
        home,
        "ann",
        CALLED,
        messages.TRAIN,
        messages.encode_train(
            4,
            messages.encode_delta_work(
                dataclasses.replace(ZEROS, cohort=("ann", "ben", "cat")), bytes.fromhex(ZEROS.state)
            ),
        ),
    ),
    "to train from a version that cannot be": lambda home: train_letter(home, "ann", CALLED, 6),
    "to train from a short adapter": lambda home: train_letter(
        home, "ann", CALLED, 4, np.zeros(SIZE - 1, np.float32)
    ),
}


def called(home: House, *members: tuple[str, int]) -> bytes:
    """A group of these at version 4."""
    return group_letter(home, "ann", CALLED, group_of(4, members))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_call_is_refused_and_changes_nothing(
    home: House, ann: Client, tmp_path: Path, kind: str
) -> None:
    before = snapshot(ann, tmp_path)
    with pytest.raises(MessageError, match="refused"):
        ann.handle(BAD[kind](home))
    assert snapshot(ann, tmp_path) == before
    # and the good one still works
    assert messages.decode_ready(answer(home, ann, group_letter(home, "ann", CALLED, GROUP)))


def test_a_call_before_there_is_a_contribution_is_refused_and_changes_nothing(
    home: House, tmp_path: Path
) -> None:
    ben = member(home, "ben", tmp_path)
    before = snapshot(ben, tmp_path)
    with pytest.raises(MessageError, match="no contribution to give"):
        ben.handle(group_letter(home, "ben", CALLED, GROUP))
    assert snapshot(ben, tmp_path) == before


def test_a_synchronous_federation_knows_no_groups(tmp_path: Path) -> None:
    home = buffered(mode="masked", schedule={"rounds": "synchronous"})
    ann = member(home, "ann", tmp_path)
    with pytest.raises(MessageError, match="found stage 'group'"):
        ann.handle(group_letter(home, "ann", CALLED, GROUP))


def test_everything_that_a_group_is_told_is_bound_into_its_masks() -> None:
    others = [
        group_of(5, GROUP.members),
        group_of(4, (("ann", 3), ("ben", 4), ("cat", 2))),
        group_of(4, (("ann", 3), ("ben", 4), ("dan", 1))),
        group_of(4, (*GROUP.members, ("dan", 4))),
        group_of(4, GROUP.members, ranges=((SIZE, 0.1),)),
        dataclasses.replace(
            GROUP, adapters=(GROUP.adapters[0], (3, "ab" * 32, ZEROS.state), GROUP.adapters[2])
        ),
    ]
    assert len({group.broadcast_digest for group in (GROUP, *others)}) == 7
    assert all(
        messages.decode_group(messages.encode_group(group)) == group for group in (GROUP, *others)
    )


class Sly:
    """A coordinator's side of one group that says to each member what it likes."""

    def __init__(self, home: House, members: Mapping[str, Client], round_id: RoundId) -> None:
        self.home, self.members, self.round_id = home, members, round_id

    def call(self, told: Mapping[str, Group]) -> None:
        """Tell each member its group."""
        for name, group in told.items():
            assert messages.decode_ready(
                answer(
                    self.home,
                    self.members[name],
                    group_letter(self.home, name, self.round_id, group),
                )
            )

    def sum(
        self, told: bytes, names: tuple[str, ...], until: str = "unmask", silent: str = ""
    ) -> list[str]:
        """Go through the masked stages; the stages that were answered by all that are asked, up
        to `until`.
        """
        policy, done = self.home.policy, list[str]()
        half = MaskedServer(
            ServerContext(
                policy=policy,
                round_id=self.round_id,
                length=Codec(SIZE, policy).length,
                counted=True,
                contributors=Contributors(names),
                asked=len(names),
                sum_context=SumContext(broadcast_digest=told),
            ),
            names,
        )
        step = half.begin()
        while True:
            stage, payloads = step
            for name, payload in payloads.items():
                if (name, stage) != (silent, "consistency") and (name, stage) != (silent, "unmask"):
                    letter = stage_letter(self.home, name, self.round_id, stage, payload)
                    half.receive(name, answer(self.home, self.members[name], letter))
            done.append(stage)
            following = half.advance()
            if following is None or stage == until:
                return done
            step = following


def quartet(home: House, folder: Path) -> dict[str, Client]:
    """Four members with a contribution from version 0 each."""
    members = {name: member(home, name, folder) for name in home.members}
    for name, client in members.items():
        client.handle(train_letter(home, name, RoundId(RUN, 1, 1), 0))
    return members


@pytest.fixture
def four(home: House, tmp_path: Path) -> Iterator[dict[str, Client]]:
    members = quartet(home, tmp_path)
    yield members


def zero(*names: str) -> Group:
    """A group of fresh contributions."""
    return group_of(0, tuple((name, 0) for name in names))


@pytest.mark.parametrize("until", ["mask", "unmask"])
def test_one_contribution_never_goes_into_two_groups(
    home: House, four: dict[str, Client], tmp_path: Path, until: str
) -> None:
    """Attack: two sums that differ in one member give that member away. Also where the first sum
    seemed to come to nothing.
    """
    first = zero("ann", "ben", "cat")
    sly = Sly(home, four, RoundId(RUN, 1, 2))
    sly.call(dict.fromkeys(first.names, first))
    assert sly.sum(first.broadcast_digest, first.names, until)[-1] == until
    before = snapshot(four["ann"], tmp_path)
    for round_id in (RoundId(RUN, 1, 3), RoundId(RUN, 2, 1)):
        with pytest.raises(MessageError, match="the last one has left"):
            four["ann"].handle(group_letter(home, "ann", round_id, zero("ann", "ben", "dan")))
    assert snapshot(four["ann"], tmp_path) == before


def test_a_member_kept_from_the_end_of_its_group_does_not_contribute_again(tmp_path: Path) -> None:
    """Attack: ann is not told that the sum was opened; then it would show the same contribution
    in another one.
    """
    home = buffered(mode="masked", threshold=3)
    four = quartet(home, tmp_path)
    everybody = zero(*home.members)
    sly = Sly(home, four, RoundId(RUN, 1, 2))
    sly.call(dict.fromkeys(everybody.names, everybody))
    # opened, with ann's in it
    assert sly.sum(everybody.broadcast_digest, everybody.names, silent="ann")[-1] == "unmask"
    with pytest.raises(MessageError, match="the last one has left"):
        four["ann"].handle(group_letter(home, "ann", RoundId(RUN, 1, 3), zero("ann", "ben", "cat")))


def test_members_told_different_groups_never_meet_in_a_sum(
    home: House, four: dict[str, Client]
) -> None:
    """Attack: ann is told of a fourth member, whose place in the sum is empty."""
    said, other = zero("ann", "ben", "cat"), zero("ann", "ben", "cat", "dan")
    for told in (said.broadcast_digest, other.broadcast_digest):
        sly = Sly(home, four, RoundId(RUN, 1, 2 if told == said.broadcast_digest else 3))
        sly.call({"ann": other, "ben": said, "cat": said})
        with pytest.raises((CryptoError, RoundAborted)):
            sly.sum(told, said.names)
    assert all(b'"opened": []' in client.ledger.sums.snapshot() for client in four.values())


def test_a_coordinator_that_tells_one_member_of_another_group_gets_no_step(tmp_path: Path) -> None:
    home = buffered(4, mode="masked", threshold=3, recipe={"attempts": 2})
    members = clients(home, SIZE)

    class Equivocator(NapLink):
        def ask(
            self, letters: Mapping[str, bytes], timeout_s: float
        ) -> Iterator[tuple[str, bytes]]:
            return super().ask(
                {name: self.bent(name, letter) for name, letter in letters.items()}, timeout_s
            )

        def bent(self, name: str, letter: bytes) -> bytes:
            fields, payload = messages.split(letter)
            if name != "ben" or fields["stage"] != messages.GROUP:
                return letter
            group = messages.decode_group(payload)
            told = dataclasses.replace(group, members=(*group.members, ("dan", group.version)))
            return group_letter(home, name, messages.round_id_of(fields), told)

    link = Equivocator(members)
    link.asleep = {"dan"}
    run = run_of(home, members, link)
    with pytest.raises(RoundAborted, match="need 3"):
        run.run()
    assert run.state.round == 0 and not run.state.server.flat.any() and len(run.aborted) == 2
    assert all(b'"opened": []' in client.ledger.sums.snapshot() for client in members.values())


def test_a_contribution_outlives_a_kill_until_it_leaves_and_never_after(
    home: House, tmp_path: Path
) -> None:
    members = quartet(home, tmp_path)
    folder = tmp_path / "ann"
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    members["ann"] = member(home, "ann", tmp_path)  # killed and started again
    assert answer(home, members["ann"], train_letter(home, "ann", RoundId(RUN, 2, 1), 1)) == offer(
        0
    )
    assert trainings(members["ann"]) == []  # offered again, as it was
    group = zero("ann", "ben", "cat")
    sly = Sly(home, members, RoundId(RUN, 2, 2))
    sly.call(dict.fromkeys(group.names, group))
    assert sly.sum(group.broadcast_digest, group.names, "share")[-1] == "share" and NAME in names(
        folder
    )
    sly = Sly(home, members, RoundId(RUN, 2, 3))  # an attempt that ended before anything had left
    sly.call(dict.fromkeys(group.names, group))
    sly.sum(group.broadcast_digest, group.names, "mask")
    assert NAME not in names(folder)
    again = member(home, "ann", tmp_path)
    assert answer(home, again, train_letter(home, "ann", RoundId(RUN, 3, 1), 2)) == offer(2)
    assert len(trainings(again)) == 1


def test_what_the_disk_does_not_forget_is_not_sent(
    home: House, four: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = zero("ann", "ben", "cat")
    sly = Sly(home, four, RoundId(RUN, 1, 2))
    sly.call(dict.fromkeys(group.names, group))

    def refuse(database: Database) -> None:
        raise QuietchoirError(f"{database.path}: not wiped")

    monkeypatch.setattr(Database, "scrub", refuse)
    with pytest.raises(QuietchoirError, match="not wiped"):
        sly.sum(group.broadcast_digest, group.names)


def test_what_was_sent_is_nowhere_on_the_disk_any_more(
    home: House, four: dict[str, Client], tmp_path: Path
) -> None:
    ann = four["ann"]
    assert ann.buffer is not None
    kept = ann.buffer.look(RUN, rules_of(ann.policy))
    assert kept is not None
    change = kept.record().body
    assert change in everywhere(tmp_path / "ann")
    group = zero("ann", "ben", "cat")
    sly = Sly(home, four, RoundId(RUN, 1, 2))
    sly.call(dict.fromkeys(group.names, group))
    sly.sum(group.broadcast_digest, group.names)
    assert change not in everywhere(tmp_path / "ann") and NAME not in names(tmp_path / "ann")


def test_a_damaged_record_costs_a_training_and_a_full_disk_keeps_in_memory(
    home: House, tmp_path: Path
) -> None:
    ann = member(home, "ann", tmp_path)
    ann.handle(train_letter(home, "ann", RoundId(RUN, 1, 1), 0))
    assert ann.buffer is not None
    kept = ann.buffer.look(RUN, rules_of(ann.policy))
    damage(tmp_path / "ann", NAME)
    assert ContributionBuffer(open_member(tmp_path / "ann")).look(RUN, rules_of(ann.policy)) is None
    assert (
        isinstance(kept, Contribution) and ann.buffer.look("0b" * 16, rules_of(ann.policy)) is None
    )
    full = open_member(tmp_path / "full")
    full.connection.execute("PRAGMA query_only = ON")
    buffer = ContributionBuffer(full)
    buffer.keep(kept)
    assert buffer.look(RUN, rules_of(ann.policy)) is kept and names(tmp_path / "full") == set()
