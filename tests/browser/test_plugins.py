"""A plugin on the page: found, shown with permissions in plain words, installed at a click."""

from pathlib import Path

import pytest

from quietchoir.core.config import PluginsConfig
from quietchoir.plugins.host import PluginHost
from quietchoir.plugins.market import NodeMarket
from quietchoir.plugins.registry import client
from quietchoir.tests.browser.chromium import Tab
from quietchoir.tests.browser.steps import click, fill
from quietchoir.tests.fakes.http import TOKEN, Served
from quietchoir.tests.fakes.server import engine_saying
from quietchoir.tests.plugins.registry.conftest import founded, installed

SEEN = "document.querySelector('dialog').innerText"


async def test_a_plugin_is_found_shown_and_installed_and_its_update_says_what_is_new(
    tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    world = founded(tmp_path / "registry", tmp_path / "scratch")
    client.trust("main", str(world.folder), world.root)
    config = PluginsConfig(enabled=())
    host = PluginHost(config)
    await host.start()
    async with Served(engine_saying(["hi"]), plugins=NodeMarket(host, config)).running() as served:
        await tab.open(f"{served.server.url}#token={TOKEN}")
        await click(tab, "Plugins")
        await tab.until(f"{SEEN}.includes('In the registries that you trust')")
        await fill(tab, "dialog input[type=search]", "counts")
        await click(tab, "Search", "dialog")
        await click(tab, "Show ann/counter")
        await tab.until(f"{SEEN}.includes('takes 64 MB of memory at most')")
        shown = await tab.run(SEEN)
        assert "rita approved of it" in shown and "found 3 things" in shown
        assert "Price: free" in shown and not installed()
        await click(tab, "Let it in")
        await tab.until(f"{SEEN}.includes('ann/counter is installed.')")
        assert installed()["ann/counter"].head.version == "1.0.0"
        world.release("ann/counter", "1.1.0", "rita", "ruth", permissions={"folders": ["tea"]})
        await click(tab, "Ask the registries what is new, and what was revoked")
        await click(tab, "Update ann/counter")
        await tab.until(f"{SEEN}.includes('You have 1.0.0; new in this one: read in the folders')")
        assert "reads everything in folders that you show to it: tea" in await tab.run(SEEN)
        await click(tab, "Update", "dialog .offer")
        await tab.until(f"{SEEN}.includes('1.1.0')")
        await tab.until(f"!{SEEN}.includes('new in this one')")
        assert installed()["ann/counter"].head.version == "1.1.0"
        assert tab.problems == []
    await host.stop()
