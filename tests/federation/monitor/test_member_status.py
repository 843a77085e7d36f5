"""What a node's owner is shown of its part in a federation is what left, and a pause holds."""

import json
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from quietchoir import cli
from quietchoir.core import paths
from quietchoir.core.assistant.context import Message
from quietchoir.core.config import Config, HistoryConfig
from quietchoir.core.errors import DataError, QuietchoirError
from quietchoir.core.history.store import HistoryStore
from quietchoir.federation.client_node import ClientOptions, destination_of
from quietchoir.federation.events import StaysEvent, TrainedEvent, WorkEvent
from quietchoir.federation.membership import consent, founding, ownership, roster
from quietchoir.federation.membership.keys import load_or_create
from quietchoir.federation.monitor.event_printer import sentence
from quietchoir.federation.monitor.member_status import MemberStatus
from quietchoir.federation.rounds.privacy_accountant import PrivacyAccountant
from quietchoir.federation.spec.policy import (
    AdapterTable,
    ModelTable,
    Policy,
    PrivacyTable,
    ProtectionTable,
    Recipe,
)
from quietchoir.federation.store.member import open_member
from quietchoir.federation.store.sent_messages import SentMessages
from quietchoir.federation.transport.node import rested
from quietchoir.federation.wire.messages import RoundId, Task
from quietchoir.node import Membership
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.federation import DIGEST, clients, coordinator, house
from quietchoir.tests.fakes.training import CHATTER

SIZE = 64
NOISE = PrivacyTable(mechanism="skellam", clip=1.0, noise_multiplier=4.0, epsilon=3.0)


@pytest.fixture
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Policy]:
    """A home that accepted a federation, and its policy."""
    home = tmp_path / "home"
    monkeypatch.setenv(paths.HOME_VARIABLE, str(home))
    asked = founding.Founding(
        name="choir",
        address="127.0.0.1:9",
        model=ModelTable(name="own", digest=DIGEST),
        adapter=AdapterTable(),
        protection=ProtectionTable(bits=16),
        recipe=Recipe(),
        privacy=NOISE,
        prompt=CHATTER,
    )
    founding.create_federation(tmp_path / "f", asked)
    file, key = tmp_path / "f" / founding.FILE, tmp_path / "f" / founding.OWNER_KEY
    ownership.enroll(file, key, "ann", load_or_create(home).card)
    return home, roster.accept(file, home)


def status_of(home: Path, config: Config | None = None) -> MemberStatus:
    return MemberStatus(home, config or Config(), lambda _: None)


def test_every_byte_that_leaves_is_written_down_before_it_leaves(tmp_path: Path) -> None:
    home, left = house(4, mode="masked"), [0]
    with closing(open_member(tmp_path)) as database:
        sent = SentMessages(database, now=lambda: 7.0)

        def note(task: Task, size: int) -> None:
            sent.note(task.round_id.run, task.round_id.round, task.stage, "masked", size)

        members = clients(home, SIZE)
        members["ann"].on_answer = note

        def ann(message: bytes) -> bytes:
            answer = members["ann"].handle(message)
            left[0] += len(answer)
            return answer

        handles = {name: one.handle for name, one in members.items()} | {"ann": ann}
        run = coordinator(home, members, SIZE, link=InProcessLink(handles))
        run.train_round()
        run.train_round()
        rounds = sent.rounds()
        assert {one["round"] for one in rounds} == {1, 2}
        assert sum(one["bytes"] for one in rounds) == left[0] > 2 * SIZE
        assert max(rounds[0]["stages"], key=rounds[0]["stages"].get) == "mask"
        assert (rounds[0]["mode"], rounds[0]["at"]) == ("masked", 7.0)

        def refuse(_task: Task, _size: int) -> None:
            raise QuietchoirError("the disk is full")

        members["ann"].on_answer = refuse
        before = left[0]
        run.train_round()
        assert left[0] == before


def test_an_owner_sees_protection_privacy_bytes_and_what_would_train(
    joined: tuple[Path, Policy],
) -> None:
    home, policy = joined
    folder, id = roster.folder(home, policy), policy.federation.hex()
    [row] = status_of(home).federations()
    assert (row["name"], row["mode"], row["bytes"], row["rounds"]) == ("choir", "masked", 0, [])
    assert row["privacy"] == {"epsilon": 0.0, "budget": 3.0, "delta": NOISE.delta}
    # beside a member that runs
    with closing(open_member(folder, id)) as database:
        spent = PrivacyAccountant(policy, SIZE, "ann", database).charge(RoundId("a" * 32, 1, 1))
        SentMessages(database).note("a" * 32, 1, "mask", "masked", 500)
        SentMessages(database).note("a" * 32, 1, "mask", "masked", 500)
        [row] = status_of(home).federations()
        assert spent is not None and row["privacy"]["epsilon"] == spent.epsilon > 0
        assert [one["stages"] for one in row["rounds"]] == [{"mask": 1000}]
    with closing(HistoryStore(home)) as store:
        for place in range(9):
            said = [Message("user", f"{place} and Zaphod?"), Message("assistant", str(place + 1))]
            store.keep(f"talk-{place}", said, source="page")
            store.approve(f"talk-{place}")
        store.consent("source", "page", destination_of(policy))
    words = Config(history=HistoryConfig(words=("Zaphod",)))
    found = status_of(home, words).training(id)
    assert found["train"] + found["test"] == 9 and found["source"] == "conversations"
    assert "Zaphod" not in json.dumps(found["examples"]) and len(found["examples"]) > 0
    with pytest.raises(DataError, match="no member of a federation"):
        status_of(home).training("f" * 64)


def test_the_examples_are_those_that_the_terminal_prints(
    joined: tuple[Path, Policy], capsys: pytest.CaptureFixture[str]
) -> None:
    home, policy = joined
    with closing(HistoryStore(home)) as store:
        for place in range(6):
            said = [Message("user", f"what is {place}?"), Message("assistant", "a number")]
            store.keep(f"talk-{place}", said, source="page")
            store.approve(f"talk-{place}")
        store.consent("source", "page", destination_of(policy))
    found = status_of(home).training(policy.federation.hex())
    assert cli.main(["data", "show", "--for", found["file"]]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["messages"] for line in printed.out.splitlines()] == found["examples"]
    assert found["digest"] in printed.err


def test_a_pause_keeps_a_member_away_until_it_is_taken_back_whichever_process_runs_it(
    joined: tuple[Path, Policy],
) -> None:
    home, policy = joined
    folder, id = roster.folder(home, policy), policy.federation.hex()
    status = status_of(home)
    status.pause(id, True)
    status.pause(id, True)
    assert status_of(home).federations()[0]["paused"]
    told: list[object] = []

    class Leave:
        """Told to leave at the first wait."""

        def wait(self, _seconds: float) -> bool:
            return True

    why = partial(consent.why_paused, folder)
    assert not rested(why, Leave(), told.append) and len(told) == 1  # type: ignore[arg-type]
    status.pause(id, False)
    assert rested(why, Leave(), told.append) and len(told) == 1  # type: ignore[arg-type]
    assert not status.federations()[0]["paused"]


def test_a_pause_in_the_terminal_is_that_of_the_page(
    joined: tuple[Path, Policy], capsys: pytest.CaptureFixture[str]
) -> None:
    home, policy = joined
    for words in (["choir"], [], [policy.federation.hex()[:8]]):
        assert cli.main(["federation", "pause", *words]) == 0
        assert status_of(home).federations()[0]["paused"]
        assert "choir: paused" in capsys.readouterr().out
        assert cli.main(["federation", "status"]) == 0
        assert "; paused: nothing is trained or sent" in capsys.readouterr().out
        assert cli.main(["federation", "resume", *words]) == 0
        assert not status_of(home).federations()[0]["paused"]
    assert cli.main(["federation", "pause", "another"]) == 2
    assert "this node is a member of choir" in capsys.readouterr().err
    assert not status_of(home).federations()[0]["paused"]
    capsys.readouterr()
    assert cli.main(["federation", "status"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"choir ({policy.federation.hex()[:8]})") and "paused" not in shown


def test_a_node_in_no_federation_is_told_so_and_not_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    assert cli.main(["federation", "pause"]) == 2
    assert cli.main(["federation", "status"]) == 0
    told = capsys.readouterr()
    assert "member of no federation" in told.err and "name one" not in told.err
    assert told.out.startswith("this node is a member of no federation")


def test_a_node_that_serves_is_not_told_of_flags_of_join(tmp_path: Path) -> None:
    membership = Membership(ClientOptions(file=tmp_path, data=None, home=tmp_path), Config())
    membership.tell(StaysEvent())
    assert membership.latest["words"] == "this node stays for the next run"
    assert membership.latest["event"] == "stays" and "--once" in str(sentence(StaysEvent()))
    membership.tell(WorkEvent(stage="train", round=2, attempt=1))
    told = membership.latest
    assert (told["words"], told["event"], told["round"]) == ("round 2: training", "train", 2)
    membership.tell(TrainedEvent(round=2, loss=float("nan"), tokens=9))
    json.dumps(membership.latest, allow_nan=False)  # what the page can read
