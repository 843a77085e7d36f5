"""The coordinator's page in a real browser: it draws what the board says, and asks nobody else."""

from pathlib import Path
from typing import Any

import pytest

from quietchoir.federation.monitor.page import HOST, Page
from quietchoir.federation.monitor.run_status import RunStatus
from quietchoir.tests.browser.chromium import Tab
from quietchoir.tests.fakes.events import event_of
from quietchoir.tests.fakes.federation import house

NAMES = ("ann", "ben", "cat", "dan")


def a_round(number: int, accuracy: float, kind: str = "train") -> dict[str, Any]:
    """An event as a coordinator tells it, members and all."""
    there = list(NAMES[: 3 + number % 2])
    return {
        "event": "round" if kind == "train" else "score",
        "kind": kind,
        "round": number,
        "attempt": 1,
        "seconds": 12.5,
        "work_seconds": 11.0,
        "asked": list(NAMES),
        "parties": there,
        "bytes_up": dict.fromkeys(there, 690_000),
        "bytes_down": dict.fromkeys(NAMES, 2_700_000),
        "loss": 2.0 / number if kind == "train" else None,
        "accuracy": accuracy,
        "correct": 1,
        "total": 2,
        "epsilon": None,
    }


async def test_the_page_draws_rounds_as_they_come_and_shows_no_member(
    tab: Tab, tmp_path: Path
) -> None:
    status = RunStatus(house(4, mode="masked").policy)
    status.note(event_of({"event": "waiting", "present": 4, "roster": 4, "minimum": 3}))
    with Page(status, 0, tmp_path) as page:
        await tab.open(page.url)
        await tab.until("document.querySelector('h1')?.innerText === 'choir'")
        assert "4 of 4 members are here" in await tab.run("document.body.innerText")
        assert await tab.run("location.hash") == ""  # the token left the address
        for number in (1, 2, 3):
            undone = (
                {"guard": {"kept": False, "accuracy": 0.05, "reason": "worse"}}
                if number == 3
                else {}
            )
            status.note(event_of({**a_round(number, 0.1 * number), **undone}))
        status.note(event_of(a_round(4, 0.55, "score")))
        await tab.until("document.querySelectorAll('svg.curve circle').length === 4")
        text = await tab.run("document.body.innerText")
        assert all(
            words in text
            for words in ("3 / 3", "55.0 %", "3 of 4", "2.76 MB", "masked, sums of at least 3")
        )
        assert not [name for name in NAMES if name in text.split()]
        # round 2, and the score
        assert await tab.run("document.querySelectorAll('td.bad').length") == 2
        assert await tab.run("document.querySelectorAll('svg.curve path.undone').length") == 1
        assert (
            await tab.run(
                "[...document.querySelectorAll('td')].filter((td) => td.innerText === "
                "'3 undone').length"
            )
            == 1
        )
        status.note(event_of({"event": "delivered", "adapter": "", "members": list(NAMES)}))
        await tab.until("document.querySelector('.pill').innerText === 'finished'")
        assert all(url.startswith((f"http://{HOST}:{page.port}/", "data:")) for url in tab.urls)
        assert tab.problems == []
        await tab.picture(tmp_path / "rounds.png")
        assert (tmp_path / "rounds.png").stat().st_size > 10_000


async def test_without_a_token_the_page_asks_for_it(tab: Tab, tmp_path: Path) -> None:
    with Page(RunStatus(house(4).policy), 0, tmp_path) as page:
        await tab.open(f"http://{HOST}:{page.port}/")
        await tab.until("document.querySelector('form.token input')")
        await tab.run("document.querySelector('form.token input').focus()")
        await tab.type(page.token)
        await tab.press_enter()
        await tab.until("document.querySelector('h1')?.innerText === 'choir'")


SIZES = """(() => {
  const box = (one) => one.getBoundingClientRect();
  const texts = [...document.querySelectorAll('svg.curve text')];
  const marks = [...document.querySelectorAll('svg.curve text.mark')];
  return {
    heights: texts.map((one) => box(one).height), marks: marks.map((one) => one.textContent),
    gaps: marks.slice(1).map((one, index) => box(one).left - box(marks[index]).right),
    right: box(document.querySelector('svg.curve')).right,
    wide: document.documentElement.clientWidth,
    scrolls: document.documentElement.scrollWidth,
  };
})()"""


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
async def test_the_chart_can_be_read_on_a_phone(tab: Tab, tmp_path: Path, width: int) -> None:
    status = RunStatus(house(4, mode="masked", recipe={"rounds": 120}).policy)
    for number in range(1, 121):
        status.note(event_of(a_round(number, 0.5)))
    with Page(status, 0, tmp_path) as page:
        await tab.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=2,
            mobile=width < 500,
        )
        await tab.open(page.url)
        await tab.until("document.querySelectorAll('svg.curve circle').length === 120")
        seen = await tab.run(SIZES)
        assert min(seen["heights"]) >= 10  # pixels of the page: as large as the words beside it
        # numbers that do not run into each other
        assert len(seen["marks"]) >= 3 and min(seen["gaps"]) > 4
        assert seen["right"] <= seen["wide"] and seen["scrolls"] <= seen["wide"]
        await tab.send(
            "Emulation.setDeviceMetricsOverride",
            width=1000,
            height=800,
            deviceScaleFactor=1,
            mobile=False,
        )
        # a phone that is turned
        await tab.until("document.querySelector('svg.curve').getBoundingClientRect().width > 700")
        assert tab.problems == []


async def test_a_member_that_died_is_not_shown_as_present(tab: Tab, tmp_path: Path) -> None:
    status, here = RunStatus(house(4, mode="masked").policy), [4]
    status.presence = lambda: here[0]
    status.note(event_of({"event": "waiting", "present": 4, "roster": 4, "minimum": 3}))
    with Page(status, 0, tmp_path) as page:
        await tab.open(page.url)
        await tab.until("document.body?.innerText.includes('4 of 4')")
        # its heartbeats stopped, in the middle of a round: the run says nothing about it
        here[0] = 3
        await tab.until("document.body?.innerText.includes('3 of 4')")
        assert "4 of 4" not in await tab.run("document.body.innerText")
