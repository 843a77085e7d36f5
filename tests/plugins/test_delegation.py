"""Tools of other plugins: those that a manifest names, never in a circle, under the same rules."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.assistant.approvals import Approvals
from quietchoir.core.assistant.elicitation import ElicitResult, Form
from quietchoir.core.assistant.tools import CallContext, Effect, ToolInfo
from quietchoir.core.config import ToolsConfig
from quietchoir.core.errors import ManifestError, ToolError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins import delegation, elicitation, manifest
from quietchoir.plugins.audit import verify
from quietchoir.plugins.delegation import DelegationRefused, OtherTools
from quietchoir.plugins.sandbox.probe import SandboxReport

from .conftest import NOTHING, write_bundle

ASKING = """
from quietchoir_sdk import ToolFailure, call_tool, serve, tool
@tool
def {name}(tool: str = "") -> str:
    "Ask."
    if not tool:
        return "{name} was asked"
    try:
        return "heard: " + call_tool(tool)
    except ToolFailure as failure:
        return f"refused: {{failure}}"
serve("tests/{name}", "1.0.0")
"""


def written(folder: Path, name: str, *tools: str, effect: str = "read", **more: Any) -> Path:
    """The plugin `tests/NAME` with one tool NAME, which asks for `tools` of others."""
    takes = {**NOTHING, "properties": {"tool": {"type": "string"}}}
    listed = {"name": name, "description": "Ask.", "inputSchema": takes, "effect": effect}
    asked = {"tools": list(tools), **more}
    return write_bundle(
        folder / name, ASKING.format(name=name), [listed], id=f"tests/{name}", permissions=asked
    )


async def test_a_plugin_calls_what_it_was_granted_and_nothing_else(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    names = ("first", "second", "third", "fourth")
    folders = [
        written(tmp_path, "first", "tests/second:second", "tests/fourth:fourth", "tests/fifth:x"),
        written(tmp_path, "second", "tests/third:third", effect="write"),
        written(tmp_path, "third", effect="outside"),
        written(tmp_path, "fourth"),
    ]
    enabled = tuple(f"tests/{name}" for name in names)
    approvals = Approvals(ToolsConfig(never=("fourth",)))
    host = await hosts(*folders, enabled=enabled, approvals=approvals)
    # the owner is asked before the first as before the third, which it can reach
    assert {tool.name: tool.effect for tool in host.tools()} == {
        "first": "outside",
        "second": "outside",
        "third": "outside",
        "fourth": "read",
    }

    async def said(wanted: str) -> str:
        return str((await host.call(ToolCall("first", {"tool": wanted}))).text)

    assert await said("tests/second:second") == "heard: second was asked"
    assert "is not granted; granted: tests/second:second" in await said("tests/third:third")
    assert "by its owner's rule" in await said("tests/fourth:fourth")
    assert "is not enabled here" in await said("tests/fifth:x")
    log = tmp_path / "plugins" / "audit.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["tool"], row["caller"]) for row in rows][:2] == [
        ("second", "tests/first"),
        ("first", ""),
    ]
    assert verify(log)[0] == len(rows)


@pytest.mark.parametrize(
    ("effect", "rules", "done"),
    [
        ("outside", ToolsConfig(), True),  # its owner was asked before the first, by the same rule
        ("outside", ToolsConfig(outside="never", allow=("first",)), False),
        ("outside", ToolsConfig(allow=("first",)), False),
        ("outside", ToolsConfig(allow=("first", "third")), True),
        ("write", ToolsConfig(), True),
        ("write", ToolsConfig(write="never", allow=("first",)), False),
        ("write", ToolsConfig(write="ask", outside="allow"), False),  # the first reaches outside
        ("read", ToolsConfig(read="never"), False),
        ("read", ToolsConfig(ask=("third", "first")), False),
    ],
)
def test_no_plugin_has_done_what_the_owners_rules_keep_from_it(
    effect: Effect, rules: ToolsConfig, done: bool
) -> None:
    reach: Effect = (
        "write" if effect == "read" else "outside" if rules.outside == "allow" else effect
    )
    approvals = Approvals(rules)
    first, third = ToolInfo("first", "", effect=reach), ToolInfo("third", "", effect=effect)
    assert approvals.covers(first, third) is done


async def test_a_tool_that_the_owner_forbids_by_its_kind_is_not_reached_through_another(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    folders = [
        written(tmp_path, "first", "tests/third:third"),
        written(tmp_path, "third", effect="outside"),
    ]
    for rules, said in (
        (ToolsConfig(outside="never", allow=("first",)), "by its owner's rule"),
        (ToolsConfig(outside="allow"), "heard: third was asked"),
    ):
        enabled = ("tests/first", "tests/third")
        host = await hosts(*folders, enabled=enabled, approvals=Approvals(rules))
        assert said in (await host.call(ToolCall("first", {"tool": "tests/third:third"}))).text
        await host.stop()


async def test_what_was_forbidden_in_a_conversation_is_not_reached_through_another_plugin(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    folders = [written(tmp_path, "first", "tests/second:second"), written(tmp_path, "second")]
    approvals = Approvals(ToolsConfig(approval_timeout_s=60.0))
    host = await hosts(*folders, enabled=("tests/first", "tests/second"), approvals=approvals)
    second = next(tool for tool in host.tools() if tool.name == "second")

    async def heard(conversation: str) -> str:
        call = ToolCall("first", {"tool": "tests/second:second"})
        return str((await host.call(call, None, CallContext(conversation))).text)

    assert await heard("here") == "heard: second was asked"
    for approved in (True, False):
        with approvals.ask(ToolCall("second"), second, "here") as question:
            approvals.answer(question.id, approved, remember=True)
        assert ("by its owner's rule" in await heard("here")) is not approved
    assert await heard("there") == "heard: second was asked"  # the control
    approvals.forget("here")
    assert await heard("here") == "heard: second was asked"


async def test_a_remembered_yes_to_one_tool_loosens_no_rule_for_another_plugins_calls() -> None:
    approvals = Approvals(ToolsConfig(allow=("first",)))
    first, third = ToolInfo("first", "", effect="write"), ToolInfo("third", "", effect="write")
    with approvals.ask(ToolCall("third"), third, "c") as question:
        approvals.answer(question.id, True, remember=True)
    assert approvals.verdict(third, "c", confident=False, foreign=True) == "allow"
    assert not approvals.covers(first, third, "c")


ELICITING = """
from quietchoir_sdk import ask_owner, serve, tool
@tool
def second(tool: str = "") -> str:
    "Ask."
    return str(ask_owner("Which?", {"a": {"type": "integer"}}, ["a"]))
serve("tests/second", "1.0.0")
"""


async def test_while_the_form_of_a_called_plugin_is_read_neither_plugins_time_runs(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    folders = [written(tmp_path, "first", "tests/second:second"), written(tmp_path, "second")]
    (folders[1] / "server.py").write_text(ELICITING)
    host = await hosts(*folders, enabled=("tests/first", "tests/second"), elicits=True)
    asked = list[tuple[str, list[float | None]]]()

    async def elicit(form: Form) -> ElicitResult:
        connections = [plugin.connection for plugin in host.plugins.values()]
        asked.append((form.plugin, [one._limit.when() for one in connections]))
        return ElicitResult("accept", {"a": 5})

    call = ToolCall("first", {"tool": "tests/second:second"})
    said = (await host.call(call, None, CallContext("c", elicit))).text
    assert said == "heard: {'a': 5}"
    assert asked == [("tests/second", [None, None])]


FLOODING = """
from quietchoir_sdk import ToolFailure, call_tool, serve, tool
@tool
def first(tool: str = "") -> str:
    "Ask."
    try:
        return ", ".join(call_tool(tool) for _ in range(9))
    except ToolFailure as failure:
        return f"refused: {failure}"
serve("tests/first", "1.0.0")
"""


async def test_one_call_of_the_owners_shows_four_forms_whichever_plugins_ask(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    folders = [written(tmp_path, "first", "tests/second:second"), written(tmp_path, "second")]
    (folders[0] / "server.py").write_text(FLOODING)
    (folders[1] / "server.py").write_text(ELICITING)
    host = await hosts(*folders, enabled=("tests/first", "tests/second"), elicits=True)
    shown = list[str]()

    async def elicit(form: Form) -> ElicitResult:
        shown.append(form.plugin)
        return ElicitResult("decline")

    call, context = ToolCall("first", {"tool": "tests/second:second"}), CallContext("c", elicit)
    for count in (1, 2):  # the next call begins anew
        await host.call(call, None, context)
        assert shown == ["tests/second"] * elicitation.MAX_FORMS * count


async def test_plugins_that_call_in_a_circle_or_a_long_chain_do_not_run(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    folders = [
        written(tmp_path, "first", "tests/second:second"),
        written(tmp_path, "second", "tests/first:first"),
        written(tmp_path, "third"),
    ]
    enabled = ("tests/first", "tests/second", "tests/third")
    host = await hosts(*folders, enabled=enabled)
    assert [tool.name for tool in host.tools()] == ["third"]
    with pytest.raises(ToolError, match="come back to it"):
        await host.call(ToolCall("first"))


def test_a_circle_is_found_however_long_and_a_short_chain_is_none() -> None:
    chain = {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set[str]()}
    assert list(delegation.too_long(chain)) == []
    assert list(delegation.too_long({"z": {"a"}, **chain})) == ["z"]
    circle = {str(one): {str((one + 1) % 9)} for one in range(9)}
    assert list(delegation.too_long(circle)) == list(circle)
    assert delegation.edges({"a": ("b:x", "gone:y"), "b": ()}) == {"a": {"b"}, "b": set()}


async def test_requests_that_are_none_and_too_many_are_refused() -> None:
    async def carry(plugin: str, tool: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        return f"{plugin} {tool} {arguments}", False

    others = OtherTools(("a/b:c",), carry)
    found = await others.create({"tool": "a/b:c", "arguments": {"x": 1}})
    assert found["isError"] and found["content"][0]["text"] == "a/b c {'x': 1}"
    for params in ({}, {"tool": 5}, {"tool": "a/b:c", "arguments": []}):
        with pytest.raises(DelegationRefused):
            await others.create(params)
    for _ in range(delegation.MAX_CALLS - 1):
        await others.create({"tool": "a/b:c"})
    with pytest.raises(DelegationRefused, match="more than 100"):
        await others.create({"tool": "a/b:c"})
    others.begin()
    await others.create({"tool": "a/b:c"})
    often = OtherTools(("a/b:c",), carry)
    with pytest.raises(DelegationRefused, match="more than 600 calls of others in a minute"):
        for _ in range(2 * delegation.MAX_REQUESTS + 1):  # two minutes may share them
            often.begin()  # it is called itself each time
            await often.create({"tool": "a/b:c"})


def test_a_manifest_names_tools_of_others_by_their_plugins(tmp_path: Path) -> None:
    for name in ("tool", "tests/first:first", "tests/other:", "x/y:z w"):
        with pytest.raises(ManifestError, match=r"permissions\.tools"):
            manifest.read(written(tmp_path, "first", name))
    with pytest.raises(ManifestError, match="twice; name each tool once"):
        manifest.read(written(tmp_path, "first", *["tests/other:ask"] * 2))
    with pytest.raises(ManifestError, match="at most 100 are granted"):
        manifest.read(written(tmp_path, "first", *[f"tests/other:t{one}" for one in range(101)]))
    terms = manifest.read(written(tmp_path, "first", "tests/other:ask"))
    assert "call tests/other:ask of other plugins, and by that do what those may" in (
        terms.head.asks()
    )
