"""A plugin's form: small, flat, answered by its owner or by nobody."""

import argparse
import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.assistant.elicitation import ElicitResult, Form
from quietchoir.core.assistant.tools import CallContext
from quietchoir.core.toolcall import ToolCall, render
from quietchoir.plugins import commands, elicitation
from quietchoir.plugins.audit import Elicited
from quietchoir.plugins.elicitation import FormRefused, OwnersForms, form_of
from quietchoir.plugins.host import PluginHost
from quietchoir.plugins.sandbox.probe import SandboxReport
from quietchoir.tests.fakes.http import Served, until
from quietchoir.tests.fakes.server import engine_saying

from .conftest import ATTACK, hostile, write_bundle

SIZE = {"type": "integer", "title": "Size", "minimum": 1, "maximum": 9}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "size": SIZE,
        "colour": {"type": "string", "enum": ["red", "blue"]},
        "gift": {"type": "boolean"},
        "name": {"type": "string", "minLength": 2},
    },
    "required": ["size"],
}
ASKED = {"message": "Which one?", "requestedSchema": SCHEMA}
ASKS = f"""
from quietchoir_sdk import SERVER
try:
    return str(SERVER.request("elicitation/create", {ASKED!r}))
except Exception as error:
    return f"refused: {{error}}"
"""


def test_a_form_is_shown_in_words_and_its_values_are_what_was_asked_for() -> None:
    form = form_of("a/b", ASKED)
    assert [field.described() for field in form.fields] == [
        "Size: a whole number",
        "colour: one of red, blue, or nothing",
        "gift: yes or no, or nothing",
        "name: a text, or nothing",
    ]
    size, colour, gift, name = form.fields
    assert (size.read("5"), colour.read("red"), gift.read("Yes"), name.read("Bo")) == (
        *(5, "red", True),
        "Bo",
    )
    for field, text in ((size, "x"), (size, "10"), (colour, "green"), (gift, "5"), (name, "B")):
        with pytest.raises(ValueError):
            field.read(text)
    assert form.checked({"size": 5}) == {"size": 5}
    for given in ({}, {"size": True}, {"size": 5, "other": 1}, {"size": 5, "name": 5}):
        with pytest.raises(ValueError):
            form.checked(given)
    assert Form.of("a/b", form.message, form.schema) == form
    share = form_of("a/b", ASKED | {"requestedSchema": {"properties": {"a": {"type": "number"}}}})
    assert share.checked({"a": 0.5}) == {"a": 0.5}
    for value in (float("nan"), float("inf")):  # which JSON has no word for
        with pytest.raises(ValueError):
            share.checked({"a": value})


@pytest.mark.parametrize(
    "changed",
    [
        {"message": ""},
        {"message": "x" * 2000},
        {"mode": "url", "url": "https://example.org"},
        {"requestedSchema": []},
        {"requestedSchema": {"properties": {str(one): SIZE for one in range(9)}}},
        {"requestedSchema": {"properties": {"a": {"type": "object"}}}},
        {"requestedSchema": {"properties": {"a": {"type": "array", "items": SIZE}}}},
        {"requestedSchema": {"properties": {"a": {"type": "string", "enum": [1]}}}},
        {"requestedSchema": {"properties": {"a": {"type": "string", "title": "x" * 300}}}},
        {"requestedSchema": {"properties": {"a\u200b\u200b\u200b": SIZE}}},
        {
            "requestedSchema": {
                "properties": {"a": {"type": "string", "enum": ["x\nquietchoir: y"]}}
            }
        },
        {"requestedSchema": {"properties": {"a": {"type": "string", "enum": ["x" + " " * 90]}}}},
        {
            "requestedSchema": {
                "properties": {"a": {"type": "string", "oneOf": [{"const": "x\u2028y"}]}}
            }
        },
        {"requestedSchema": {"properties": {"a": SIZE | {"minimum": float("nan")}}}},
        {"requestedSchema": {"properties": {"a": SIZE | {"maximum": float("inf")}}}},
        {"requestedSchema": {"properties": {"a": SIZE | {"maximum": 10**400}}}},
        {
            "requestedSchema": {
                "properties": {"a": {"type": "string", "enum": ["x" + "\u2800" * 90 + "y"]}}
            }
        },
    ],
)
def test_what_is_no_small_flat_form_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(FormRefused):
        form_of("a/b", ASKED | changed)


@pytest.mark.parametrize("blank", ["\u2800", "\U0001d159", "\U00016fe4", "\U00013441", "\u0301"])
def test_no_gap_in_a_message_pushes_the_rest_to_the_next_line(blank: str) -> None:
    for gap in (blank * 90, f"{blank} " * 90):
        message = form_of("a/b", ASKED | {"message": f"Which?{gap}quietchoir: y"}).message
        assert message.startswith("Which?") and message.endswith("quietchoir: y")
        assert len(message) <= len("Which?quietchoir: y") + elicitation.MAX_UNSEEN
    for text in ("Wie groß, −5 ≤ x? 👨‍👩‍👧 =========", "कितने बड़े?", "多大？"):
        assert form_of("a/b", ASKED | {"message": text}).message == text


async def test_answers_are_checked_counted_and_logged_without_what_was_said() -> None:
    log, answers = list[Elicited](), list[ElicitResult]()

    async def ask(form: Form) -> ElicitResult:
        return answers.pop(0)

    answers += [ElicitResult("accept", {"size": 5}), ElicitResult("decline")]
    answers += [ElicitResult("accept", {"size": 50})]
    forms = OwnersForms("a/b", lambda: ask, log.append)
    assert await forms.create(ASKED) == {"action": "accept", "content": {"size": 5}}
    assert await forms.create(ASKED) == {"action": "decline"}
    assert await forms.create(ASKED) == {"action": "cancel"}

    async def never(form: Form) -> ElicitResult:
        await asyncio.Event().wait()
        raise AssertionError

    late = OwnersForms("a/b", lambda: never, log.append, answer_s=0.0)
    assert await late.create(ASKED) == {"action": "cancel"}
    for _ in range(elicitation.MAX_FORMS - 1):
        await late.create(ASKED)
    with pytest.raises(FormRefused, match="more than 4"):
        await late.create(ASKED)
    assert [row.outcome for row in log[:4]] == ["ok", "refused", "failed", "failed"]
    assert "Which" not in repr(log)
    with pytest.raises(FormRefused, match="nobody can be asked during this call"):
        await OwnersForms("a/b", lambda: None, log.append).create(ASKED)


async def test_the_owner_is_asked_while_the_calls_own_time_stands_still(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_bundle(tmp_path / "hostile", hostile(ASKS))
    host = await hosts(folder)
    nobody = await host.call(ToolCall("attack"))
    assert nobody.text == "refused: this host answers no such request"
    await host.stop()
    limits = list[float | None]()

    async def ask(form: Form) -> ElicitResult:
        connection = host.plugins["tests/hostile"].connection
        limits.append(connection._limit.when())
        return ElicitResult("accept", {"size": 3, "colour": "blue"})

    host = await hosts(folder, elicits=True)
    await host.plugins["tests/hostile"].warm(60.0)
    found = await host.call(ToolCall("attack"), None, CallContext(elicit=ask))
    assert found.text == "{'action': 'accept', 'content': {'size': 3, 'colour': 'blue'}}"
    assert limits == [None]
    nobody = await host.call(ToolCall("attack"))
    assert nobody.text == "refused: nobody can be asked during this call"


CHAT = {"messages": [{"role": "user", "content": "attack"}], "metadata": {"conversation": "c"}}


async def test_a_node_that_serves_shows_a_plugins_form_and_gives_back_what_its_owner_sent(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_bundle(tmp_path / "hostile", hostile(ASKS))
    host: PluginHost = await hosts(folder, elicits=True)
    call = [render(ToolCall("attack"))]
    async with Served(engine_saying(call, ["So."], call, ["So."])).running() as served:
        served.assistant.tools = host
        approvals = served.assistant.approvals

        async def asked() -> tuple[asyncio.Task[Any], str]:
            answer = asyncio.create_task(served.post("/v1/chat/completions", CHAT))
            await until(approvals.pending)  # a tool that changes something
            approvals.answer(approvals.pending()[0].id, True)
            await until(approvals.elicitations)
            _, listed = await served.get("/api/elicitations")
            (form,) = listed["elicitations"]
            assert (form["plugin"], form["message"]) == ("tests/hostile", "Which one?")
            assert form["requested_schema"]["properties"]["size"] == SIZE
            assert form["requested_schema"]["required"] == ["size"]
            return answer, f"/api/elicitations/{form['id']}"

        answer, path = await asked()
        for wrong in (
            {"action": "accept"},
            {"action": "accept", "content": {"size": 50}},
            {"action": "accept", "content": {"size": 5, "more": 1}},
            {"action": "decline", "content": {"size": 5}},
            {"action": "yes"},
        ):
            assert (await served.post(path, wrong))[0] == 400, wrong
        assert (await served.post(path, {"action": "accept", "content": {"size": 5}}))[0] == 200
        _, body = await answer
        said = body["choices"][0]["message"]
        (told,) = said["tool_results"]
        assert told["content"] == "{'action': 'accept', 'content': {'size': 5}}"
        (shown,) = said["elicitations"]
        assert (shown["plugin"], shown["action"], shown["by"]) == (
            *("tests/hostile", "accept"),
            "owner",
        )
        assert "content" not in shown
        assert (await served.post(path, {"action": "decline"}))[0] == 404  # it was answered
        answer, path = await asked()  # nothing was remembered
        assert (await served.post(path, {"action": "decline"}))[0] == 200
        _, body = await answer
        assert body["choices"][0]["message"]["tool_results"][0]["content"] == (
            "{'action': 'decline'}"
        )
        assert not approvals.elicitations()
    rows = (tmp_path / "plugins" / "audit.jsonl").read_text()
    assert rows.count('"fields"') == 2 and "Which" not in rows


IMPATIENT = f"""
import json, sys
def heard():
    return json.loads(sys.stdin.readline())
def say(**parts):
    print(json.dumps({{"jsonrpc": "2.0", **parts}}), flush=True)
about = {{"protocolVersion": "2025-11-25", "capabilities": {{}}, "serverInfo": {{}}}}
say(id=heard()["id"], result=about)
heard()
say(id=heard()["id"], result={{"tools": [{ATTACK!r}]}})
number = heard()["id"]
say(id="form", method="elicitation/create", params={ASKED!r})
if WAITS:
    text = json.dumps(heard()["result"])
else:
    say(id="open", method="ping")
    heard()  # by now it is asked
    text = "I know already"
say(id=number, result={{"content": [{{"type": "text", "text": text}}]}})
heard()
"""


@pytest.mark.parametrize("waits", [True, False])
def test_whoever_sits_at_a_terminal_answers_a_form_or_is_let_go_with_the_call(
    sandbox: SandboxReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    waits: bool,
) -> None:
    source = IMPATIENT.replace("WAITS", str(waits))
    folder = write_bundle(tmp_path / "hostile", source)
    (tmp_path / "config.toml").write_text(f'[plugins]\nfolders = ["{folder}"]\n')
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    keyboard, terminal = os.openpty()
    with os.fdopen(terminal) as stdin, os.fdopen(keyboard, "wb", buffering=0) as hands:
        monkeypatch.setattr("sys.stdin", stdin)
        if waits:
            hands.write(b"y\n12\n5\n\nno\n\n")
        chosen = argparse.Namespace(
            config=tmp_path / "config.toml",
            id="tests/hostile",
            tool="attack",
            arguments="{}",
            file=[],
        )
        assert commands.run_once(chosen) == 0
        hands.write(b"typed later\n")
        assert stdin.readline() == "typed later\n"
    shown = capsys.readouterr().out
    assert "tests/hostile asks: Which one?\n  Size: a whole number\n" in shown
    said = shown.splitlines()[-1]
    if waits:
        assert "expected from 1 to 9" in shown
        *_, said = said.partition("{")
        assert said == '"action": "accept", "content": {"size": 5, "gift": false}}'
    else:
        assert said == "I know already"
