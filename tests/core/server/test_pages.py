"""The page comes from this node alone, and so does everything it loads."""

import hashlib
import json
import re

import aiohttp
import pytest

from quietchoir.core.server.static import FOLDER
from quietchoir.tests.fakes.http import Served

VENDOR = FOLDER / "vendor"


async def test_the_page_and_all_it_loads_need_no_token_and_carry_the_policy(served: Served) -> None:
    async with aiohttp.ClientSession(served.server.url) as stranger:
        for path in ("/", "/favicon.ico", "/ui/app.js", "/ui/style.css", "/ui/vendor/marked.js"):
            async with stranger.get(path) as response:
                assert response.status == 200
                assert response.headers["Content-Security-Policy"].startswith("default-src 'self';")
                assert "unsafe" not in response.headers["Content-Security-Policy"]
                assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_refusals_carry_the_policy_too(served: Served) -> None:
    async with served.session.get("/nowhere") as response:
        assert "Content-Security-Policy" in response.headers


@pytest.mark.parametrize(
    "name",
    [
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/auth.py",
        "vendor/../../auth.py",
        "vendor/",
        "nothing.js",
        "a%00b",
    ],
)
async def test_no_path_leads_out_of_the_page(served: Served, name: str) -> None:
    async with served.session.get(f"ui/{name}") as response:
        assert response.status == 404


def test_every_vendored_file_has_the_hash_that_its_list_says() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` "
        r"\|.*\| "
        r"`([0-9a-f]{64})` "
        r"\|$",
        (VENDOR / "README.md").read_text("utf-8"),
        re.MULTILINE,
    )
    assert {name for name, _ in rows} == {path.name for path in VENDOR.iterdir()} - {"README.md"}
    for name, digest in rows:
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


def test_our_own_page_names_no_other_host() -> None:
    for path in FOLDER.iterdir():
        if path.is_file():
            text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text), path.name


def test_every_code_of_a_refusal_has_words_in_every_language() -> None:
    source = "\n".join(one.read_text("utf-8") for one in FOLDER.parent.glob("*.py"))
    codes = set(re.findall(r'code="(\w+)"', source))
    assert {"not_trusted", "not_found"} <= codes
    for language in ("en", "de"):
        told = json.loads((FOLDER / "texts" / f"{language}.json").read_text("utf-8"))
        assert not {f"refusal.{code}" for code in codes} - told.keys()
