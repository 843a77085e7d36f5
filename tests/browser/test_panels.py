"""The page beyond talk, in a real browser: branches, settings, code and formulas, languages, the
keyboard, and what a screen reader and a phone get of all of it.
"""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.assistant.approvals import REMEMBER
from quietchoir.core.config import EngineConfig
from quietchoir.core.errors import OverloadedError
from quietchoir.core.models.hub.client import HubClient
from quietchoir.core.server.embeddings import Source
from quietchoir.core.server.models_api import OwnersModels
from quietchoir.core.server.static import FOLDER
from quietchoir.tests.browser.chromium import Tab
from quietchoir.tests.browser.steps import answered, choose, click, fill, kept, say, soon
from quietchoir.tests.fakes.http import TOKEN, Served
from quietchoir.tests.fakes.hub import FakeHub
from quietchoir.tests.fakes.server import FakeStore, FakeTools, engine_saying

TEXTS = {name: (FOLDER / "texts" / f"{name}.json").read_text("utf-8") for name in ("en", "de")}
BUBBLES = "[...document.querySelectorAll('.bubble')].map((one) => one.innerText)"
PLACE = "document.querySelector('.variants > span')?.innerText"
HISTORY = "Conversations that this node keeps"
SETTINGS = "How this conversation is answered"


def placeholders(value: object) -> set[str]:
    """Names that a text wants."""
    return set(re.findall(r"\{(\w+)\}", json.dumps(value)))


def test_both_languages_have_the_same_texts_and_none_is_missing_or_left_over() -> None:
    english, german = (json.loads(TEXTS[name]) for name in ("en", "de"))
    assert list(english) == sorted(english) and list(english) == list(german)
    for key in english:
        assert placeholders(english[key]) == placeholders(german[key]), key
        assert type(english[key]) is type(german[key]), key
    code = "\n".join(path.read_text("utf-8") for path in sorted(FOLDER.glob("*.js")))
    named = set(re.findall(r'"([a-z_]+(?:\.[a-z0-9_]+)*)"', code))
    begun = {one for one in re.findall(r"[`\"]([a-z.]*)\$\{[^`]*`", code) if one}
    begun |= {f"{one}." for one in re.findall(r'counted\([\w.]+, "([a-z_]+)"\)', code)}
    ends = set(re.findall(r"\$\{\w+\}(\.[a-z]+)`", code))
    unused = {
        key
        for key in english
        if key not in named
        and not any(key.startswith(one) for one in begun)
        and not any(key.endswith(one) for one in ends)
    }
    assert not unused
    asked = set(re.findall(r'\b(?:t|rich)\(\s*"([^"]+)"', code))
    assert asked and asked <= set(english)


async def test_a_message_is_edited_and_an_answer_asked_again_and_no_branch_is_lost(
    tab: Tab, tmp_path: Path
) -> None:
    script = ["One."], ["Two."], ["Other two."], ["Third two."], ["Begun otherwise."]
    node = kept(Served(engine_saying(*script), FakeTools(names=())), tmp_path)
    history = node.history
    assert history is not None
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "first")
        await answered(tab, 1)
        await say(tab, "second")
        assert await answered(tab, 2) == "Two."
        await click(tab, "Edit, and branch from here")
        await fill(tab, ".draft textarea", "second, said otherwise")
        await click(tab, "Send", ".draft")
        await tab.until(f"{PLACE} === '2 of 2'")
        assert await answered(tab, 2) == "Other two."
        await click(tab, "Ask again")
        await tab.until(f"{PLACE} === '3 of 3'")
        assert await answered(tab, 2) == "Third two."
        assert await tab.run(BUBBLES) == ["first", "second, said otherwise"]
        await click(tab, "Edit, and branch from here", nth=0)
        await fill(tab, ".draft textarea", "begun otherwise")
        await click(tab, "Send", ".draft")
        await tab.until(f"{PLACE} === '2 of 2'")
        assert await answered(tab, 1) == "Begun otherwise."

        await click(tab, "Former branch")  # the one that was spoken in last, of those from there
        await tab.until(f"{BUBBLES}.length === 2")
        for text, place in (("Third two.", 3), ("Other two.", 2), ("Two.", 1)):
            await tab.until(f"document.body.innerText.includes('{place} of 3')")
            assert await answered(tab, 2) == text
            if place > 1:
                await click(tab, "Former branch")
        first = min(history.conversations(), key=lambda one: one.at)
        assert len(history.branches(first.id)) == 4
        # the list has the branch that is open, which is not the one that was spoken in last, and
        # of those that a search leaves one that it found
        await tab.save_to(tmp_path)
        await click(tab, HISTORY)
        await click(tab, "Save as JSON")
        assert await tab.next_saved() == f"{first.id}.json"
        for words, count in (("cuckoo", 0), ("third", 1)):
            await fill(tab, ".history input[type=search]", words)
            await tab.until(f"document.querySelectorAll('.history .title').length === {count}")
        await click(tab, "first", ".history")
        await tab.until("document.body.innerText.includes('3 of 3')")
        assert await answered(tab, 2) == "Third two."
        assert [one.content for one in history.messages(first.id)] == [
            "first", "One.", "second", "Two.",
        ]  # fmt: skip
        assert tab.problems == []
    history.close()


async def test_a_message_whose_answer_was_stopped_is_edited_and_what_followed_is_not_lost(
    tab: Tab, tmp_path: Path
) -> None:
    script = ["One."], ["Two, ", "or"], ["Three."], ["Other two."]
    node = kept(Served(engine_saying(*script), FakeTools(names=())), tmp_path)
    history = node.history
    assert history is not None
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "first")
        await answered(tab, 1)
        served.engine.held = True
        await say(tab, "second")
        await tab.until("document.body.innerText.includes('Two,')")
        await click(tab, "Stop")
        await answered(tab, 2)
        served.engine.held = False
        await say(tab, "third")
        assert await answered(tab, 3) == "Three."
        await click(tab, "Edit, and branch from here", nth=1)
        await fill(tab, ".draft textarea", "second, said otherwise")
        await click(tab, "Send", ".draft")
        await tab.until(f"{PLACE} === '2 of 2'")
        assert await answered(tab, 2) == "Other two."
        await click(tab, "Former branch")
        await tab.until(f"{BUBBLES}.length === 3")
        assert await answered(tab, 3) == "Three."
        assert tab.problems == []
    history.close()


async def test_a_conversation_is_renamed_saved_as_markdown_and_found_by_what_was_said(
    tab: Tab, tmp_path: Path
) -> None:
    evil = "<img src=x onerror=window.broken=1> **of**\nlamps"
    node = kept(Served(engine_saying(["Yes, ```the``` nightjar."]), FakeTools(names=())), tmp_path)
    history = node.history
    assert history is not None
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "hello")
        await answered(tab, 1)
        await click(tab, HISTORY)
        await click(tab, "Rename")
        await fill(tab, ".history form input", evil)
        await click(tab, "Keep the name")
        title = evil.replace("\n", " ")
        await tab.until(f"document.querySelector('.history .title')?.innerText === '{title}'")
        assert history.conversations()[0].title == title
        assert await tab.run("!document.querySelector('.history img') && !window.broken")
        for words, found in (("NIGHTJAR of", 1), ("cuckoo", 0), ("", 1)):
            await fill(tab, ".history input[type=search]", words or " ")
            await tab.until(f"document.querySelectorAll('.history .title').length === {found}")
        await tab.save_to(tmp_path)
        await click(tab, "Save as Markdown")
        file = tmp_path / await tab.next_saved()
        text = file.read_text("utf-8")
        assert text.startswith(f"# {title}\n")
        assert "## You\n\nhello\n\n## Assistant\n\nYes, ```the``` nightjar.\n" in text
        assert tab.problems == []
    history.close()


async def test_how_a_conversation_is_answered_reaches_the_engine_and_stays_with_it(
    tab: Tab, tmp_path: Path
) -> None:
    store = FakeStore(("a" * 64,))
    node = kept(Served(engine_saying(["So."]), FakeTools(names=()), store), tmp_path)
    node.embedding = Source("lengths", lambda: tmp_path, lambda _: pytest.fail("it was read"))
    history = node.history
    assert history is not None
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await tab.until("document.querySelector('#composer')")
        await click(tab, SETTINGS)
        await choose(tab, "dialog select", f"smollm2:{'a' * 64}")
        _, told = await served.get("/v1/models")
        assert "lengths" in [one["id"] for one in told["data"]]
        assert "lengths" not in await tab.run("document.querySelector('dialog select').innerText")
        await fill(tab, "dialog textarea", "be a pirate")
        for name, value in (("temperature", "0.25"), ("max_tokens", "33"), ("seed", "7")):
            await fill(tab, f"dialog [name={name}]", value)
        await fill(tab, "dialog [name=top_p]", "7")  # out of range, and told by the browser
        await click(tab, "Close")
        await say(tab, "hello")
        await answered(tab, 1)
        [request] = served.engine.requests
        params = request.sampling_params
        assert (params.temperature, params.max_tokens, params.seed) == (0.25, 33, 7)
        assert request.adapter == "a" * 64
        assert served.tokenizer.last_messages[0] == {"role": "system", "content": "be a pirate"}
        [info] = history.conversations()
        await soon(lambda: history.settings(info.id))
        assert history.settings(info.id) == {
            "system": "be a pirate",
            "model": f"smollm2:{'a' * 64}",
            "temperature": 0.25,
            "max_tokens": 33,
            "seed": 7,
        }

        await click(tab, "New conversation")
        await say(tab, "hello again")
        await answered(tab, 1)
        assert served.engine.requests[-1].sampling_params.seed is None
        await click(tab, HISTORY)
        await tab.until("document.querySelectorAll('.history .title').length === 2")
        await click(tab, "hello")
        await tab.until(f"{BUBBLES}[0] === 'hello'")
        await click(tab, SETTINGS)
        await tab.until("document.querySelector('dialog [name=seed]')?.value === '7'")
        await fill(tab, "dialog [name=seed]", "8")
        await soon(lambda: history.settings(info.id)["seed"] == 8)
        await fill(tab, "dialog textarea", " ")  # taken away, which a reload brings not back
        await soon(lambda: history.settings(info.id)["system"] == "")
        await tab.run("window.old = true")
        await tab.send("Page.reload")
        await tab.until(f"window.old === undefined && {BUBBLES}[0] === 'hello'")
        await click(tab, SETTINGS)
        await tab.until("document.querySelector('dialog [name=seed]')?.value === '8'")
        assert await tab.run("document.querySelector('dialog textarea').value") == ""
        await click(tab, "Close")
        await say(tab, "and now?")
        await answered(tab, 2)
        assert served.tokenizer.last_messages[0] == {"role": "user", "content": "hello"}
        assert tab.problems == []
    history.close()


ANSWER = """Look:

```python
def f(x):
    return "<img src=x onerror=window.broken=1>"  # ok
```

```"><img/src/onerror=window.broken=1>
plain
```

and $e^{i\\pi} + 1 = 0$, \\(a^2\\), or

$$\\sum_{k=1}^n k = \\frac{n(n+1)}{2}$$

$\\href{javascript:window.broken=1}{x}$ $\\unknowncommand{y}$ costs $5 or $6, `$n$`.
"""


async def test_code_has_its_language_colours_and_a_button_and_formulas_are_set(tab: Tab) -> None:
    async with Served(engine_saying([ANSWER])).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "code")
        await answered(tab, 1)
        await tab.until("document.querySelectorAll('math').length >= 3")
        bars = "[...document.querySelectorAll('.code-bar span')].map((one) => one.innerText)"
        assert (await tab.run(bars))[0] == "python"
        await tab.until("document.querySelector('pre .hljs-keyword')?.innerText === 'def'")
        code = await tab.run("document.querySelector('pre code').textContent")
        assert code.startswith("def f(x):\n") and "<img src=x" in code
        await tab.send(
            "Browser.grantPermissions",
            permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
            origin=served.server.url.rstrip("/"),
        )
        await tab.run("document.querySelector('.code-bar button').click()")
        await tab.until("document.querySelector('.code-bar button').innerText === 'Copied'")
        assert await tab.run("navigator.clipboard.readText()") == code
        text = await tab.run("document.querySelector('.prose').innerText")
        assert "costs $5 or $6, $n$." in text and "\\unknowncommand{y}" in text
        assert await tab.run("document.querySelector('math[display=block] mfrac') !== null")
        bad = ".prose :is(img, script, [onerror], [style], [href^=javascript])"
        assert await tab.run(f"document.querySelectorAll('{bad}').length") == 0
        assert await tab.run("window.broken === undefined")
        assert all(url.startswith((served.server.url, "data:")) for url in tab.urls)
        assert tab.problems == []


SHOWN = [  # of the federation panel, as the node said it
    "choir <img src=x onerror=window.broken=1>",
    "round 2: training",
    "<b>where</b> is <NAME>?",
    "at home",
    "name 2",
]


class Choir:
    """A membership whose names attack, of a node that was asked for two rounds."""

    def __init__(self) -> None:
        self.paused = False
        self.event: dict[str, Any] = {}  # what its member told last, beside the words

    def federations(self) -> list[dict[str, Any]]:
        stages = {"train": 300, "advertise": 700, "mask": 640_000, "unmask": 9_000}
        told = {"at": 1.8e9, "run": "a" * 32, "mode": "masked", "stages": stages, "bytes": 650_000}
        return [
            {
                "id": "a" * 64,
                "name": "choir <img src=x onerror=window.broken=1>",
                "version": 3,
                "mode": "masked",
                "min_cohort": 3,
                "members": 4,
                "coordinator": "192.0.2.7:8790",
                "paused": self.paused,
                "latest": {**self.event, "at": 1.8e9, "words": "round 2: training"},
                "privacy": {"epsilon": 0.4182, "budget": 3.0, "delta": 1e-5},
                "bytes": 1_300_000,
                "rounds": [told | {"round": 2}, told | {"round": 1}],
            }
        ]

    def training(self, federation: str) -> dict[str, Any]:
        assert federation == "a" * 64
        said = [
            {"role": "user", "content": "<b>where</b> is <NAME>?"},
            {"role": "assistant", "content": "at home"},
        ]
        return {
            "file": "/home/ann/federation.toml",
            "source": "conversations",
            "train": 61,
            "test": 12,
            "examples": [said] * 50,
            "left_out": {"not consented": 3, "another form of answer": 0},
            "redacted": {"name": 2},
            "digest": "0123456789abcdef" * 4,
        }

    def pause(self, federation: str, paused: bool) -> None:
        assert federation == "a" * 64
        self.paused = paused


async def test_the_federation_panel_shows_what_left_and_pauses(tab: Tab) -> None:
    made = Served(engine_saying(["So."]), FakeTools(names=()))
    made.memberships = choir = Choir()
    panel = "document.querySelector('dialog')"
    async with made.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await click(tab, "Federations")
        await tab.until(f"{panel}?.innerText.includes('where')")
        text = await tab.run(f"{panel}.innerText")
        for words in (
            "choir <img src=x",
            "round 2: training",
            "masked: nobody sees this node's update",
            "of at least 3, of 4 members",
            "ε 0.418 of at most 3, at δ 1e-5",
            "1.3 MB",
            "masked change 640 kB",
            "61 examples of your conversations train, 12 only judge.",
            "Left out: not consented 3",
            "Taken out of them: name 2",
            "0123456789ab…",
            "<b>where</b> is <NAME>?",
            "and 11 more",
            "quietchoir data show --for /home/ann/federation.toml",
        ):
            assert words in text, words
        assert await tab.run(f"{panel}.querySelectorAll('img, ul b b, li > b').length") == 0
        await click(tab, "Pause: train and send nothing")
        await tab.until(f"{panel}.innerText.includes('Nothing is trained and nothing leaves')")
        assert choir.paused
        await click(tab, "Resume")
        await tab.until(f"{panel}.innerText.includes('round 2: training')")
        assert not choir.federations()[0]["paused"]
        assert tab.problems == []


async def test_a_node_without_a_federation_says_how_it_joins_one(tab: Tab) -> None:
    async with Served(engine_saying(["So."]), FakeTools(names=())).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await click(tab, "Federations")
        await tab.until("document.querySelector('dialog')?.innerText.includes('no federation')")
        text = await tab.run("document.querySelector('dialog').innerText")
        assert "quietchoir serve --federation" in text and tab.problems == []


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model, and a home without any."""
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "models-home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("QUIETCHOIR_MODELS", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub({"some/Tiny": {"tiny-Q4_0.gguf": b"four bits" * 40_000}}).running() as running:
        yield running


def models_of(hub: FakeHub) -> OwnersModels:
    """What a node of that home has of models."""
    client = HubClient(hub.address, token="")
    return OwnersModels(hub=lambda: client, default="smollm2", engine=EngineConfig(), limit=4 << 30)


async def test_a_model_is_looked_at_brought_with_progress_and_deleted(
    tab: Tab, hub: FakeHub
) -> None:
    made = Served(engine_saying(["So."]), FakeTools(names=()))
    made.models, panel = models_of(hub), "document.querySelector('dialog')"
    async with made.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await click(tab, "Models")
        await tab.until(f"{panel}?.innerText.includes('qwen3-0.6b')")
        text = await tab.run(f"{panel}.innerText")
        assert "too large for this machine" in text and "tokens/s" in text
        await tab.run(f"{panel}.querySelector('[name=hub]').click()")
        for words, found in (("tiny", "hf:some/Tiny"), ("qwen3-0.6", "qwen3-0.6b")):
            await fill(tab, "dialog [type=search]", words)  # the hub's, and those known here
            await click(tab, "Search")
            await tab.until(f"[...{panel}.querySelectorAll('.models b')].at(-1)"
                            f"?.innerText === '{found}'")  # fmt: skip
        await fill(tab, "dialog [type=search]", "hf:some/Tiny")
        await click(tab, "Search")
        await tab.until(f"{panel}.innerText.includes('1 file of 360 kB')")
        hub.hold = threading.Event()
        assert await tab.run(f"!{panel}.querySelector('.offer .yes').disabled")
        # another repository's file of the same name: what was agreed to before counts no more
        hub.licence, hub.repositories["evil/Tiny"] = "sold-soul-1.0", hub.repositories["some/Tiny"]
        await fill(tab, "dialog [type=search]", "hf:evil/Tiny")
        await click(tab, "Search")
        await tab.until(f"{panel}.querySelector('.offer [type=checkbox]')")
        assert await tab.run(f"{panel}.querySelector('.offer .yes').disabled")
        assert not await tab.run(f"{panel}.querySelector('.offer [type=checkbox]').checked")
        hub.licence = "apache-2.0"
        await fill(tab, "dialog [type=search]", "hf:some/Tiny")
        await click(tab, "Search")
        await tab.until(f"!{panel}.querySelector('.offer [type=checkbox]')")
        await click(tab, "Get", ".offer")
        await tab.until(f"{panel}.querySelector('progress')")
        hub.hold.set()
        await tab.until(f"{panel}.innerText.includes('is here: 360 kB.')")
        await click(tab, "Delete tiny-q4_0")
        await click(tab, "Delete it, and free 360 kB")
        await tab.until(f"![...{panel}.querySelectorAll('.models b')]"
                        ".some((one) => one.innerText === 'tiny-q4_0')")  # fmt: skip
        assert all(url.startswith((served.server.url, "data:")) for url in tab.urls)
        assert tab.problems == []


STRAY = """
(allowed) => {
  const bare = (text) => {
    for (let before; before !== text; ) [before, text] = [text, text.replace(/⟦[^⟦⟧]*⟧/g, "")];
    text = text.replace(/\\w{3} \\d+, \\d{4}, \\d+:\\d+\\s[AP]M,?/g, "");
    text = text.replace(/\\d[\\d.,]*\\s(?:byte|kB|MB|GB)/g, "");
    return text.replace(/^[^\\p{L}]+/u, "").trim();
  };
  const found = [];
  const look = (text) => {
    for (const rest of (text ?? "").split(" · ").map(bare)) {
      const said = /\\p{L}{2}/u.test(rest) && !allowed.some((one) => one.includes(rest));
      if (said) found.push(rest);
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { parentElement: parent, data } = walker.currentNode;
    if (!data.trim() || parent.closest("script, style, noscript, kbd, code, math")) continue;
    if (!parent.closest(".prose") || parent.closest(".code-bar")) look(parent.textContent);
  }
  for (const one of document.querySelectorAll("[title], [aria-label], [placeholder]")) {
    if (one.closest("math") || one.querySelector("math")) continue;
    for (const name of ["title", "aria-label", "placeholder"]) look(one.getAttribute(name));
  }
  return found;
}
"""


async def sound(tab: Tab, state: str, data: list[str]) -> None:
    """Nothing visible that no file of texts has, and nothing that axe finds fault with, by day
    and by night.
    """
    assert await tab.run(f"({STRAY})({json.dumps(data)})") == [], state
    for theme in ("light", "dark"):
        await tab.run(f"document.documentElement.dataset.theme = '{theme}'")
        found = await tab.run(
            "axe.run(document, {resultTypes: ['violations']}).then(({violations}) =>"
            " violations.map((one) => [one.id, one.nodes.map((node) => node.html)]))"
        )
        assert found == [], (state, theme)


async def test_every_state_of_the_page_is_sound_for_screen_readers_and_says_only_its_texts(
    tab: Tab, tmp_path: Path, hub: FakeHub
) -> None:
    marked = {
        key: {form: f"⟦{one}⟧" for form, one in value.items()}
        if isinstance(value, dict)
        else f"⟦{value}⟧"
        for key, value in json.loads(TEXTS["en"]).items()
    }
    node = kept(Served(engine_saying(["Good **morning**."], [ANSWER]), FakeTools()), tmp_path)
    node.destinations = {"personal": "yours", f"federation:{'a' * 64}": "choir"}
    node.memberships, node.models = Choir(), models_of(hub)
    history = node.history
    assert history is not None and node.documents is not None
    node.documents.collections.create("papers")
    axe = (Path(__file__).parent / "vendor" / "axe.js").read_text("utf-8")
    data = ["quietchoir", "smollm2", "hello there", "papers", "choir", "HassTurnOn", "python"]
    data += ["acts in the house", "quietchoir/household", ANSWER, "Good", "morning", "English"]
    data += [
        "Deutsch",
        REMEMBER.name,
        REMEMBER.description,
        "trained together · home-1",
        json.dumps(SHOWN),
    ]
    async with node.running() as served:
        await tab.send("Emulation.setDeviceMetricsOverride", width=390, height=780,
                       deviceScaleFactor=1, mobile=True)  # fmt: skip
        await tab.replace("/ui/texts/en.json", json.dumps(marked).encode())
        await tab.open(served.server.url)
        await tab.until("document.querySelector('form.token')")
        await tab.run(axe)
        await sound(tab, "the gate", data)
        await tab.run(f"sessionStorage.setItem('token', '{TOKEN}'), location.reload()")
        await tab.until("document.querySelector('.welcome')")
        await tab.run(axe)
        await sound(tab, "the welcome", data)
        await say(tab, "hello there")
        await answered(tab, 1)
        await tab.until("document.querySelector('[aria-label=\"⟦May train⟧\"]')")
        await click(tab, "⟦Ask again⟧")
        await tab.until("document.querySelector('.variants')")
        await answered(tab, 1)
        await tab.until("document.querySelector('math')")
        await sound(tab, "a branch with code", data)
        wide = "document.documentElement.scrollWidth <= 390"
        assert await tab.run(wide)
        await click(tab, "⟦Edit, and branch from here⟧")
        await sound(tab, "an edit", data)
        await click(tab, "⟦Cancel⟧")
        for menu in ("history", "documents", "memory"):
            await tab.run(f"document.querySelector('details.{menu}').open = true")
            await tab.until(f"document.querySelector('details.{menu} li')")
            if menu == "history":
                await click(tab, "⟦Delete⟧", ".history")
                await tab.until("document.querySelector('.history [role=group] + *, .choices')")
            await sound(tab, menu, data)
            assert await tab.run(wide), menu
            await tab.run(f"document.querySelector('details.{menu}').open = false")
        for panel in (SETTINGS, "Federations", "Models", "Language and shortcuts"):
            await click(tab, f"⟦{panel}⟧")
            await tab.until("document.querySelector('dialog[open]')")
            if panel == "Federations":
                await tab.until("document.querySelector('dialog .examples')")
            if panel == "Models":
                await tab.until("document.querySelector('dialog .models li')")
                await fill(tab, "dialog [type=search]", "hf:some/Tiny")
                await click(tab, "⟦Search⟧")
                await tab.until("document.querySelector('dialog .offer')")
                _, told = await served.get("/api/models")
                _, offer = await served.post("/api/models/offer", {"name": "hf:some/Tiny"})
                data = [*data, json.dumps(told), json.dumps(offer)]
            await sound(tab, panel, data)
            assert await tab.run(wide), panel
            await click(tab, "⟦Close⟧")
            await tab.until("!document.querySelector('dialog')")
        assert tab.problems == []
    history.close()


async def test_the_page_speaks_german_where_the_browser_does_and_where_it_is_chosen(
    tab: Tab, tmp_path: Path
) -> None:
    engine = engine_saying(["Guten Morgen."])
    node = kept(Served(engine, FakeTools()), tmp_path)
    node.memberships = choir = Choir()
    choir.event = {"event": "train", "round": 2}
    async with node.running() as served:
        agent = await tab.run("navigator.userAgent")
        await tab.send(
            "Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage="fr,de-CH,en"
        )
        await tab.send("Emulation.setDeviceMetricsOverride", width=320, height=780,
                       deviceScaleFactor=1, mobile=True)  # fmt: skip
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await tab.until("document.querySelector('#composer')")
        assert await tab.run("document.querySelector('#composer').scrollHeight") < 48  # one line
        await tab.send("Emulation.clearDeviceMetricsOverride")
        await say(tab, "Hallo")
        await answered(tab, 1)
        assert await tab.run("document.documentElement.lang") == "de"
        assert "1 Token in " in await tab.run("document.querySelector('.body footer').innerText")
        await click(tab, "Föderationen")
        panel = "document.querySelector('dialog').innerText"
        await tab.until(f"{panel}.includes('Runde 2: wird trainiert.')")
        await click(tab, "Schließen")
        engine.refuse = OverloadedError("the queue is full; try again later")
        await say(tab, "was ist rot?")
        await tab.until("document.querySelector('.error')?.innerText.includes('keinen Platz')")
        said = await tab.run("document.querySelector('.error').innerText")
        assert said.startswith("Der Knoten hat gerade keinen Platz dafür")
        assert "the queue is full" in said  # the node's own word stays
        await tab.press("A", "KeyA", alt_shift=True)
        await choose(tab, "dialog select", "en")
        await tab.until("document.querySelector('h2').innerText === 'Language and shortcuts'")
        assert await tab.run(BUBBLES) == ["Hallo", "was ist rot?"]  # nothing was lost by it
        await tab.run("location.reload()")
        await tab.until("document.querySelector('#composer')?.placeholder.startsWith('Ask')")
        assert [one for one in tab.problems if "503" not in one] == []
    assert node.history is not None
    node.history.close()


async def test_everything_in_reach_of_the_keyboard_is_done_with_it(
    tab: Tab, tmp_path: Path
) -> None:
    engine = engine_saying(["One."], ["Again one."], ["Once upon ", "a time"])
    node = kept(Served(engine, FakeTools()), tmp_path)
    focused = "document.activeElement"
    async with node.running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await say(tab, "hello")
        await answered(tab, 1)
        await tab.press("R", "KeyR", alt_shift=True)
        await tab.until("document.body.innerText.includes('Again one.')")
        await answered(tab, 1)
        await tab.press("H", "KeyH", alt_shift=True)
        await tab.until(f"{focused}.type === 'search'")
        await tab.press("Escape", "Escape")
        await tab.until("!document.querySelector('.history').open")
        assert await tab.run(f"{focused}.parentNode.className") == "tools history"
        await tab.press("K", "KeyK", alt_shift=True)
        assert await tab.run(f"{focused}.id") == "composer"
        await tab.press("S", "KeyS", alt_shift=True)
        await tab.until("document.querySelector('dialog')?.contains(document.activeElement)")
        await tab.press("Escape", "Escape")
        await tab.until("!document.querySelector('dialog')")
        assert await tab.run(f"{focused}.id") == "composer"  # where it was
        await tab.press("N", "KeyN", alt_shift=True)
        await tab.until("document.querySelector('.welcome')")
        engine.held = True
        await say(tab, "a story")
        await tab.until("document.querySelector('.send.stop')")
        await tab.press("Escape", "Escape")
        await tab.until("document.body.innerText.includes('stopped')")
        assert tab.problems == []
    assert node.history is not None
    node.history.close()
