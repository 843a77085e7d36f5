"""A browser for the tests of the pages; without one they are skipped, and fail where CI runs."""

import os
from collections.abc import AsyncIterator

import pytest

from quietchoir.tests.browser.chromium import Tab, browser, find


@pytest.fixture(autouse=True)
def _needs_a_browser() -> None:
    if find() is not None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("no Chromium here; continuous integration must have one")
    pytest.skip("no Chromium on this machine; install the package chromium to test the page")


@pytest.fixture
async def tab() -> AsyncIterator[Tab]:
    """A browser's one tab, at nothing yet."""
    async with browser() as running:
        yield running
