"""What a library's owner hands out and sees: tokens, a page, and counts; never a question."""

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest

from quietchoir.core.errors import AuthenticationError, ConfigError, UnknownEntryError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.private_search import host, known, page, tokens
from quietchoir.private_search.budget import QueryBudget
from quietchoir.private_search.client import LibraryAddress, ask
from quietchoir.private_search.tokens import TokenList
from quietchoir.tests.fakes.search import TEXTS, FakeEmbedder, fake_index
from quietchoir.tests.private_search.test_commands import parsed

QUESTION = "Which strings has a cello?"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))


async def test_a_token_is_an_account_and_the_page_shows_that_it_asked_and_not_what(tmp_path):
    token = TokenList(known.room()).add("ann")
    names = {key: name for name, key in TokenList(known.room()).names().items()}
    budget = QueryBudget(tmp_path / "b.json", limit=11, listed=frozenset(names), strangers=False)
    identity = Identity.generate()
    service = host.LibraryService(fake_index(), identity, budget, title="texts", names=names)
    owners = page.LibraryPage(service, 0, tmp_path / "home")
    ready = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"http://127.0.0.1:{door.getsockname()[1]}/#{identity.public.raw.hex()}"
        serving = asyncio.create_task(host.serve(service, door, ready=ready.set, beside=owners))
        try:
            await ready.wait()
            address = LibraryAddress.parse(url)
            with known.asking(address) as stranger, pytest.raises(AuthenticationError):
                await ask(address, QUESTION, FakeEmbedder(), stranger)
            with known.asking(address, token) as ann:
                found = await ask(address, QUESTION, FakeEmbedder(), ann)
            assert found.found[0].passage.text == TEXTS[2]
            assert known.asker(address).public == ann.public  # from now on, without the token
            base, secret = owners.url.split("/#token=")
            async with aiohttp.ClientSession() as http:
                for path, status in (("/", 200), ("/ui/library.js", 200), ("/api/status", 401)):
                    async with http.get(base + path) as reply:
                        assert reply.status == status
                async with http.get(base, headers={"Host": "evil.example"}) as reply:
                    assert reply.status == 403
                right = {"Authorization": f"Bearer {secret}"}
                async with http.get(f"{base}/api/status", headers=right) as reply:
                    seen = await reply.json()
                async with http.get(f"{base}/metrics", headers=right) as reply:
                    metrics = await reply.text()
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    (account,) = seen["accounts"]
    assert (account["name"], account["questions"], account["choices"]) == ("ann", 1, 1)
    assert account["last"] > 0 and seen["answered"] == 3 and seen["refused"] == 1
    assert "cello" not in json.dumps(seen) and "the question" in str(seen["hidden"])
    assert "quietchoir_library_questions_total 1.0" in metrics
    assert "quietchoir_library_keys 1.0" in metrics and "ann" not in metrics
    assert "quietchoir_library_used_up 0.0" in metrics and seen["seconds"] > 0
    assert f"quietchoir_library_seconds_total {seen['seconds']}" in metrics
    with ThreadPoolExecutor(6) as six:
        list(six.map(TokenList(known.room()).add, "bcdefg"))  # at once, and none is lost
    assert set(TokenList(known.room()).names()) == {"ann", *"bcdefg"}
    assert token not in (known.room() / tokens.FILE).read_text()
    assert token.removeprefix(tokens.MARK) not in (known.room() / tokens.FILE).read_text()


def test_a_token_is_shown_once_listed_by_name_and_taken_back(capsys):
    for words in (("token", "add", "ann"), ("token", "add", "ben"), ("token", "list")):
        arguments = parsed(*words)
        arguments.run(arguments)
    first, second, *listed = capsys.readouterr().out.splitlines()
    assert first != second and first.startswith(tokens.MARK)
    key = tokens.identity(first).public.raw.hex()
    assert listed[0] == f"ann  {key}" and len(listed) == 2
    remove = parsed("token", "remove", "ann")
    remove.run(remove)
    assert list(TokenList(known.room()).names()) == ["ben"]
    with pytest.raises(UnknownEntryError, match="there are: ben"):
        remove.run(remove)
    for name in ("ben", "B en"):
        give = parsed("token", "add", name)
        with pytest.raises(ConfigError):
            give.run(give)
    for wrong in ("", first[:-1], f"xyz_{'0' * 64}", f"{tokens.MARK}{'g' * 64}"):
        with pytest.raises(ConfigError, match="copy the whole line"):
            tokens.identity(wrong)
    (known.room() / tokens.FILE).write_text('{"ann": "zz"}')
    with pytest.raises(ConfigError, match="cannot be read"):
        TokenList(known.room()).names()


def test_another_key_of_this_node_is_kept_when_a_token_comes():
    address = LibraryAddress.parse(f"http://127.0.0.1:1/#{Identity.generate().public.raw.hex()}")
    before = known.asker(address).public
    given = known.asker(address, TokenList(known.room()).add("ann")).public
    assert given != before and known.asker(address).public == given
    assert known.lasting(known._asker_name(address)).public == before
