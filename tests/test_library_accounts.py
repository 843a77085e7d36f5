"""A library that is served with a federation's file: each of its members has an account there."""

import argparse
import socket
from pathlib import Path

import pytest
from aiohttp import web

from quietchoir import cli, library_accounts
from quietchoir.core.errors import AuthenticationError, BudgetError, ConfigError, RosterError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.membership import log, roster
from quietchoir.federation.membership.log import REVOKE
from quietchoir.private_search import host, known, page
from quietchoir.private_search.budget import QueryBudget
from quietchoir.private_search.client import LibraryAddress, ask
from quietchoir.private_search.known import KnownLibraries
from quietchoir.tests.fakes.federation import House, house
from quietchoir.tests.fakes.search import TEXTS, FakeEmbedder, fake_index

QUESTION = "Which strings has a cello?"


@pytest.fixture
def choir() -> House:
    return house()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_accounts_are_of_who_is_in_the_newest_file_that_its_owner_signed(
    choir: House, tmp_path: Path, home: Path
) -> None:
    first = log.create_chain(choir.policy, choir.owner)
    later = first.extended(REVOKE, {"name": "dan"}, choir.owner, 1)
    other = first.extended(REVOKE, {"name": "ann"}, choir.owner, 1)
    for name, chain in (("first", first), ("later", later), ("other", other)):
        roster.write(tmp_path / name, chain)
    found = library_accounts.members(tmp_path / "first")
    assert found == {key.public.raw.hex(): name for name, key in choir.members.items()}
    assert sorted(library_accounts.members(tmp_path / "later").values()) == ["ann", "ben", "cat"]
    changed = (tmp_path / "first").read_text().replace('name = "ann"', 'name = "eve"', 1)
    (tmp_path / "changed").write_text(changed)
    with pytest.raises(RosterError, match="does not fit the content"):
        library_accounts.members(tmp_path / "changed")
    roster.accept(tmp_path / "later", home)  # this node knows by now who left
    before = sorted(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert sorted(library_accounts.members(tmp_path / "first").values()) == ["ann", "ben", "cat"]
    with pytest.raises(RosterError, match="two different entries"):
        library_accounts.members(tmp_path / "other")
    assert sorted(path.read_bytes() for path in home.rglob("*") if path.is_file()) == before


async def test_a_member_has_its_own_budget_whoever_is_none_is_refused(
    choir: House, tmp_path: Path, home: Path
) -> None:
    roster.write(tmp_path / "choir.toml", log.create_chain(choir.policy, choir.owner))
    names = library_accounts.members(tmp_path / "choir.toml")
    budget = QueryBudget(tmp_path / "b.json", limit=2, listed=frozenset(names), strangers=False)
    identity = Identity.generate()
    service = host.LibraryService(fake_index(), identity, budget, names=names)
    runner = web.AppRunner(host.application(service), access_log=None)
    await runner.setup()
    home.mkdir(mode=0o700)
    choir.members["ann"].save(home / "identity.key")
    with socket.create_server(("127.0.0.1", 0)) as door:
        await web.SockSite(runner, door).start()
        try:
            url = f"http://127.0.0.1:{door.getsockname()[1]}/#{identity.public.raw.hex()}"
            address = LibraryAddress.parse(url)
            ann = library_accounts.identity()
            with known.asking(address, None, ann) as asker:
                found = await ask(address, QUESTION, FakeEmbedder(), asker, passages=2)
                with pytest.raises(BudgetError, match="used up"):
                    await ask(address, QUESTION, FakeEmbedder(), asker)
            found_by_ben = await ask(address, QUESTION, FakeEmbedder(), choir.members["ben"])
            with known.asking(address) as stranger, pytest.raises(AuthenticationError):
                await ask(address, QUESTION, FakeEmbedder(), stranger)
            # a conversation asks so too, where the library was added so
            libraries = KnownLibraries(FakeEmbedder, lambda: choir.members["cat"])
            libraries.add("town", url, member=True)
            libraries.add("other", url.replace("127.0.0.1", "localhost"))
            (report, read), (own_key, _) = await libraries.ask(["town", "other"], QUESTION)
            libraries.close()
        finally:
            await runner.cleanup()
            service.close()
    assert found.found[0].passage.text == found_by_ben.found[0].passage.text == TEXTS[2]
    assert not report.problem and read[0].text == TEXTS[2] and "owner listed" in own_key.problem
    seen = {one["name"]: one["choices"] for one in page.status(service)["accounts"]}
    assert seen == {"ann": 2, "ben": 1, "cat": 2}


def test_a_node_without_a_members_key_says_what_to_do_and_asks_nobody(home: Path) -> None:
    with pytest.raises(ConfigError, match="federation identity"):
        library_accounts.identity()
    assert not (home / "identity.key").exists()  # none is made by the way
    words = ["library", "add", "town", "http://127.0.0.1:1/#" + "0" * 64]
    with pytest.raises(SystemExit):
        cli.parser().parse_args([*words, "--member", "--token", "x"])
    chosen: argparse.Namespace = cli.parser().parse_args([*words, "--member"])
    with pytest.raises(ConfigError, match="federation identity"):
        chosen.run(chosen)
    Identity.generate().save(home / "identity.key", "a passphrase")
    with pytest.raises(ConfigError, match="nobody is asked"):
        library_accounts.unattended()
    (home / "identity.restored").touch()
    with pytest.raises(ConfigError, match="came out of a backup"):
        library_accounts.unattended()
