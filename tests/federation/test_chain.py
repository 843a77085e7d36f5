"""The chain of a federation file: what it allows, what it refuses, and what an owner's acts leave on the disk."""

import dataclasses
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import AuthenticationError, ConfigError, RosterError
from quietchoir.crypto import keyfile
from quietchoir.crypto.keys import Identity
from quietchoir.federation.membership import invitation, locking, owner, roster
from quietchoir.federation.membership.chain import CHANGE, ENROLL, REVOKE, ROTATE, Chain, Entry, found, sign
from quietchoir.federation.membership.founding import COORDINATOR_KEY, FILE, OWNER_KEY, TLS_KEY
from quietchoir.federation.membership.founding import found as found_folder
from quietchoir.federation.membership.identity import NodeKeys, load_or_create
from quietchoir.federation.membership.policy import Member
from quietchoir.federation.membership.unlock import VARIABLE, Lock
from quietchoir.tests.fakes_federation import House, house
from quietchoir.tests.federation.test_roster import founding

PAST, FUTURE = 1_000_000_000, int(time.time()) + 10**6


def member(name: str, **more: Any) -> dict[str, Any]:
    return dataclasses.asdict(Member(name=name, key=Identity.generate().public.raw.hex(), **more))


@pytest.fixture
def home() -> House:
    return house()


@pytest.fixture
def chain(home: House) -> Chain:
    return found(home.policy, home.owner)


@pytest.fixture
def keys(tmp_path: Path) -> NodeKeys:
    return load_or_create(tmp_path / "node")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A founded federation of one member, ann."""
    found_folder(tmp_path / "f", founding())
    path = tmp_path / "f" / FILE
    owner.enroll(path, path.parent / OWNER_KEY, "ann", load_or_create(tmp_path / "ann").card)
    return path


def key_of(file: Path) -> Path:
    return file.parent / OWNER_KEY


def test_every_change_is_an_entry_and_the_policy_follows_from_them(home: House, chain: Chain) -> None:
    zoe = member("zoe")
    later = chain.extended(ENROLL, {"member": zoe}, home.owner, 7).extended(REVOKE, {"name": "ann"}, home.owner, 8)
    later = later.extended(CHANGE, {"recipe": {"rounds": 9}}, home.owner, 9)
    assert [one.kind for one in later.changes] == ["found", "enroll", "revoke", "change"]
    assert later.policy.version == 4 and later.policy.head == later.entries[-1].digest
    assert [one.name for one in later.policy.members] == ["ben", "cat", "dan", "zoe"]
    assert (later.policy.recipe.rounds, later.policy.recipe.lr) == (9, chain.policy.recipe.lr)
    assert later.policy.federation == chain.policy.federation and later.policy.digest != chain.policy.digest
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
    assert passed.policy.federation == chain.policy.federation and passed.policy.owner == heir.public.raw.hex()
    assert passed.extended(REVOKE, {"name": "ann"}, heir, 2).policy.version == 3
    with pytest.raises(RosterError, match="another key"):
        passed.extended(REVOKE, {"name": "ann"}, home.owner, 2)


def test_entries_cannot_be_dropped_swapped_or_rewritten(home: House, chain: Chain) -> None:
    later = chain.extended(REVOKE, {"name": "ann"}, home.owner, 1).extended(REVOKE, {"name": "ben"}, home.owner, 2)
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
    policy = dataclasses.replace(policy, members=(*policy.members, Member(**member("new", expires=FUTURE))))
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
    after = owner.rotate_owner(file, key_of(file))
    assert after.federation == before.federation and after.owner != before.owner
    assert owner.revoke(file, key_of(file), "ann", "lost laptop").members == ()
    (file.parent / "old.key").write_bytes(old)
    (file.parent / "old.key").chmod(0o600)
    kept = file.read_bytes()
    with pytest.raises(RosterError, match="another key"):
        owner.change(file, file.parent / "old.key", {"recipe": {"rounds": 3}})
    assert file.read_bytes() == kept


def test_the_coordinators_keys_are_rotated_together_with_what_names_them(file: Path) -> None:
    folder, before = file.parent, roster.load(file).coordinator
    after = owner.rotate_coordinator(file, key_of(file), folder).coordinator
    assert after.key != before.key and Identity.load(folder / COORDINATOR_KEY).public.raw.hex() == after.key
    moved = owner.rotate_certificate(file, key_of(file), folder, "localhost:9000").coordinator
    assert (moved.address, moved.key) == ("localhost:9000", after.key)
    assert owner.tls_public(folder / TLS_KEY) == owner.certificate_public(moved.certificate)
    assert not list(folder.glob("*.next"))


def test_a_rotation_that_was_killed_half_way_is_finished(file: Path) -> None:
    folder, old = file.parent, (file.parent / COORDINATOR_KEY).read_bytes()
    policy = owner.rotate_coordinator(file, key_of(file), folder)
    (folder / COORDINATOR_KEY).rename(folder / (COORDINATOR_KEY + owner.NEXT))  # killed before the key took its place
    (folder / COORDINATOR_KEY).write_bytes(old)
    owner.settle(folder, policy)
    assert Identity.load(folder / COORDINATOR_KEY).public.raw.hex() == policy.coordinator.key
    Identity.generate().save(folder / (COORDINATOR_KEY + owner.NEXT))  # killed before the file was written: of no use
    owner.settle(folder, policy)
    assert Identity.load(folder / COORDINATOR_KEY).public.raw.hex() == policy.coordinator.key


def test_a_key_that_replaces_a_locked_one_is_locked_alike(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = file.parent
    monkeypatch.setattr(keyfile, "SCRYPT_COST", 1 << 4)  # fourteen files are opened
    monkeypatch.setenv(VARIABLE, "correct horse")
    locking.protect(folder, Lock(passphrase="correct horse"))
    owner.rotate_owner(file, key_of(file))
    owner.rotate_coordinator(file, key_of(file), folder)
    owner.rotate_certificate(file, key_of(file), folder)
    assert {path.read_bytes().partition(b"\n")[0][-6:] for path in folder.glob("*.key")} == {b"scrypt"}
    assert not list(folder.glob("*.next"))
    kept = file.read_bytes()
    monkeypatch.setenv(VARIABLE, "wrong")
    with pytest.raises(AuthenticationError):
        owner.rotate_coordinator(file, key_of(file), folder)
    assert file.read_bytes() == kept and not list(folder.glob("*.next"))


def test_an_invited_node_is_enrolled_once_under_the_name_it_was_invited_as(file: Path, keys: NodeKeys, tmp_path: Path) -> None:
    policy = roster.load(file)
    token = invitation.invite(policy, file.parent, "zoe", 7)
    said, answer = invitation.accept(token, keys.card, tmp_path / "node")
    assert (said.title, said.name) == ("choir", "zoe")
    assert said.seed not in repr(said) and said.seed not in answer
    name, card, used, _ = invitation.check(answer + "\n", policy, file.parent)
    assert (name, card) == ("zoe", keys.card)
    later = owner.enroll(file, key_of(file), name, card, invitation=used)
    copy = (file.parent / invitation.OPEN_FILE).read_bytes()
    invitation.close(file.parent, used)
    _, second = invitation.accept(token, load_or_create(tmp_path / "thief").card, tmp_path / "thief")
    with pytest.raises(RosterError, match="no open invitation"):
        invitation.check(second, later, file.parent)
    (file.parent / invitation.OPEN_FILE).write_bytes(copy)  # an old copy of the list does not bring it back
    _, card, used, _ = invitation.check(second, later, file.parent)
    with pytest.raises(RosterError, match="was used already"):
        owner.enroll(file, key_of(file), "eve", card, invitation=used)
    assert roster.load(file) == later


def test_an_answer_that_was_changed_late_or_for_another_federation_is_refused(
    file: Path, keys: NodeKeys, tmp_path: Path
) -> None:
    policy = roster.load(file)
    token = invitation.invite(policy, file.parent, "zoe", 7)
    _, answer = invitation.accept(token, keys.card, tmp_path / "node")
    thief = load_or_create(tmp_path / "thief").card
    fields = dataclasses.asdict(invitation.unpack(invitation.ANSWER, answer, invitation.Answer, "answer"))
    swapped = invitation.pack(invitation.ANSWER, {**fields, "card": thief.text})
    other = dataclasses.replace(policy, nonce="02" * 16)
    for text, of in ((swapped, policy), (answer, other)):
        with pytest.raises(RosterError, match="changed on its way"):
            invitation.check(text, of, file.parent)
    (file.parent / invitation.OPEN_FILE).write_text(
        (file.parent / invitation.OPEN_FILE)
        .read_text()
        .replace(str(invitation.pending(file.parent).popitem()[1].expires), str(PAST))
    )
    with pytest.raises(RosterError, match="ended on 2001-09-09"):
        invitation.check(answer, policy, file.parent)
    for text in ("", answer, "qci1-!!!!", token[:-9], "qci1-" + "A" * 5000):
        with pytest.raises(ConfigError, match="no invitation"):
            invitation.accept(text, keys.card, tmp_path / "node")
    with pytest.raises(ConfigError, match="above 0"):
        invitation.invite(policy, file.parent, "eve", 0)


def test_a_file_of_the_same_name_by_another_owner_is_not_joined(file: Path, keys: NodeKeys, tmp_path: Path) -> None:
    policy = roster.load(file)
    invitation.accept(invitation.invite(policy, file.parent, "zoe", 7), keys.card, tmp_path / "node")
    invitation.check_invited(policy, tmp_path / "node")
    invitation.check_invited(house().policy, tmp_path / "elsewhere")
    with pytest.raises(RosterError, match="not the federation that the invitation was for"):
        invitation.check_invited(house().policy, tmp_path / "node")


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
    later = chain.extended(REVOKE, {"name": "ann"}, home.owner, 1).extended(CHANGE, {"recipe": {"rounds": 9}}, home.owner, 2)
    text, dice, refused = roster.dump(later).encode("utf-8"), random.Random(5), 0
    cases = 5000 if os.environ.get("QUIETCHOIR_FUZZ") == "full" else 500
    for _ in range(cases):
        try:
            assert roster.read_text(spoiled(text, dice), "").policy == later.policy  # a comment, or a space
        except (RosterError, ConfigError):
            refused += 1
    assert refused > 0.8 * cases


@pytest.mark.fuzz
def test_a_spoiled_token_or_answer_is_refused(file: Path, keys: NodeKeys, tmp_path: Path) -> None:
    policy, dice = roster.load(file), random.Random(6)
    token = invitation.invite(policy, file.parent, "zoe", 7)
    _, answer = invitation.accept(token, keys.card, tmp_path / "node")
    for _ in range(5000 if os.environ.get("QUIETCHOIR_FUZZ") == "full" else 500):
        wrong = spoiled(answer.encode("ascii"), dice).decode("latin-1")
        try:
            found = invitation.check(wrong, policy, file.parent)
        except (RosterError, ConfigError):
            continue
        assert found[:2] == ("zoe", keys.card)  # base64 that reads the same
