"""Conversations that a client names are kept, judged, given and forgotten over the API."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from quietchoir.core.history.store import HistoryStore
from quietchoir.core.toolcall import ToolCall, render
from quietchoir.tests.fakes.http import HELLO, Served
from quietchoir.tests.fakes.server import engine_saying

CHAT = "/v1/chat/completions"
NAMED = HELLO | {"metadata": {"conversation": "evening", "source": "page"}}
FED = f"federation:{'a' * 64}"


@pytest.fixture
async def keeping(tmp_path: Path) -> AsyncIterator[Served]:
    """A server that keeps what its clients name, and is a member of one federation."""
    history = HistoryStore(tmp_path)
    made = Served(engine_saying(["Good ", "morning."]))
    made.history, made.destinations = history, {"personal": "yours", FED: "federation choir"}
    async with made.running() as running:
        yield running
    history.close()


@pytest.mark.parametrize("streamed", [False, True])
async def test_only_a_conversation_that_its_client_names_is_kept(
    keeping: Served, streamed: bool
) -> None:
    for body in (HELLO, NAMED):
        async with keeping.session.post(CHAT, json=body | {"stream": streamed}) as response:
            assert response.status == 200
            await response.read()
    _, told = await keeping.get("/api/conversations")
    [info] = told["conversations"]
    assert (info["id"], info["source"], info["consent"]) == ("evening", "page", "never")
    assert told["destinations"] == {
        "never": "never", "personal": "yours", FED: "federation choir",
    }  # fmt: skip
    _, whole = await keeping.get("/api/conversations/evening")
    assert [one["content"] for one in whole["messages"]] == ["hello you", "Good morning."]


async def test_verdicts_become_examples_and_train_nothing_by_themselves(keeping: Served) -> None:
    await keeping.post(CHAT, NAMED)
    judged = {"conversation": "evening", "turn": 1}
    _, up = await keeping.post("/api/feedback", judged | {"verdict": "up"})
    assert up["example"] and up["conversation"]["consent"] == "never"
    _, down = await keeping.post("/api/feedback", judged | {"verdict": "down"})
    assert down["example"] is None and down["conversation"]["examples"] == 0
    call = {"name": "HassTurnOn", "arguments": {"name": "lamp"}}
    _, right = await keeping.post("/api/feedback", judged | {"verdict": "corrected", "call": call})
    assert right["example"]
    assert keeping.history is not None
    [example] = keeping.history.examples()
    assert example.answer == render(ToolCall("HassTurnOn", {"name": "lamp"}))


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/feedback", {"conversation": "evening", "verdict": "corrected"}, 'give "answer"'),
        ("/api/feedback", {"conversation": "evening", "verdict": "up", "answer": "x"}, "give"),
        ("/api/feedback", {"conversation": "evening", "verdict": "up", "turn": 0}, "turn"),
        ("/api/feedback", {"conversation": "evening", "verdict": "up", "turn": 2}, "not there"),
        ("/api/feedback", {"conversation": "evening", "verdict": "fine"}, "not supported"),
        ("/api/conversations/evening", {"consent": "federation:x"}, "expected one of"),
        ("/api/conversations/evening", {}, 'say "consent", "title" or "settings"'),
        ("/api/conversations/evening", {"title": " ", "consent": FED}, "title is empty"),
        ("/api/conversations/evening", {"settings": {"temperature": 9}}, "settings.temperature"),
        ("/api/conversations/evening/branches", {"turn": 9}, "not there to branch from"),
        (CHAT, HELLO | {"metadata": {"conversation": "a b"}}, "metadata.conversation is 'a b'"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    keeping: Served, path: str, body: dict[str, object], words: str
) -> None:
    await keeping.post(CHAT, NAMED)
    status, told = await keeping.post(path, body)
    assert status == 400 and words in told["error"]["message"]
    _, left = await keeping.get("/api/conversations")
    assert [(one["examples"], one["consent"]) for one in left["conversations"]] == [(0, "never")]


async def test_a_conversation_that_nobody_kept_is_not_found(keeping: Served) -> None:
    where = "/api/conversations/morning"
    asked = {"conversation": "morning", "verdict": "up"}
    for status, told in (
        await keeping.get(where),
        await keeping.post(where, {"consent": "never"}),
        await keeping.post("/api/feedback", asked),
    ):
        assert status == 404 and told["error"]["code"] == "not_found"
        assert "no conversation 'morning' is kept here" in told["error"]["message"]
    async with keeping.session.delete(where) as response:
        assert response.status == 404


async def test_a_conversation_is_given_and_forgotten(keeping: Served) -> None:
    await keeping.post(CHAT, NAMED)
    await keeping.post("/api/feedback", {"conversation": "evening", "verdict": "up"})
    _, given = await keeping.post("/api/conversations/evening", {"consent": FED})
    assert given["consent"] == FED
    async with keeping.session.delete("/api/conversations/evening") as response:
        assert await response.json() == {"forgotten": 1, "adapters": []}
    _, told = await keeping.get("/api/conversations")
    assert told["conversations"] == []


async def test_a_node_that_keeps_nothing_says_so_and_takes_no_verdicts(served: Served) -> None:
    assert (await served.post(CHAT, NAMED))[0] == 200
    nothing: dict[str, object] = {"conversations": [], "destinations": {}}
    assert (await served.get("/api/conversations"))[1] == nothing
    verdict = {"conversation": "evening", "verdict": "up"}
    assert (await served.post("/api/feedback", verdict))[0] == 404


async def test_a_disk_that_refuses_costs_the_record_and_not_the_answer(
    keeping: Served, caplog: pytest.LogCaptureFixture
) -> None:
    assert keeping.history is not None
    keeping.history.connection.execute("PRAGMA query_only = ON")
    status, body = await keeping.post(CHAT, NAMED)
    assert (status, body["choices"][0]["message"]["content"]) == (200, "Good morning.")
    assert "answered and not kept" in caplog.text


async def test_a_conversation_is_renamed_settled_found_and_branched_from(keeping: Served) -> None:
    await keeping.post(CHAT, NAMED)
    where = "/api/conversations/evening"
    settings = {"system": "be brief", "temperature": 0.5, "seed": 7, "collections": ["papers"]}
    status, info = await keeping.post(where, {"title": "Of greetings", "settings": settings})
    assert (status, info["title"]) == (200, "Of greetings")
    _, whole = await keeping.get(where)
    assert (whole["settings"], whole["variants"]) == (settings, {})
    _, found = await keeping.post("/api/conversations", {"words": "morning GREET"})
    assert found == {"found": ["evening"]}

    _, branch = await keeping.post(f"{where}/branches", {"turn": 1})
    assert (branch["messages"], branch["root"], branch["title"]) == ([], "evening", "Of greetings")
    said = [{"role": "user", "content": "hello otherwise"}]
    body = {"messages": said, "metadata": {"conversation": branch["id"], "source": "page"}}
    await keeping.post(CHAT, body)
    for name in ("evening", branch["id"]):
        _, whole = await keeping.get(f"/api/conversations/{name}")
        assert whole["variants"] == {"1": ["evening", branch["id"]]}
    async with keeping.session.delete(where) as response:
        assert response.status == 200
    assert (await keeping.get("/api/conversations"))[1]["conversations"] == []
