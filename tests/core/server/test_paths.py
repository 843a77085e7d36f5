"""Paths, hosts and health checks as clients have them."""

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import numpy as np
import numpy.typing as npt
import pytest
from yarl import URL

from quietchoir.core.errors import MissingPartError, ModelNotFoundError
from quietchoir.core.server.embeddings import Source
from quietchoir.tests.fakes.http import HELLO, Served
from quietchoir.tests.fakes.server import engine_saying


@pytest.mark.parametrize("before", ["/v1", "", "/v1/v1", "/v1//v1", "/v1/"])
@pytest.mark.parametrize("after", ["", "/", "//"])
async def test_a_base_address_may_lack_v1_or_have_it_twice(
    served: Served, before: str, after: str
) -> None:
    bodies = {"/chat/completions": HELLO, "/completions": {"prompt": "x"}}
    for path, body in bodies.items():
        assert (await served.post(before + path + after, body))[0] == 200
    assert (await served.get(before + "/models" + after))[1]["object"] == "list"
    assert (await served.get(before + "/models/smollm2" + after))[1]["id"] == "smollm2"


@pytest.mark.parametrize("path", ["//v1/models", "//models/", "///v1//v1//models//"])
async def test_strokes_at_the_beginning_are_skipped(served: Served, path: str) -> None:
    url = URL(served.server.url.rstrip("/") + path, encoded=True)
    async with (
        aiohttp.ClientSession(headers=served.session.headers) as session,
        session.get(url) as response,
    ):
        assert (response.status, response.url.raw_path) == (200, path)


@pytest.mark.parametrize("path", ["/health/", "/api/status/", "/api/adapters/", "/api/tools//"])
async def test_the_nodes_own_paths_may_end_with_a_stroke(served: Served, path: str) -> None:
    assert (await served.get(path))[0] == 200


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/images/generations", "/v1/files"])
async def test_what_openai_has_and_this_node_has_not_says_what_is_here(
    served: Served, path: str
) -> None:
    for method in (served.get, served.post):
        status, body = await method(path)
        assert status == 501
        for here in ("chat/completions", "responses", "completions", "embeddings", "models"):
            assert f"/v1/{here}" in body["error"]["message"]


async def test_earlier_responses_are_not_kept(served: Served) -> None:
    for method in (served.get, served.post):
        status, body = await method("/v1/responses/resp_1")
        assert status == 404 and "keeps no responses" in body["error"]["message"]


async def test_models_are_not_brought_by_clients(served: Served) -> None:
    status, body = await served.post("/api/pull", {"model": "llama3"})
    assert status == 501 and "quietchoir model pull" in body["error"]


async def test_any_other_path_says_what_is_here(served: Served) -> None:
    status, body = await served.post("/api/talk", HELLO)
    assert status == 404 and "/v1/chat/completions" in body["error"]["message"]
    status, body = await served.get("/v1/chat/completions")
    assert status == 405 and "it takes POST" in body["error"]["message"]


async def test_a_host_that_the_owner_names_passes_and_no_other() -> None:
    async with Served(engine_saying(["x"])).running(hosts=("choir.example", "Box.local")) as served:
        for host, status in (
            ("choir.example", 200),
            ("CHOIR.example:443", 200),
            ("box.local", 200),
            ("evil.example", 403),
        ):
            assert (await served.get("/v1/models", headers={"Host": host}))[0] == status
        page = {"Host": "choir.example", "Origin": "https://choir.example"}
        assert (await served.get("/v1/models", headers=page))[0] == 200
        assert (await served.get("/v1/models", headers=page | {"Origin": "https://evil.example"}))[
            0
        ] == 403


@pytest.mark.parametrize(
    "version, host, status",
    [("1.0", "", 200), ("1.0", "Host: evil.example\r\n", 403), ("1.1", "", 400)],
)
async def test_a_health_check_without_a_host_passes(
    served: Served, version: str, host: str, status: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
    writer.write(f"GET /health HTTP/{version}\r\n{host}Connection: close\r\n\r\n".encode())
    async with asyncio.timeout(30):
        assert (await reader.read()).split()[1] == str(status).encode()
    writer.close()


async def test_without_a_host_the_token_is_still_asked_for(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
    writer.write(b"GET /v1/models HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(30):
        assert (await reader.read()).split()[1] == b"401"
    writer.close()


async def test_links_are_not_looked_up_ahead(served: Served) -> None:
    for path in ("/", "/v1/models", "/nowhere"):
        async with served.session.get(path) as response:
            assert response.headers["X-DNS-Prefetch-Control"] == "off"


class Lengths:
    """Embeds a text as its length."""

    width, longest = 2, 5

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([[len(text), 0.5] for text in texts], np.float32)


def there(reads: list[Path]) -> Source[Lengths]:
    def read(folder: Path) -> Lengths:
        reads.append(folder)
        return Lengths()

    return Source("lengths", lambda: Path("lengths"), read)


async def test_embeddings_are_real_where_a_model_is() -> None:
    reads: list[Path] = []
    async with Served(engine_saying(["x"]), embedding=there(reads)).running() as served:
        listed = (await served.get("/v1/models"))[1]["data"]
        assert [one["id"] for one in listed if one.get("kind") == "embedding"] == ["lengths"]
        assert len(listed) > 1 and not reads
        _, one = await served.post("/v1/embeddings", {"input": "abc", "model": "lengths"})
        assert one["data"] == [{"object": "embedding", "index": 0, "embedding": [3.0, 0.5]}]
        _, two = await served.post(
            "/embeddings/", {"input": ["abc", "a b"], "encoding_format": "base64", "dimensions": 2}
        )
        packed = [
            np.frombuffer(base64.b64decode(each["embedding"]), "<f4").tolist()
            for each in two["data"]
        ]
        assert packed == [[3.0, 0.5], [3.0, 0.5]] and two["usage"] == {
            "prompt_tokens": 3,
            "total_tokens": 3,
        }
        assert len(reads) == 1
        for body, place in (
            ({"input": "a b c d e f"}, "input"),
            ({"input": ["a", "a b c d e f"]}, "input[1]"),
            ({"input": "a", "dimensions": 3}, "dimensions"),
        ):
            status, answer = await served.post("/v1/embeddings", body)
            assert (status, answer["error"]["param"]) == (400, place)
        assert (
            await served.post("/v1/embeddings", {"input": "a", "model": "text-embedding-3-small"})
        )[0] == 404


async def test_embeddings_say_how_to_get_a_model_where_none_is() -> None:
    def missing() -> Path:
        raise ModelNotFoundError("minilm is not on this disk; run: quietchoir model pull minilm")

    async with Served(
        engine_saying(["x"]), embedding=Source("minilm", missing, lambda _: Lengths())
    ).running() as served:
        status, body = await served.post("/v1/embeddings", {"input": "a"})
        assert status == 404 and "model pull" in body["error"]["message"]
        assert [model["id"] for model in (await served.get("/v1/models"))[1]["data"]] == [
            "smollm2",
            "smollm2:home-1",
        ]


async def test_embeddings_say_which_part_is_not_installed() -> None:
    def unreadable(_folder: Path) -> Lengths:
        raise MissingPartError("/v1/embeddings needs torch; install it")

    async with Served(
        engine_saying(["x"]), embedding=Source("minilm", lambda: Path("x"), unreadable)
    ).running() as served:
        status, body = await served.post("/v1/embeddings", {"input": "a"})
        assert (status, body["error"]["code"]) == (400, "not_installed")
