"""A later federation file, taken by a coordinator and by nodes that run already."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import MessageError, QuietchoirError, RosterError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.aggregation.base import ClientSecrets
from quietchoir.federation.membership import roster
from quietchoir.federation.membership.log import CHANGE, ENROLL, REVOKE, ROTATE, Chain, create_chain
from quietchoir.federation.membership.update import (
    AGAIN_S,
    MAGIC,
    MAX_BYTES,
    UpdateReceiver,
    UpdateSender,
    Watched,
)
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.server_node import renewing
from quietchoir.federation.spec.policy import Member, Policy
from quietchoir.federation.store.client_store import ClientStore
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.events import tables
from quietchoir.tests.fakes.federation import ANY_MODE, FixedLearner, coordinator, house
from quietchoir.tests.fakes.sealed import LocalCryptoWorker

SIZE = 8


class Town:
    """A federation whose file lies on a disk, its members as `UpdateReceiver`, its coordinator over
    a link that can be replaced.
    """

    def __init__(self, folder: Path, mode: str = "plain") -> None:
        self.folder, self.home, self.crypto_worker = (
            folder,
            house(4, mode=mode),
            LocalCryptoWorker(),
        )
        self.chain = create_chain(self.home.policy, self.home.owner)
        self.file, self.events = folder / "federation.toml", list[dict[str, object]]()
        roster.write(self.file, self.chain)
        self.ended: dict[str, QuietchoirError] = {}
        self.nodes = {name: self.node(name, key) for name, key in self.home.members.items()}
        self.link = TakingLink({name: node.handle for name, node in self.nodes.items()})
        self.watched = Watched(self.file, folder / "kept.toml", tables(self.events.append))
        home = dataclasses.replace(self.home, policy=self.chain.policy)
        self.run = coordinator(home, {}, SIZE, link=self.link, crypto_worker=self.crypto_worker)
        told = tables(self.events.append)
        self.run.between = renewing(self.watched, self.run, self.link, told)  # type: ignore[arg-type]

    def node(self, name: str, key: Identity, chain: Chain | None = None) -> UpdateReceiver:
        kept = self.folder / name / "federation.toml"
        policy, client_secrets = (
            roster.adopt(chain or self.chain, kept, ""),
            ClientSecrets(ClientStore(None, SIZE), self.crypto_worker),
        )

        def enter(newest: Policy) -> Callable[[bytes], bytes]:
            return Client(
                newest, key, FixedLearner(), size=SIZE, consent=ANY_MODE, secrets=client_secrets
            ).handle

        return UpdateReceiver(
            policy,
            kept,
            enter,
            taken=lambda newest: None,
            end=lambda why: self.ended.update({name: why}),
        )

    def change(self, kind: str, change: dict[str, Any], successor: Identity | None = None) -> None:
        """The owner signs; the operator puts the file over the coordinator's copy."""
        owner = self.home.owner
        self.chain = self.chain.extended(kind, change, owner, 1, successor)
        self.home.owner = successor or owner
        roster.write(self.file, self.chain)


class TakingLink(InProcessLink):
    """Notes which rosters it was given and who was asked for what."""

    def __init__(self, parties: Mapping[str, Callable[[bytes], bytes]]) -> None:
        super().__init__(parties)
        self.let_in = frozenset(parties)
        self.asked: list[tuple[str, bool]] = []  # member, and whether it was handed a file

    def take(self, policy: Policy) -> None:
        self.let_in = frozenset(member.name for member in policy.members)

    def present(self) -> frozenset[str]:
        return super().present() & self.let_in

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        self.asked += [(name, message.startswith(MAGIC)) for name, message in messages.items()]
        return super().ask(messages, timeout_s)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


def test_a_revoked_node_gets_no_round_and_the_others_go_on(town: Town) -> None:
    town.run.run(1)
    town.change(REVOKE, {"name": "dan"})
    town.link.asked.clear()
    report = town.run.run(2)
    assert report.history[1]["parties"] == ["ann", "ben", "cat"] and report.rounds == 2
    assert not [name for name, _ in town.link.asked if name == "dan"]
    assert {town.nodes[name].policy.version for name in ("ann", "ben", "cat")} == {2}
    renewed = [event for event in town.events if event["event"] == "renewed"]
    assert [(event["version"], event["left"]) for event in renewed] == [(2, ["dan"])]
    assert town.nodes["dan"].policy.version == 1  # it was not even told
    # and handed the file, it finds no place in it
    with pytest.raises(RosterError, match="not in the roster"):
        town.nodes["dan"].handle(MAGIC + town.file.read_bytes())
    assert list(town.ended) == ["dan"]


@pytest.mark.parametrize("mode", ["masked", "sealed"])
def test_under_masks_and_seals_too_the_others_go_on_without_the_revoked(
    tmp_path: Path, mode: str
) -> None:
    town = Town(tmp_path, mode)
    town.run.run(1)
    town.change(REVOKE, {"name": "dan"})
    report = town.run.run(2)
    assert [entry["parties"] for entry in report.history if entry["kind"] == "train"][1] == [
        "ann",
        "ben",
        "cat",
    ]
    assert report.rounds == 2 and report.aborted == []


def test_a_letter_of_a_revoked_coordinator_or_under_the_old_version_is_refused(town: Town) -> None:
    letters: list[bytes] = []
    ann = town.nodes["ann"].handle

    def keep(message: bytes) -> bytes:
        letters.append(message)
        return ann(message)

    town.link.parties["ann"] = keep
    town.run.run(1)
    work = next(message for message in letters if not message.startswith(MAGIC))
    town.change(REVOKE, {"name": "dan"})
    town.nodes["ben"].handle(MAGIC + town.file.read_bytes())
    with pytest.raises(MessageError, match="another version of the federation file"):
        town.nodes["ben"].handle(work)


def test_a_new_member_takes_part_without_anybodys_restart(town: Town) -> None:
    town.run.run(1)
    key = Identity.generate()
    town.change(
        ENROLL, {"member": dataclasses.asdict(Member(name="eve", key=key.public.raw.hex()))}
    )
    town.link.parties["eve"] = town.node("eve", key, town.chain).handle
    assert town.run.run(2).history[1]["parties"] == ["ann", "ben", "cat", "dan", "eve"]


def test_the_owners_key_may_change_hands_between_rounds(town: Town) -> None:
    heir = Identity.generate()
    town.change(ROTATE, {"owner": heir.public.raw.hex()}, heir)
    town.change(REVOKE, {"name": "dan"})
    assert town.run.run(1).history[0]["parties"] == ["ann", "ben", "cat"]
    assert {node.policy.owner for name, node in town.nodes.items() if name != "dan"} == {
        heir.public.raw.hex()
    }


def test_other_rules_end_the_run_after_everybody_has_the_file(town: Town) -> None:
    town.run.run(1)
    before = town.run.state
    town.change(CHANGE, {"recipe": {"lr": 0.5}})
    with pytest.raises(
        RosterError, match="version 2 of choir changes recipe; start this command again"
    ):
        town.run.run(2)
    assert town.run.state == before
    assert sorted(town.ended) == ["ann", "ben", "cat", "dan"]
    assert {str(why) for why in town.ended.values()} == {
        "version 2 of choir changes recipe; start this node again"
    }
    assert {roster.load(town.folder / name / "federation.toml").version for name in town.nodes} == {
        2
    }


def test_a_new_coordinators_key_reaches_the_nodes_before_the_old_one_goes(town: Town) -> None:
    table = dataclasses.asdict(town.chain.policy.coordinator)
    town.change(ROTATE, {"coordinator": {**table, "key": Identity.generate().public.raw.hex()}})
    with pytest.raises(RosterError, match="changes coordinator; start this command again"):
        town.run.run(1)
    assert {node.policy.version for node in town.nodes.values()} == {2} and not town.ended


def test_a_file_that_is_no_successor_is_told_and_left(town: Town) -> None:
    town.change(REVOKE, {"name": "dan"})
    town.run.run(1)
    mine, branch = (
        town.chain,
        create_chain(town.home.policy, town.home.owner).extended(
            REVOKE, {"name": "ann"}, town.home.owner, 1
        ),
    )
    for number, text in enumerate(
        (roster.dump(branch), roster.dump(mine).replace("lr = ", "lr = 1"), "half a fi")
    ):
        town.file.write_text(text, "utf-8")
        assert town.run.run(2 + number).rounds == 2 + number
        assert [event["event"] for event in town.events].count("refused") == 1 + number
        with pytest.raises(RosterError):
            town.nodes["ben"].handle(MAGIC + text.encode("utf-8"))
    assert town.run.policy == mine.policy == town.nodes["ben"].policy
    with pytest.raises(RosterError, match="older than version 2"):
        Watched(
            write(town.folder / "old.toml", mine.entries[:1]),
            town.folder / "kept.toml",
            tables(town.events.append),
        )
    with pytest.raises(MessageError, match="at most"):
        town.nodes["ben"].handle(MAGIC + bytes(MAX_BYTES + 1))


def write(path: Path, entries: tuple[Any, ...]) -> Path:
    roster.write(path, Chain(entries))
    return path


def test_the_run_ends_when_its_file_does(town: Town) -> None:
    town.run.run(1)
    over = dataclasses.replace(town.chain.policy, expires=1_000_000_000)
    town.watched.policy = over  # time passes
    with pytest.raises(RosterError, match="expired on 2001"):
        town.run.run(2)
    town.nodes["ann"].policy = over
    with pytest.raises(RosterError, match="expired on 2001"):
        town.nodes["ann"].handle(b"a letter")


def test_a_member_that_does_not_take_the_file_is_asked_again_later(town: Town) -> None:
    asked: list[list[str]] = []

    def ask(messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        asked.append(list(messages))
        yield "ann", town.chain.policy.digest
        yield "ben", b"something else"

    sender = UpdateSender(town.watched, ask)
    everybody = frozenset({"ann", "ben", "cat"})
    sender.send(everybody)
    sender.send(everybody)
    assert asked == [["ann", "ben", "cat"]]
    sender.tried = {name: since - AGAIN_S for name, since in sender.tried.items()}
    sender.send(everybody)
    sender.renewed()
    sender.send(everybody)
    assert asked[1:] == [["ben", "cat"], ["ben", "cat"]]
