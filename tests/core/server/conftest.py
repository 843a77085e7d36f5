"""A server over a fake engine."""

from collections.abc import AsyncIterator

import pytest

from quietchoir.tests.fakes.http import Served
from quietchoir.tests.fakes.server import FakeTools, engine_saying


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server that always says good morning."""
    async with Served(
        engine_saying(["Good ", "morning."]), FakeTools(names=())
    ).running() as running:
        yield running
