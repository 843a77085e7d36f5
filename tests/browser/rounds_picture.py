"""The picture of the coordinator's page, of a real run: `python -m
quietchoir.tests.browser.rounds_picture STATE`.

STATE is what was given to `quietchoir coordinate --state`, with `--page`'s token in it or not yet.
"""

import argparse
import asyncio
from pathlib import Path

from quietchoir.federation.monitor.page import Page
from quietchoir.federation.monitor.run_status import from_disk
from quietchoir.tests.browser.chromium import browser


async def take(state: Path, target: Path, dark: bool) -> None:
    """Serve the board, open it, take the picture."""
    with Page(from_disk(state), 0, state) as page:
        async with browser() as tab:
            await tab.open(page.url)
            await tab.until(
                "document.querySelector('svg.curve') || document.querySelector('.panel')"
            )
            await tab.picture(target, width=1120, height=860, dark=dark)


def main() -> None:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/rounds.png"))
    parser.add_argument("--dark", action="store_true")
    chosen = parser.parse_args()
    asyncio.run(take(chosen.state, chosen.out, chosen.dark))


if __name__ == "__main__":
    main()
