"""The chain of a federation file: what it allows, what it refuses, and what an owner's acts
leave on the disk.
"""

import dataclasses
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import AuthenticationError, ConfigError, RosterError
from quietchoir.crypto.identity import keyfile
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.membership import locking, log, ownership, roster
from quietchoir.federation.membership.founding import (
    COORDINATOR_KEY,
    FILE,
    OWNER_KEY,
    TLS_KEY,
    create_federation,
)
from quietchoir.federation.membership.keys import NodeKeys, load_or_create
from quietchoir.federation.membership.log import (
    CHANGE,
    ENROLL,
    REVOKE,
    ROTATE,
    Chain,
    Entry,
    create_chain,
    sign,
)
from quietchoir.federation.membership.unlock import VARIABLE, Lock
from quietchoir.federation.spec.policy import Member
from quietchoir.tests.fakes.federation import House, house
from quietchoir.tests.federation.membership.test_roster import founding

PAST, FUTURE = 1_000_000_000, int(time.time()) + 10**6


def member(name: str, **more: Any) -> dict[str, Any]:
    return dataclasses.asdict(Member(name=name, key=Identity.generate().public.raw.hex(), **more))


@pytest.fixture
def home() -> House:
    return house()


@pytest.fixture
def chain(home: House) -> Chain:
    return create_chain(home.policy, home.owner)


@pytest.fixture
def keys(tmp_path: Path) -> NodeKeys:
    return load_or_create(tmp_path / "node")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A founded federation of one member, ann."""
    create_federation(tmp_path / "f", founding())
    path = tmp_path / "f" / FILE
    ownership.enroll(path, path.parent / OWNER_KEY, "ann", load_or_create(tmp_path / "ann").card)
    return path


def key_of(file: Path) -> Path:
    return file.parent / OWNER_KEY


def test_every_change_is_an_entry_and_the_policy_follows_from_them(
    home: House, chain: Chain
) -> None:
    zoe = member("zoe")
    later = chain.extended(ENROLL, {"member": zoe}, home.owner, 7).extended(
        REVOKE, {"name": "ann"}, home.owner, 8
    )
    later = later.extended(CHANGE, {"recipe": {"rounds": 9}}, home.owner, 9)
    assert [one.kind for one in later.changes] == ["found", "enroll", "revoke", "change"]
    assert later.policy.version == 4 and later.policy.head == later.entries[-1].digest
    assert [one.name for one in later.policy.members] == ["ben", "cat", "dan", "zoe"]
    assert (later.policy.recipe.rounds, later.policy.recipe.lr) == (9, chain.policy.recipe.lr)
    assert (
        later.policy.federation == chain.policy.federation
        and later.policy.digest != chain.policy.digest
    )
    assert Chain(later.entries).policy == later.policy


def test_a_key_that_was_revoked_or_rotated_away_never_comes_back(home: House, chain: Chain) -> None:
    ann = dataclasses.asdict(home.policy.members[0])
    revoked = chain.extended(REVOKE, {"name": "ann"}, home.owner, 1)
    rotated = chain.extended(ROTATE, {"member": member("ann")}, home.owner, 1)
    for later, change in ((revoked, {**ann, "name": "ada"}), (rotated, {**ann, "name": "ada"})):
        with pytest.raises(RosterError, match="is or was in this federation"):
            later.extended(ENROLL, {"member": change}, home.owner, 2)
    with pytest.raises(RosterError, match="is or was in this federation"):
        rotated.extended(ROTATE, {"member": ann}, home.owner, 2)


@pytest.mark.parametrize(
    "kind, change, words",
    [
        (ENROLL, {"member": {"name": "ann", "key": "cd" * 32}}, "ann is enrolled already"),
        (REVOKE, {"name": "zoe"}, "zoe is not in the roster"),
        (ROTATE, {"member": {"name": "zoe", "key": "cd" * 32}}, "zoe is not in the roster"),
        (CHANGE, {"model": {"digest": "cd" * 32}}, "model cannot be changed"),
        (CHANGE, {"members": []}, "members cannot be changed"),
        (CHANGE, {"coordinator": {"key": "cd" * 32}}, "coordinator cannot be changed"),
        (ENROLL, {"name": "zoe"}, "malformed"),
        ("elect", {}, "malformed"),
    ],
)
def test_an_entry_that_its_predecessors_do_not_allow_is_refused(
    home: House, chain: Chain, kind: str, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(RosterError, match=words):
        chain.extended(kind, change, home.owner, 1)


def test_only_the_owner_of_the_moment_signs(home: House, chain: Chain) -> None:
    heir, thief = Identity.generate(), Identity.generate()
    change = {"owner": heir.public.raw.hex()}
    with pytest.raises(RosterError, match="another key"):
        chain.extended(REVOKE, {"name": "ann"}, thief, 1)
    forged = sign(2, REVOKE, 1, chain.entries[0].digest, {"name": "ann"}, thief)
    with pytest.raises(RosterError, match="signature of entry 2"):
        Chain((*chain.entries, forged))
    with pytest.raises(RosterError, match="signature of entry 2"):  # the heir has not accepted
        chain.extended(ROTATE, change, home.owner, 1)
    passed = chain.extended(ROTATE, change, home.owner, 1, heir)
    assert (
        passed.policy.federation == chain.policy.federation
        and passed.policy.owner == heir.public.raw.hex()
    )
    assert passed.extended(REVOKE, {"name": "ann"}, heir, 2).policy.version == 3
    with pytest.raises(RosterError, match="another key"):
        passed.extended(REVOKE, {"name": "ann"}, home.owner, 2)


def test_entries_cannot_be_dropped_swapped_or_rewritten(home: House, chain: Chain) -> None:
    later = chain.extended(REVOKE, {"name": "ann"}, home.owner, 1).extended(
        REVOKE, {"name": "ben"}, home.owner, 2
    )
    one, two, three = later.entries
    for entries in ((one, three), (two, three), (one, three, two), (one, two, two), (one, one)):
        with pytest.raises(RosterError, match="does not follow"):
            Chain(entries)
    rewritten = Entry(two.text.replace('"ann"', '"ben"'), two.signature)
    with pytest.raises(RosterError, match="signature of entry 2"):
        Chain((one, rewritten))
    for text in ("{}", "[", two.text + " ", two.text.replace('"at":1', '"at":"1"')):
        with pytest.raises(RosterError, match="malformed"):
            Chain((one, Entry(text, two.signature)))


def test_a_member_whose_time_is_over_is_none(home: House, chain: Chain) -> None:
    policy = chain.extended(ENROLL, {"member": member("old", expires=PAST)}, home.owner, 1).policy
    policy = dataclasses.replace(
        policy, members=(*policy.members, Member(**member("new", expires=FUTURE)))
    )
    assert policy.member("old") is None and policy.member("new") is not None
    key = bytes.fromhex(policy.members[-2].key)
    assert policy.name_of(key) is None
    with pytest.raises(RosterError, match="old's key expired on 2001-09-09"):
        roster.check_member(policy, key)
    with pytest.raises(RosterError, match="is not in the roster"):
        roster.check_member(policy, bytes(32))


def test_a_file_whose_time_is_over_is_refused(home: House, chain: Chain, tmp_path: Path) -> None:
    roster.write(tmp_path / FILE, chain.extended(CHANGE, {"expires": PAST}, home.owner, 1))
    for take in (roster.load, lambda path: roster.accept(path, tmp_path / "node")):
        with pytest.raises(RosterError, match="version 2 expired on 2001-09-09"):
            take(tmp_path / FILE)
    assert not (tmp_path / "node").exists()
    assert roster.read(tmp_path / FILE).policy.version == 2  # its owner can still renew it


def test_the_owners_key_is_rotated_and_the_old_one_signs_no_more(file: Path) -> None:
    old, before = key_of(file).read_bytes(), roster.load(file)
    after = ownership.rotate_owner(file, key_of(file))
    assert after.federation == before.federation and after.owner != before.owner
    assert ownership.revoke(file, key_of(file), "ann", "lost laptop").members == ()
    (file.parent / "old.key").write_bytes(old)
    (file.parent / "old.key").chmod(0o600)
    kept = file.read_bytes()
    with pytest.raises(RosterError, match="another key"):
        ownership.change(file, file.parent / "old.key", {"recipe": {"rounds": 3}})
    assert file.read_bytes() == kept


def test_the_coordinators_keys_are_rotated_together_with_what_names_them(file: Path) -> None:
    folder, before = file.parent, roster.load(file).coordinator
    after = ownership.rotate_coordinator(file, key_of(file), folder).coordinator
    assert (
        after.key != before.key
        and Identity.load(folder / COORDINATOR_KEY).public.raw.hex() == after.key
    )
    moved = ownership.rotate_certificate(file, key_of(file), folder, "localhost:9000").coordinator
    assert (moved.address, moved.key) == ("localhost:9000", after.key)
    assert ownership.tls_public(folder / TLS_KEY) == ownership.certificate_public(moved.certificate)
    assert not list(folder.glob("*.next"))


def test_a_rotation_that_was_killed_half_way_is_finished(file: Path) -> None:
    folder, old = file.parent, (file.parent / COORDINATOR_KEY).read_bytes()
    policy = ownership.rotate_coordinator(file, key_of(file), folder)
    # killed before the key took its place
    (folder / COORDINATOR_KEY).rename(folder / (COORDINATOR_KEY + ownership.NEXT))
    (folder / COORDINATOR_KEY).write_bytes(old)
    ownership.settle(folder, policy)
    assert Identity.load(folder / COORDINATOR_KEY).public.raw.hex() == policy.coordinator.key
    # killed before the file was written: of no use
    Identity.generate().save(folder / (COORDINATOR_KEY + ownership.NEXT))
    ownership.settle(folder, policy)
    assert Identity.load(folder / COORDINATOR_KEY).public.raw.hex() == policy.coordinator.key


def test_a_key_that_replaces_a_locked_one_is_locked_alike(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = file.parent
    monkeypatch.setattr(keyfile, "SCRYPT_COST", 1 << 4)  # fourteen files are opened
    monkeypatch.setenv(VARIABLE, "correct horse")
    locking.protect(folder, Lock(passphrase="correct horse"))
    ownership.rotate_owner(file, key_of(file))
    ownership.rotate_coordinator(file, key_of(file), folder)
    ownership.rotate_certificate(file, key_of(file), folder)
    assert {path.read_bytes().partition(b"\n")[0][-6:] for path in folder.glob("*.key")} == {
        b"scrypt"
    }
    assert not list(folder.glob("*.next"))
    kept = file.read_bytes()
    monkeypatch.setenv(VARIABLE, "wrong")
    with pytest.raises(AuthenticationError):
        ownership.rotate_coordinator(file, key_of(file), folder)
    assert file.read_bytes() == kept and not list(folder.glob("*.next"))


def stolen_file(home: House, thief: Identity, **change: object) -> Chain:
    """What somebody without the founder's key can write under `home`'s number. Raises as
    `Chain`.
    """
    table = {
        key: value for key, value in home.policy.table().items() if key not in ("version", "head")
    }
    table |= {
        "founder": home.policy.owner,
        "owner": thief.public.raw.hex(),
        "members": [],
        **change,
    }
    return Chain((sign(1, "found", 0, "", table, thief),))


def test_a_file_under_a_foreign_number_is_refused_before_anything_is_kept(
    home: House, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thief, node, file = Identity.generate(), tmp_path / "node", tmp_path / "foreign.toml"
    coordinator = dataclasses.asdict(home.policy.coordinator) | {
        "key": Identity.generate().public.raw.hex()
    }
    taken: tuple[dict[str, Any], ...] = (
        {},
        {"coordinator": coordinator},
        {"members": [member("eve")]},
    )
    for change in taken:
        with pytest.raises(
            RosterError, match="entry 1, found: the federation's number belongs to key"
        ):
            stolen_file(home, thief, **change)
    for change in (
        {"owner": home.policy.owner},
        {"founder": home.policy.owner, "owner": home.policy.owner},
    ):
        with pytest.raises(RosterError, match="signature of entry 1"):
            stolen_file(home, thief, **change)
    for founder in ("", home.policy.owner.upper(), " " + home.policy.owner):
        with pytest.raises((RosterError, ConfigError)):
            stolen_file(home, thief, founder=founder, owner=home.policy.owner)
    # the unprotected arm: without the check it is a file like any other
    with monkeypatch.context() as blind:
        blind.setattr(log, "STEPS", log.STEPS | {"found": found_unchecked})
        forged = stolen_file(home, thief, coordinator=coordinator)
        assert forged.policy.federation == home.policy.federation
        roster.write(file, forged)
        assert roster.accept(file, tmp_path / "victim").coordinator.key == coordinator["key"]
    for take in (roster.read, roster.load, lambda path: roster.accept(path, node)):
        with pytest.raises(RosterError, match="this is not that federation's file"):
            take(file)
    with pytest.raises(RosterError, match="this is not that federation's file"):
        # as a running member takes one from the coordinator
        roster.read_text(file.read_bytes(), "")
    assert not node.exists()
    true = tmp_path / "true.toml"
    roster.write(true, chain)
    assert roster.accept(true, node).coordinator.key == home.policy.coordinator.key
    with pytest.raises(
        RosterError, match="the copy that this node kept: if the file at hand is right, remove it"
    ):
        roster.accept(true, tmp_path / "victim")


def found_unchecked(history: Any, change: dict[str, Any]) -> None:
    history.table = dict(change)


def spoiled(text: bytes, dice: random.Random) -> bytes:
    """`text` with something wrong in it."""
    at, end = sorted(dice.sample(range(len(text)), 2))
    end = min(end, at + 200)
    match dice.randrange(4):
        case 0:
            return text[:at] + bytes([dice.randrange(256)]) + text[at + 1 :]
        case 1:
            return text[:at] + text[end:]
        case 2:
            return text[:end] + text[at:end] + text[end:]
    lines = text.splitlines(keepends=True)
    dice.shuffle(lines)
    return b"".join(lines)


@pytest.mark.fuzz
def test_a_spoiled_file_is_refused_or_says_the_same(home: House, chain: Chain) -> None:
    later = chain.extended(REVOKE, {"name": "ann"}, home.owner, 1).extended(
        CHANGE, {"recipe": {"rounds": 9}}, home.owner, 2
    )
    text, dice, refused = roster.dump(later).encode("utf-8"), random.Random(5), 0
    cases = 5000 if os.environ.get("QUIETCHOIR_FUZZ") == "full" else 500
    for _ in range(cases):
        try:
            # a comment, or a space
            assert roster.read_text(spoiled(text, dice), "").policy == later.policy
        except (RosterError, ConfigError):
            refused += 1
    assert refused > 0.8 * cases
