"""The page in a real browser: it talks, shows tool calls, stops, and lets nothing out."""

import json
from pathlib import Path

import pytest

from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.elicitation import ElicitResult, Field, Form
from quietchoir.core.history.store import HistoryStore
from quietchoir.core.models.tokenizer.chat_template import ChatTemplate
from quietchoir.core.retrieval.collections import Collections
from quietchoir.core.retrieval.memory import FactStore
from quietchoir.core.server.documents_api import OwnersDocuments
from quietchoir.core.toolcall import ToolCall, render
from quietchoir.tests.browser.chromium import Tab
from quietchoir.tests.browser.steps import ADAPTER, answered, choose, click, fill, kept, say, soon
from quietchoir.tests.fakes.http import TOKEN, Served, until
from quietchoir.tests.fakes.retrieval import LineParser
from quietchoir.tests.fakes.server import FakeStore, FakeTools, engine_saying

CALL = render(ToolCall("HassTurnOn", {"area": "kitchen", "name": "ceiling light"}))
THINKING = "{% for m in messages %}{{ m.content }}{# <think> </think> #}{% endfor %}"
EVIL = (
    "**bold** <img src=https://evil.example/a.png onerror=alert(1)> "
    "![b](https://evil.example/b.png) "
    "<script>window.broken = true</script> [click](javascript:window.broken=true)"
)


async def reload(tab: Tab) -> None:
    """Load the page again, and wait until the old one is gone."""
    await tab.run("window.old = true")
    await tab.send("Page.reload")
    await tab.until("window.old === undefined && document.querySelector('textarea')")


async def scroll(tab: Tab, by: int) -> None:
    """Turn the wheel over the conversation, and wait until it has moved and rests."""
    await tab.run(
        "window.rested = false; document.querySelector('[role=log]')"
        ".addEventListener('scrollend', () => { window.rested = true; }, { once: true })"
    )
    await tab.send("Input.dispatchMouseEvent", type="mouseWheel", x=400, y=300, deltaX=0, deltaY=by)
    await tab.until("window.rested")


async def test_the_page_talks_calls_tools_and_switches_adapters(tab: Tab, tmp_path: Path) -> None:
    store = FakeStore(("a" * 64, "b" * 64), chosen="a" * 64)
    script = [["Good ", "morning."], [CALL], ["It is on."], ["Gladly."]]
    node = kept(Served(engine_saying(*script), FakeTools(), store), tmp_path)
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "hello there")
        assert await answered(tab, 1) == "Good morning."
        assert (
            await tab.run("location.hash + location.href") == served.server.url
        )  # the token left the address

        await say(tab, "turn on the ceiling light")
        assert await answered(tab, 2) == "It is on."
        card = await tab.run("document.querySelector('.card').innerText")
        assert all(word in card for word in ("HassTurnOn", "kitchen", "ceiling light", "done"))

        await choose(tab, ADAPTER, "b" * 64)
        await until(lambda: served.adapters.active == "b" * 64)
        await say(tab, "and now?")
        assert await answered(tab, 3) == "Gladly."
        assert [request.adapter for request in served.engine.requests] == [
            *("a" * 64, "a" * 64, "a" * 64),
            "b" * 64,
        ]
        by = "[...document.querySelectorAll('.body footer')].map((one) => one.innerText)"
        assert all("by the adapter trained together" in one for one in await tab.run(by))
        assert all(url.startswith((served.server.url, "data:")) for url in tab.urls)
        assert tab.problems == []
        await tab.picture(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.parametrize(("button", "calls"), [("Yes", 1), ("No", 0)])
async def test_the_page_asks_before_an_action_and_does_what_was_clicked(
    tab: Tab, tmp_path: Path, button: str, calls: int
) -> None:
    tools = FakeTools(effect="write")
    node = kept(Served(engine_saying([CALL], ["So be it."]), tools), tmp_path)
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "turn on the ceiling light")
        await tab.until("document.querySelector('.approval')")
        asked = await tab.run("document.querySelector('.approval p').innerText")
        assert asked == "acts in the house: area 'kitchen', name 'ceiling light'. Shall I?"
        assert tools.calls == []
        await tab.run(
            f"[...document.querySelectorAll('.choices button')]"
            f".find((one) => one.innerText === '{button}').click()"
        )
        assert await answered(tab, 1) == "So be it."
        assert len(tools.calls) == calls
        assert not await tab.run("document.querySelector('.approval')")
        assert tab.problems == []


FORM = Form(
    "ann/shop",
    "Which one? <img src=x onerror='window.broken = true'>",
    (
        Field("size", "integer", "Size; of a shoe", True, (), 1, 50),
        Field("colour", "string", "Colour", False, ("red", "blue")),
        Field("gift", "boolean", "As a gift", True),
        Field("elements", "string", "Name", False, (), 2, 40),
    ),
)


async def test_a_plugins_form_is_shown_as_its_own_words_and_gets_what_was_sent_or_nothing(
    tab: Tab,
) -> None:
    tools = FakeTools(forms=(FORM, FORM, FORM))
    async with Served(engine_saying([CALL], ["Ordered."]), tools).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "order shoes")
        await tab.until("document.querySelector('form.approval')")
        shown = await tab.run("document.querySelector('form.approval').innerText")
        assert "The plugin ann/shop asks you, in its own words:" in shown
        said = await tab.run("document.querySelector('form.approval blockquote').innerText")
        assert said == FORM.message
        await fill(tab, "[name='field.size']", "500")
        await choose(tab, "[name='field.gift']", "false")
        await click(tab, "Send to the plugin")
        refused = "document.querySelector('form.approval input').validity.rangeOverflow"
        assert await tab.run(refused) and served.assistant.approvals.elicitations()
        await fill(tab, "[name='field.size']", "42")
        await choose(tab, "[name='field.colour']", "blue")
        await click(tab, "Send to the plugin")
        await soon(lambda: len(tools.filled_in) == 1)
        await tab.until(
            "document.querySelector('form.approval input')?.value === ''"
        )  # the next one
        await click(tab, "Decline")
        await soon(lambda: len(tools.filled_in) == 2)
        await click(tab, "Put aside")
        assert await answered(tab, 1) == "Ordered."
        assert tools.filled_in == [
            ElicitResult("accept", {"size": 42, "colour": "blue", "gift": False}),
            ElicitResult("decline"),
            ElicitResult("cancel"),
        ]
        assert not await tab.run("window.broken || document.querySelector('form.approval')")
        assert tab.problems == []


async def test_what_a_model_writes_cannot_act(tab: Tab) -> None:
    async with Served(engine_saying([EVIL])).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "be evil")
        assert "bold" in await answered(tab, 1)
        assert await tab.run("document.querySelector('.prose strong').innerText") == "bold"
        assert (
            await tab.run("document.querySelectorAll('.prose :is(img, script, iframe)').length")
            == 0
        )
        assert await tab.run("document.querySelectorAll('.prose a[href^=javascript]').length") == 0
        assert await tab.run("window.broken === undefined")
        assert not [url for url in tab.urls if "evil" in url]


async def test_stop_ends_the_answer_in_the_engine_too(tab: Tab) -> None:
    async with Served(engine_saying(["Once upon ", "a time"], held=True)).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "a long story")
        await tab.until("document.querySelector('.prose')?.innerText.includes('Once upon')")
        await tab.run("document.querySelector('.send.stop').click()")
        assert await answered(tab, 1) == "Once upon"
        assert "stopped" in await tab.run("document.querySelector('.body footer').innerText")
        await tab.until("!document.querySelector('.send.stop')")
        await until(
            lambda: (
                [generation.finish_reason for generation in served.engine.generations]
                == ["cancelled"]
            )
        )


async def test_without_a_token_the_page_asks_for_it_and_a_wrong_one_opens_nothing(tab: Tab) -> None:
    async with Served(engine_saying(["Welcome."])).running() as served:
        await tab.open(served.server.url)
        for token, then in (
            ("wrong", "document.querySelector('form.token .error')"),
            (TOKEN, "document.querySelector('.picker')"),
        ):
            await tab.until("document.querySelector('form.token input')")
            await tab.run("document.querySelector('form.token input').focus()")
            await tab.type(token)
            await tab.press_enter()
            await tab.until(then)
            await tab.run("document.querySelector('form.token input')?.select()")
        await say(tab, "hello")
        assert await answered(tab, 1) == "Welcome."


async def test_what_the_node_refuses_is_shown(tab: Tab) -> None:
    store = FakeStore(("broken",), broken=frozenset({"broken"}))
    async with Served(
        engine_saying(["one", "two"], finished="error"), store=store
    ).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "hello")
        await answered(tab, 1)
        assert ("a kernel broke") in await tab.run(
            "document.querySelector('.assistant .error').innerText"
        )
        await choose(tab, ADAPTER, "broken")
        await tab.until("document.querySelector('.notice')?.innerText.includes('another model')")


DROP = """
for (const kind of ["dragover", "drop"]) {
  const dataTransfer = new DataTransfer();
  for (const [name, text] of %s) dataTransfer.items.add(new File([text], name));
  document.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
  if (kind === "dragover") window.shown = document.querySelector(".drop-here") !== null;
}
"""


async def test_files_that_are_dropped_can_be_cited_in_this_conversation(
    tab: Tab, tmp_path: Path
) -> None:
    node = kept(Served(engine_saying(["In the shed."]), FakeTools(names=())), tmp_path)
    assert node.documents is not None
    collections, told = node.documents.collections, "document.querySelector('.files p').innerText"
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await tab.until("document.querySelector('.files button')")
        files = [["rake.txt", "the rake is in the shed"], ["<b>.txt", "the hose too"]]
        await tab.run(DROP % json.dumps(files))
        await tab.until(f"{told}.startsWith('rake.txt, <b>.txt: ')")
        assert "in the collection dropped." in await tab.run(told)
        assert set(collections.store("dropped").documents()) == {"rake.txt", "<b>.txt"}
        assert not await tab.run("document.querySelector('.drop-here, .files b') !== null")
        await tab.until("document.querySelector('.documents input')?.checked")
        await say(tab, "where is the rake?")
        assert await answered(tab, 1) == "In the shed."
        await tab.until("document.querySelector('.citations')?.innerText.includes('rake.txt')")
        assert tab.problems == []
        await tab.run(DROP % json.dumps([["none.txt", "\0"]]))
        await tab.until(f"{told}.includes('its bytes are no text')")
    collections.close()


async def test_a_citation_opens_its_passage_as_text_and_a_fact_is_kept_after_a_yes(
    tab: Tab, tmp_path: Path
) -> None:
    collections, memory = Collections(tmp_path / "all"), FactStore(tmp_path / "memory")
    collections.create("house")
    lease = f"# Lease\nthe rent is due in March {EVIL}"
    collections.drop("house", "lease.txt", lease.encode(), LineParser())
    own = OwnersDocuments(collections, lambda: memory, LineParser, lambda: None, lambda _: None)
    served = Served(engine_saying(["In March [1]."]), FakeTools(names=()))
    served.documents, served.history = own, HistoryStore(tmp_path / "home")
    async with served.running():
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await tab.until("document.querySelector('.documents input')")
        await tab.run("document.querySelector('.documents input').click()")
        await say(tab, "when is the rent due?")
        assert await answered(tab, 1) == "In March [1]."
        cited = "document.querySelector('.citations details')"
        assert await tab.run(f"{cited}.querySelector('summary').innerText") == (
            "[1] lease.txt, line 2"
        )
        await tab.run(f"{cited}.querySelector('summary').click()")
        await tab.until(f"{cited}.querySelector('.passage')?.innerText.includes('in March')")
        assert await tab.run(f"{cited}.querySelectorAll('img, script, a').length") == 0
        assert not [url for url in tab.urls if "evil" in url]

        await tab.run("document.querySelector('.remember').click()")
        await tab.until("document.querySelector('.memory .asked')")
        assert memory.facts(kept=True) == []
        await tab.run("document.querySelector('.memory .asked button').click()")
        await tab.until("document.querySelector('.memory li') && !document.querySelector('.asked')")
        (fact,) = memory.facts(kept=True)
        assert (fact.text, fact.turn) == ("when is the rent due?", 1)
        await tab.run("document.querySelector('.memory button[type=button]').click()")
        await tab.until("document.querySelectorAll('.memory li').length === 1")
        assert memory.facts() == [] and tab.problems == []
    collections.close()
    memory.close()
    served.history.close()


async def test_an_answer_is_judged_and_a_conversation_given_on_the_page(
    tab: Tab, tmp_path: Path
) -> None:
    federation = f"federation:{'a' * 64}"
    history = HistoryStore(tmp_path)
    made = Served(engine_saying(["Good ", "morning."]))
    made.history = history
    made.destinations = {"personal": "personal adapter", federation: "federation choir"}
    async with made.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "hello there")
        assert await answered(tab, 1) == "Good morning."
        await tab.run("document.querySelector('[aria-label=\"A good answer\"]').click()")
        await until(history.examples)
        [example] = history.examples()
        assert (example.answer, example.consent) == ("Good morning.", "never")
        await tab.until("document.querySelector('[role=status]')?.innerText")

        choice = "document.querySelector('[aria-label=\"May train\"]')"
        await tab.run(f"{choice}.value = '{federation}'")
        await tab.run(f"{choice}.dispatchEvent(new Event('change'))")
        await until(lambda: history.examples()[0].consent == federation)

        await tab.run("document.querySelector('[aria-label=\"A bad answer\"]').click()")
        await tab.until("document.querySelector('.correction input')")
        assert history.examples() == []
        await tab.run("document.querySelector('.correction input').focus()")
        await tab.type("Good evening.")
        await tab.press_enter()
        await until(history.examples)
        assert [one.answer for one in history.examples()] == ["Good evening."]
        assert tab.problems == []
    history.close()


async def test_a_verdict_after_an_answer_with_a_tool_is_on_the_answer_beside_it(
    tab: Tab, tmp_path: Path
) -> None:
    history = HistoryStore(tmp_path)
    script = [CALL], ["The light is on."], ["Rayleigh."]
    made = Served(engine_saying(*script), FakeTools())
    made.history, made.destinations = history, {"personal": "personal adapter"}
    async with made.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "light on")
        assert "The light is on." in await answered(tab, 1)
        await say(tab, "why is the sky blue?")
        assert await answered(tab, 2) == "Rayleigh."
        thumbs = "[...document.querySelectorAll('[aria-label=\"A good answer\"]')]"
        await tab.run(f"{thumbs}.at(-1).click()")
        await until(history.examples)
        [example] = history.examples()
        assert (example.turn, example.answer) == (2, "Rayleigh.")
        assert example.messages[-1].content == "why is the sky blue?"
        assert "tool" in [one.role for one in example.messages]  # three turns, one answer
        assert tab.problems == []
    history.close()


LONG = "\n\n".join(f"line {number}" for number in range(60))


async def test_a_page_that_is_loaded_again_goes_on_with_the_kept_conversation(
    tab: Tab, tmp_path: Path
) -> None:
    script = [CALL], ["It is on."], ["Gladly."], ["Fresh."]
    node = kept(Served(engine_saying(*script), FakeTools()), tmp_path)
    history = node.history
    assert history is not None
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "turn on the ceiling light")
        assert await answered(tab, 1) == "It is on."
        for _ in range(2):
            await reload(tab)
            assert await answered(tab, 1) == "It is on."
            assert await tab.run("document.querySelector('.bubble').innerText") == (
                "turn on the ceiling light"
            )
            card = await tab.run("document.querySelector('.card').innerText")
            assert "HassTurnOn" in card and "called" in card and "done" not in card

        await say(tab, "and thank you")
        assert await answered(tab, 2) == "Gladly."
        [info] = history.conversations()
        said = [one.content for one in history.messages(info.id) if one.role == "user"]
        assert said == ["turn on the ceiling light", "and thank you"]

        await tab.run("document.querySelector('[aria-label=\"New conversation\"]').click()")
        await reload(tab)
        await tab.until("document.querySelector('.welcome')")
        await say(tab, "another thing")
        assert await answered(tab, 1) == "Fresh."
        assert len(history.conversations()) == 2
        assert tab.problems == []
    history.close()


async def test_what_a_model_thinks_is_folded_away_grows_while_it_is_read_and_stays_with_its_turn(
    tab: Tab, tmp_path: Path
) -> None:
    thinking = ["<think>Somebody ", "*greets* me.</think>", "Hello **you**."]
    node = kept(Served(engine_saying(thinking, ["Yes."], held=True), FakeTools()), tmp_path)
    node.tokenizer.template = ChatTemplate(THINKING)
    thought = "document.querySelector('.thought')"
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "hello")
        await tab.until(f"{thought}?.innerText.startsWith('thinking')")
        assert await tab.run(f"{thought}.open") is False
        await tab.run(f"{thought}.open = true")
        assert await tab.run(f"{thought}.querySelector('p').innerText") == "Somebody"
        served.engine.say(0)
        await tab.until(f"{thought}.querySelector('p').innerText === 'Somebody *greets* me.'")
        assert await tab.run(f"{thought}.open") is True  # as its reader left it
        served.engine.release(0)
        assert await answered(tab, 1) == "Hello you."
        assert (await tab.run(f"{thought}.innerText")).startswith("What it thought first")
        await reload(tab)
        assert await answered(tab, 1) == "Hello you."
        await tab.until(f"{thought}?.textContent.includes('Somebody *greets* me.')")
        assert await tab.run(f"{thought}.open") is False
        served.engine.held = False
        await say(tab, "are you there?")
        assert await answered(tab, 2) == "Yes."
        assert not any("greets" in str(one) for one in served.tokenizer.last_messages)
        await reload(tab)
        await answered(tab, 2)
        assert await tab.run("document.querySelectorAll('.thought').length") == 1
        assert tab.problems == []
    assert node.history is not None
    node.history.close()


async def test_a_question_whose_answer_a_reload_broke_off_is_there_to_be_asked_again(
    tab: Tab, tmp_path: Path
) -> None:
    engine = engine_saying(["One."], ["Once upon ", "a time"], ["The end."])
    node = kept(Served(engine, FakeTools(names=())), tmp_path)
    history = node.history
    assert history is not None
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "first")
        assert await answered(tab, 1) == "One."
        engine.held = True
        await say(tab, "a long story")
        await tab.until("document.body.innerText.includes('Once upon')")
        await reload(tab)
        await answered(tab, 2)
        asked = "[...document.querySelectorAll('.bubble')].map((one) => one.innerText)"
        assert await tab.run(asked) == ["first", "a long story"]
        engine.held = False
        await tab.run("document.querySelector('[aria-label=\"Ask again\"]').click()")
        await tab.until("document.body.innerText.includes('The end.')")
        await answered(tab, 2)
        await reload(tab)
        assert await answered(tab, 2) == "The end."
        assert await tab.run(asked) == ["first", "a long story"]
    history.close()


async def test_a_reader_who_scrolled_up_is_left_there_until_they_come_back(tab: Tab) -> None:
    engine = engine_saying([LONG], [f"{LONG}\n\n"] * 6)
    async with Served(engine, FakeTools(names=())).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "first")
        await answered(tab, 1)
        engine.held = True
        await say(tab, "more")
        await until(lambda: len(engine.generations) == 2)
        log, height = "document.querySelector('[role=log]')", 0

        async def grown() -> None:
            nonlocal height
            await tab.until(f"{log}.scrollHeight > {height + 1000}")
            await tab.run("new Promise((go) => requestAnimationFrame(() => setTimeout(go)))")
            height = await tab.run(f"{log}.scrollHeight")

        left = f"{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight"
        for _ in range(2):  # who does nothing sees the newest words
            await grown()
            assert await tab.run(left) < 2
            engine.say(1)
        await grown()
        await scroll(tab, -1000)
        place = await tab.run(f"{log}.scrollTop")
        assert await tab.run(left) > 500
        for _ in range(2):
            engine.say(1)
            await grown()
            assert await tab.run(f"{log}.scrollTop") == place
        await scroll(tab, 100_000)
        engine.say(1)
        await grown()
        assert await tab.run(left) < 2
        assert tab.problems == []


async def test_a_stream_renders_the_running_answer_alone_and_once_a_frame(tab: Tab) -> None:
    old, new = ["The *old* answer."], ["The *new* "] * 400
    async with Served(engine_saying(old, old, new), FakeTools(names=())).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        for count in (1, 2):
            await say(tab, "hello")
            await answered(tab, count)
        await tab.run(
            "window.cleaned = []; window.clean = DOMPurify.sanitize; window.frames_seen = 0;"
            "DOMPurify.sanitize = (text, rules) => (cleaned.push(text), clean(text, rules));"
            "const count = () => (frames_seen++, requestAnimationFrame(count)); count()"
        )
        await say(tab, "hello")
        await answered(tab, 3)
        cleaned, frames = await tab.run("[cleaned, frames_seen]")
        assert cleaned and all("new" in text and "old" not in text for text in cleaned)
        assert len(cleaned) <= frames + 1  # and its end
        assert cleaned[-1].count("new") == 400


async def test_task_boxes_and_table_columns_are_shown_as_written(tab: Tab) -> None:
    text = (
        "- [x] bread\n- [ ] milk\n\n| a | b | c |\n|:--|:-:|--:|\n| 1 | 2 | 3 |\n\n"
        '<span align="right" role="img" aria-label="done">no box</span>'
    )
    async with Served(engine_saying([text])).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "a list")
        await answered(tab, 1)
        boxes = "[...document.querySelectorAll('.prose [role=img]')].map((one) => one.ariaLabel)"
        assert await tab.run(boxes) == ["done", "to do"]
        items = "[...document.querySelectorAll('.prose li')].map((one) => one.innerText)"
        assert await tab.run(items) == ["☑ bread", "☐ milk"]
        cells = (
            "[...document.querySelectorAll('.prose td')]"
            ".map((one) => getComputedStyle(one).textAlign)"
        )
        assert await tab.run(cells) == ["left", "center", "right"]


async def test_a_node_that_stopped_is_said_with_what_to_do(tab: Tab) -> None:
    engine = engine_saying(["Once upon ", "a time"], held=True)
    async with Served(engine, FakeTools(names=())).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "a story")
        await tab.until("document.body.innerText.includes('Once upon')")
        assert served.server.runner.server is not None
        for connection in served.server.runner.server.connections:
            assert connection.transport is not None
            connection.transport.abort()
        await answered(tab, 1)
        told = "document.querySelector('.assistant .error')?.innerText"
        assert await tab.run(told) == (
            "The answer broke off: the node stopped, or the connection to it was cut. See that it "
            "runs (quietchoir serve), then ask again."
        )
        await served.server.stop()
        await tab.run("document.querySelector('[aria-label=\"Ask again\"]').click()")
        await tab.until(f"{told}?.startsWith('The node does not answer')")
        assert "quietchoir serve" in await tab.run(told)
        assert "fetch" not in await tab.run("document.body.innerText")


async def test_a_screen_reader_finds_landmarks_with_the_conversation_in_the_main_one(
    tab: Tab,
) -> None:
    async with Served(engine_saying(["Good morning."])).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "hello there")
        await answered(tab, 1)
        nodes = (await tab.send("Accessibility.getFullAXTree"))["nodes"]
        parents = {one["nodeId"]: one.get("parentId") for one in nodes}
        roles = {one["nodeId"]: one["role"]["value"] for one in nodes}

        def within(node: str | None) -> list[str]:
            return [roles[node], *within(parents[node])] if node else []

        shown = [one for one in nodes if not one["ignored"]]
        for role, count in (("banner", 1), ("main", 1), ("log", 1), ("heading", 1)):
            assert [roles[one["nodeId"]] for one in shown].count(role) == count, role
        for one in shown:
            if roles[one["nodeId"]] in ("log", "textbox", "StaticText", "button", "combobox"):
                assert {"banner", "main"} & set(within(one["nodeId"])), one
            if roles[one["nodeId"]] in ("button", "textbox", "combobox", "log", "heading"):
                assert one["name"]["value"], one


async def test_kept_conversations_are_found_gone_on_with_saved_and_deleted(
    tab: Tab, tmp_path: Path
) -> None:
    script = ["Rain."], ["Bread."], ["Butter."]
    node = kept(Served(engine_saying(*script), FakeTools(names=())), tmp_path)
    history = node.history
    assert history is not None
    history.keep(
        "chat-1", [Message("user", "elsewhere"), Message("assistant", "so")], source="chat"
    )
    menu = "document.querySelector('.history')"
    rows = f"[...{menu}.querySelectorAll('li')].filter((one) => one.querySelector('button'))"

    async def click(row: str, button: str) -> None:
        one = f"{rows}.find((one) => one.innerText.includes('{row}'))"
        await tab.until(one)
        await tab.run(
            f"[...{one}.querySelectorAll('button')]"
            f".find((one) => one.innerText.includes('{button}')).click()"
        )

    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "what of the weather")
        assert await answered(tab, 1) == "Rain."
        await tab.run("document.querySelector('[aria-label=\"New conversation\"]').click()")
        await say(tab, "what to bake")
        await answered(tab, 1)

        await tab.run(f"{menu}.open = true")
        await tab.until(f"{rows}.length === 3")
        assert await tab.run(
            f"{rows}.find((one) => one.innerText.includes('elsewhere'))"
            ".querySelector('button').disabled"
        )
        await tab.run(f"{menu}.querySelector('input').focus()")
        await tab.type("bake WHAT")
        await tab.until(f"{rows}.length === 1")
        await tab.run(f"{menu}.querySelector('input').select()")
        await tab.type("weather")
        await tab.until(f"{rows}[0].innerText.includes('weather')")
        await tab.save_to(tmp_path)
        await click("weather", "JSON")
        file = tmp_path / await tab.next_saved()
        assert file.match("page-*.json")
        said = json.loads(file.read_text("utf-8"))["messages"]
        assert [one["content"] for one in said] == ["what of the weather", "Rain."]

        await click("weather", "weather")
        await tab.until("document.querySelector('.bubble').innerText === 'what of the weather'")
        assert not await tab.run(f"{menu}.open")
        await say(tab, "and tomorrow")
        assert await answered(tab, 2) == "Butter."
        assert {one.title: one.turns for one in history.conversations()} == {
            "what of the weather": 4,
            "what to bake": 2,
            "elsewhere": 2,
        }

        await tab.run(f"{menu}.open = true")
        await click("weather", "Delete")
        assert len(history.conversations()) == 3  # it asks first
        await click("weather", "Delete it")
        await tab.until("document.querySelector('.welcome')")
        await tab.until(f"{menu}.innerText.includes('is deleted')")
        assert {one.title for one in history.conversations()} == {"what to bake", "elsewhere"}
        assert tab.problems == []
    history.close()
