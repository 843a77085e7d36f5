"""The README's pictures of the chat page, taken of a real node: `python -m
quietchoir.tests.browser.picture URL "request" …`.

The URL is the line that `quietchoir serve` prints. Each request is typed and answered before the
next one; `--instead` edits the last one, which begins a branch; `--panel` opens a window by its
name. docs/page.png is of a new home: `… URL "Hello." --settings '{"temperature": 0}' --instead
"Write a Python function is_even(n)."`.
"""

import argparse
import asyncio
import json
from pathlib import Path

from quietchoir.tests.browser.chromium import browser
from quietchoir.tests.browser.steps import answered, click, fill, say


async def take(chosen: argparse.Namespace) -> None:
    """Talk, then take the picture."""
    async with browser() as tab:
        size = {"width": chosen.width, "height": chosen.height}
        await tab.send(
            "Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False
        )
        await tab.open(chosen.url)
        await tab.until("document.querySelector('#composer')")
        await tab.run(f"sessionStorage.setItem('settings', {json.dumps(chosen.settings)})")
        await tab.run("window.old = true, location.reload()")
        await tab.until("!window.old && document.querySelector('#composer')")
        for count, request in enumerate(chosen.requests, 1):
            await say(tab, request)
            await answered(tab, count)
        if chosen.instead:
            await click(tab, "Edit, and branch from here")
            await fill(tab, ".draft textarea", chosen.instead)
            await click(tab, "Send", ".draft")
            await tab.until("document.querySelector('.variants')")
            await answered(tab, len(chosen.requests))
        if chosen.panel:
            await click(tab, chosen.panel)
            await tab.until("document.querySelector('dialog ul li')")
        await tab.run("document.activeElement.blur()")
        await tab.picture(chosen.out, **size)


def main() -> None:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("requests", nargs="*")
    parser.add_argument("--instead", default="")
    parser.add_argument("--panel", default="")
    parser.add_argument("--settings", default="{}", help="of the conversation, as JSON")
    parser.add_argument("--width", type=int, default=1120)
    parser.add_argument("--height", type=int, default=760)
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"))
    asyncio.run(take(parser.parse_args()))


if __name__ == "__main__":
    main()
