"""The README's picture of the chat page, taken of a real node: `python -m
quietchoir.tests.browser.picture URL "request" …`.

The URL is the line that `quietchoir serve` prints. Each request is typed and answered before the
next one.
"""

import argparse
import asyncio
from pathlib import Path

from quietchoir.tests.browser.chromium import browser


async def take(url: str, requests: list[str], target: Path) -> None:
    """Talk, then take the picture."""
    async with browser() as tab:
        await tab.open(url)
        for count, request in enumerate(requests, 1):
            await tab.until("document.querySelector('textarea')")
            await tab.run("document.querySelector('textarea').focus()")
            await tab.type(request)
            await tab.press_enter()
            await tab.until(f"document.querySelectorAll('.body footer').length === {count}")
        await tab.picture(target, width=1120, height=760)


def main() -> None:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("requests", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"))
    chosen = parser.parse_args()
    asyncio.run(take(chosen.url, chosen.requests, chosen.out))


if __name__ == "__main__":
    main()
