"""Invitations: one node, one name, once, from one entry of one federation's chain."""

import dataclasses
import os
import random
from pathlib import Path

import pytest

from quietchoir.core.errors import ConfigError, RosterError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.membership import invitation, ownership, roster
from quietchoir.federation.membership.founding import FILE, OWNER_KEY, create_federation
from quietchoir.federation.membership.keys import NodeKeys, load_or_create
from quietchoir.federation.membership.log import CHANGE, REVOKE, create_chain
from quietchoir.tests.fakes.federation import house
from quietchoir.tests.federation.membership.test_log import PAST, key_of, spoiled
from quietchoir.tests.federation.membership.test_roster import founding


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


def test_an_invited_node_is_enrolled_once_under_the_name_it_was_invited_as(
    file: Path, keys: NodeKeys, tmp_path: Path
) -> None:
    policy = roster.load(file)
    token = invitation.invite(policy, file.parent, "zoe", 7)
    said, answer = invitation.accept(token, keys.card, tmp_path / "node")
    assert (said.title, said.name) == ("choir", "zoe")
    assert said.seed not in repr(said) and said.seed not in answer
    name, card, used, _ = invitation.check(answer + "\n", policy, file.parent)
    assert (name, card) == ("zoe", keys.card)
    later = ownership.enroll(file, key_of(file), name, card, invitation=used)
    copy = (file.parent / invitation.OPEN_FILE).read_bytes()
    invitation.close(file.parent, used)
    _, second = invitation.accept(
        token, load_or_create(tmp_path / "thief").card, tmp_path / "thief"
    )
    with pytest.raises(RosterError, match="no open invitation"):
        invitation.check(second, later, file.parent)
    # an old copy of the list does not bring it back
    (file.parent / invitation.OPEN_FILE).write_bytes(copy)
    _, card, used, _ = invitation.check(second, later, file.parent)
    with pytest.raises(RosterError, match="was used already"):
        ownership.enroll(file, key_of(file), "eve", card, invitation=used)
    assert roster.load(file) == later


def test_an_answer_that_was_changed_late_or_for_another_federation_is_refused(
    file: Path, keys: NodeKeys, tmp_path: Path
) -> None:
    policy = roster.load(file)
    token = invitation.invite(policy, file.parent, "zoe", 7)
    _, answer = invitation.accept(token, keys.card, tmp_path / "node")
    thief = load_or_create(tmp_path / "thief").card
    fields = dataclasses.asdict(
        invitation.unpack(invitation.ANSWER, answer, invitation.Answer, "answer")
    )
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
    known = (tmp_path / "node" / roster.INVITED_FILE).read_bytes()
    fields = dataclasses.asdict(
        invitation.unpack(invitation.TOKEN, token, invitation.Token, "invitation")
    )
    strange = (
        {"expires": -(10**18)},
        {"expires": 10**18},
        {"title": "\x1b[2Jchoir"},
        {"name": "Zoe"},
        {"version": 0},
        {"head": ""},
    )
    forged = [invitation.pack(invitation.TOKEN, fields | one) for one in strange]
    for text in ("", answer, "qci2-!!!!", token[:-9], "qci2-" + "A" * 5000, *forged):
        with pytest.raises(ConfigError, match="no invitation"):
            invitation.accept(text, keys.card, tmp_path / "node")
    with pytest.raises(ConfigError, match="from an older version"):
        invitation.accept(token.replace("qci2-", "qci1-"), keys.card, tmp_path / "node")
    assert (tmp_path / "node" / roster.INVITED_FILE).read_bytes() == known
    with pytest.raises(ConfigError, match="above 0"):
        invitation.invite(policy, file.parent, "eve", 0)
    for days in (1e300, float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match="give --days above 0"):
            invitation.invite(policy, file.parent, "eve", days)


def test_a_file_of_the_same_name_by_another_owner_is_not_joined(
    file: Path, keys: NodeKeys, tmp_path: Path
) -> None:
    node, stranger = tmp_path / "node", house()
    foreign = tmp_path / "foreign.toml"
    roster.write(foreign, create_chain(stranger.policy, stranger.owner))
    token = invitation.invite(roster.load(file), file.parent, "zoe", 7)
    with pytest.raises(RosterError, match="not the federation that the invitation is for"):
        invitation.accept(token, keys.card, node, file=foreign)
    assert not (node / roster.INVITED_FILE).exists()
    invitation.accept(token, keys.card, node, file=file)
    noted = (node / roster.INVITED_FILE).read_bytes()
    with pytest.raises(RosterError, match="not the federation that the invitation was for"):
        roster.accept(foreign, node)
    assert not (node / "federations").exists()  # refused before anything was kept
    other = invitation.invite(roster.load(foreign), tmp_path, "zoe", 7)
    with pytest.raises(ConfigError, match="invited to another federation called choir"):
        invitation.accept(other, keys.card, node)
    assert (node / roster.INVITED_FILE).read_bytes() == noted
    assert roster.accept(file, node).version == 2
    # a node that nobody invited
    assert roster.accept(foreign, tmp_path / "elsewhere").name == "choir"


def test_an_invitation_names_the_entry_that_every_accepted_file_goes_on_from(
    file: Path, keys: NodeKeys, tmp_path: Path
) -> None:
    node, before = tmp_path / "node", roster.read(file)
    signer = Identity.load(key_of(file))
    here = ownership.change(file, key_of(file), {"recipe": {"rounds": 9}})
    invitation.accept(invitation.invite(here, file.parent, "zoe", 7), keys.card, node)
    older, branch, later = tmp_path / "older", tmp_path / "branch", tmp_path / "later"
    roster.write(older, before)
    roster.write(
        branch,
        before.extended(CHANGE, {"recipe": {"rounds": 8}}, signer, 3).extended(
            REVOKE, {"name": "ann"}, signer, 4
        ),
    )
    roster.write(later, roster.read(file).extended(REVOKE, {"name": "ann"}, signer, 4))
    for path, words in (
        (older, "is older than version 3, under which"),
        (branch, "entry 3 is not the one"),
    ):
        with pytest.raises(RosterError, match=words):
            roster.accept(path, node)
        assert not (node / "federations").exists()
    assert roster.accept(later, node).version == 4  # goes on from what the invitation names
    invitation.accept(invitation.invite(before.policy, file.parent, "eve", 7), keys.card, node)
    assert roster.invited(node)["choir"].version == 3  # the later of two
    (node / roster.INVITED_FILE).write_text(
        f'{{"choir": '
        # as an older version wrote it
        f'"{here.federation.hex()}"}}'
    )
    assert roster.accept(later, node).version == 4
    (node / roster.INVITED_FILE).write_text("[")
    with pytest.raises(ConfigError, match="damaged"):
        roster.accept(later, node)


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


def test_a_moment_that_has_no_date_is_shown_as_a_number() -> None:
    for moment in (-1, -(10**18), 10**18, 253402300800):
        assert str(moment) in roster.date(moment)
    assert roster.date(0) == ("1970-01-01 00:00 UTC") and roster.date(253402300799).startswith(
        "9999-12-31"
    )


@pytest.mark.parametrize("rank", [-1, 1 << 16, 10**40])
def test_an_answer_with_an_impossible_rank_is_a_sentence(
    file: Path, keys: NodeKeys, tmp_path: Path, rank: int
) -> None:
    policy = roster.load(file)
    _, answer = invitation.accept(
        invitation.invite(policy, file.parent, "zoe", 7), keys.card, tmp_path / "node"
    )
    table = invitation.unpack(invitation.ANSWER, answer, invitation.Answer, "answer")
    changed = invitation.pack(invitation.ANSWER, {**dataclasses.asdict(table), "rank": rank})
    before = (file.parent / invitation.OPEN_FILE).read_bytes()
    # and one nested deeper than a parser goes
    for text in (changed, invitation.ANSWER + "W1tb" * 900):
        with pytest.raises(ConfigError, match="this is no answer"):
            invitation.check(text, policy, file.parent)
    assert (file.parent / invitation.OPEN_FILE).read_bytes() == before
