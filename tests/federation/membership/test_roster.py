"""The federation file: signed, numbered, strict."""

import dataclasses
from pathlib import Path

import pytest

from quietchoir.core import tables
from quietchoir.core.errors import ConfigError, RosterError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.membership import log, roster
from quietchoir.federation.membership.founding import (
    FILE,
    OWNER_KEY,
    Founding,
    create_federation,
    enroll,
)
from quietchoir.federation.membership.keys import PublicCard, load_or_create
from quietchoir.federation.membership.log import ENROLL, REVOKE
from quietchoir.federation.spec.policy import (
    AdapterTable,
    Member,
    ModelTable,
    Policy,
    ProtectionTable,
    Recipe,
)
from quietchoir.tests.fakes.federation import DIGEST, House, house


@pytest.fixture
def home() -> House:
    return house()


def founding(**changes: object) -> Founding:
    tables_ = {
        "adapter": AdapterTable(),
        "protection": ProtectionTable(),
        "recipe": Recipe(),
        "model": ModelTable(digest=DIGEST),
    }
    named = {"name": "choir", "address": "127.0.0.1:8790"}
    return Founding(**{**named, **tables_, **changes})  # type: ignore[arg-type]


def test_what_is_written_is_what_is_read(home: House, tmp_path: Path) -> None:
    chain = log.create_chain(home.policy, home.owner)
    roster.write(tmp_path / "f.toml", chain)
    assert roster.load(tmp_path / "f.toml") == chain.policy
    assert (
        chain.policy.federation == home.policy.federation
        and chain.policy.members == home.policy.members
    )


@pytest.mark.parametrize(
    "old, new",
    [
        ("rounds = 3", "rounds = 4"),
        ('name = "ann"', 'name = "ada"'),
        ("version = 1", "version = 2"),
    ],
)
def test_a_changed_file_is_refused(home: House, tmp_path: Path, old: str, new: str) -> None:
    text = roster.dump(log.create_chain(home.policy, home.owner))
    assert old in text
    (tmp_path / "f.toml").write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(RosterError, match="does not fit the content"):
        roster.load(tmp_path / "f.toml")


def test_an_unsigned_file_is_refused(home: House, tmp_path: Path) -> None:
    lines = roster.dump(log.create_chain(home.policy, home.owner)).splitlines(keepends=True)
    for missing in ("signature", ("[[chain]]", "entry", "signature")):
        (tmp_path / "f.toml").write_text(
            "".join(line for line in lines if not line.startswith(missing)), "utf-8"
        )
        with pytest.raises(RosterError, match="unsigned"):
            roster.load(tmp_path / "f.toml")


def test_a_file_signed_by_another_key_is_refused(home: House) -> None:
    with pytest.raises(RosterError, match="another key"):
        log.create_chain(home.policy, Identity.generate())
    thief = Identity.generate()
    stolen = dataclasses.replace(home.policy, owner=thief.public.raw.hex())
    # whoever re-signs it has founded another federation
    assert stolen.federation != home.policy.federation


def test_an_unknown_key_is_named_with_its_nearest() -> None:
    home = house()
    table = home.policy.table()
    table["recipe"]["ruonds"] = table["recipe"].pop("rounds")
    with pytest.raises(ConfigError, match="did you mean rounds"):
        tables.fill(Policy, table, "federation.toml: ")


@pytest.mark.parametrize(
    "kind, values, message",
    [
        (ProtectionTable, {"mode": "sealed", "min_cohort": 2, "threshold": 2}, "sum of two tells"),
        (ProtectionTable, {"min_cohort": 2, "threshold": 2}, "sum of two tells"),
        (ProtectionTable, {"bits": 1}, "bits = 1"),
        (Recipe, {"server_momentum": 1.0}, "server_momentum"),
        (Member, {"name": "Ann!", "key": DIGEST}, "lower-case letters"),
    ],
)
def test_a_federation_that_cannot_work_is_refused(
    kind: type, values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_a_node_goes_forward_only(home: House, tmp_path: Path) -> None:
    first = log.create_chain(home.policy, home.owner)
    member = dataclasses.asdict(Member(name="zoe", key=Identity.generate().public.raw.hex()))
    later = first.extended(ENROLL, {"member": member}, home.owner, 1)
    twin = first.extended(ENROLL, {"member": {**member, "name": "eli"}}, home.owner, 1)
    longer = twin.extended(REVOKE, {"name": "eli"}, home.owner, 2)
    for name, chain in (("old", first), ("new", later), ("twin", twin), ("longer", longer)):
        roster.write(tmp_path / name, chain)
    assert roster.accept(tmp_path / "old", tmp_path / "node").version == 1
    assert roster.accept(tmp_path / "new", tmp_path / "node").version == 2
    file = roster.folder(tmp_path / "node", later.policy) / "federation.toml"
    kept = file.read_bytes()
    assert roster.accept(tmp_path / "old", tmp_path / "node") == later.policy  # what it knows stays
    with pytest.raises(RosterError, match="version 1 is older than version 2"):
        roster.adopt(first, file, "")
    for branch in ("twin", "longer"):
        with pytest.raises(RosterError, match="two different entries call themselves number 2"):
            roster.accept(tmp_path / branch, tmp_path / "node")
    assert file.read_bytes() == kept


def test_a_federation_is_founded_and_members_enrolled(tmp_path: Path) -> None:
    policy = create_federation(tmp_path / "f", founding())
    assert "BEGIN CERTIFICATE" in policy.coordinator.certificate
    card = load_or_create(tmp_path / "node").card
    assert PublicCard.parse(card.text + "\n") == card
    later = enroll(tmp_path / "f" / FILE, tmp_path / "f" / OWNER_KEY, "ann", card)
    assert (later.version, later.federation) == (2, policy.federation)
    assert roster.load(tmp_path / "f" / FILE).name_of(bytes.fromhex(card.key)) == "ann"
    with pytest.raises(RosterError, match="enrolled already"):
        enroll(tmp_path / "f" / FILE, tmp_path / "f" / OWNER_KEY, "ben", card)
    with pytest.raises(ConfigError, match="is kept"):
        create_federation(tmp_path / "f", founding())


def test_private_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    create_federation(tmp_path / "f", founding())
    load_or_create(tmp_path / "node")
    keys = [*(tmp_path / "f").glob("*.key"), *(tmp_path / "node").glob("*.key")]
    assert len(keys) == 5
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}


@pytest.mark.parametrize("text", ["", "ab" * 32, "zz" * 81, "00" * 81])
def test_a_line_that_is_no_public_card_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"federation identity"):
        PublicCard.parse(text)
