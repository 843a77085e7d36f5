"""What the tests of the page do with it, step by step: as a hand at keyboard and mouse would."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from quietchoir.core.history.store import HistoryStore
from quietchoir.core.retrieval.collections import Collections
from quietchoir.core.retrieval.memory import FactStore
from quietchoir.core.server.documents_api import OwnersDocuments
from quietchoir.tests.browser.chromium import WAIT_S, Tab
from quietchoir.tests.fakes.http import Served
from quietchoir.tests.fakes.retrieval import LineParser

ADAPTER = "[aria-label=Adapter]"  # the node's, at the top


async def say(tab: Tab, text: str) -> None:
    """Type a message and press Enter."""
    await tab.until("document.querySelector('#composer')")
    await tab.run("document.querySelector('#composer').focus()")
    await tab.type(text)
    await tab.press_enter()


async def answered(tab: Tab, count: int) -> str:
    """Wait for so many whole answers; give the last one's text."""
    await tab.until(f"document.querySelectorAll('.body footer').length === {count}")
    return str(
        await tab.run("[...document.querySelectorAll('.assistant .prose')].at(-1)?.innerText ?? ''")
    )


async def click(tab: Tab, name: str, within: str = "body", nth: int = -1) -> None:
    """Click the last button, link or summary of this name, as a screen reader would call it, once
    it is there and can be clicked.
    """
    found = (
        f"[...document.querySelector({json.dumps(within)})?.querySelectorAll('button, a, summary')"
        f" ?? []].filter((one) => (one.ariaLabel || one.innerText.trim()) === {json.dumps(name)}"
        f" && !one.disabled).at({nth})"
    )
    await tab.until(found)
    await tab.run(f"{found}.click()")


async def fill(tab: Tab, field: str, text: str) -> None:
    """Put a text in a field, in the place of what was there."""
    found = f"document.querySelector({json.dumps(field)})"
    await tab.until(found)
    await tab.run(f"{found}.focus(), {found}.select()")
    await tab.type(text)
    await tab.run(f"{found}.blur()")


async def choose(tab: Tab, field: str, value: str) -> None:
    """Pick from a list."""
    found = f"document.querySelector({json.dumps(field)})"
    await tab.until(
        f"{found}?.querySelector('option[value=' + {json.dumps(json.dumps(value))} + ']')"
    )
    await tab.run(f"{found}.value = {json.dumps(value)}")
    await tab.run(f"{found}.dispatchEvent(new Event('change', {{ bubbles: true }}))")


async def soon(true: Callable[[], object]) -> None:
    """Wait for what the page's requests do in the node, which needs its threads."""
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.02)


def kept(served: Served, folder: Path) -> Served:
    """The same node, with conversations, documents and facts, as its page expects them."""
    memory = FactStore(folder / "memory")
    collections = Collections(folder / "all")
    served.documents = OwnersDocuments(
        collections, lambda: memory, LineParser, lambda: None, lambda _: None
    )
    served.history = HistoryStore(folder / "home")
    return served
