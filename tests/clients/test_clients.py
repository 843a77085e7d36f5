"""Real clients, in an environment of their own, get what they ask for."""

import os

import pytest

from quietchoir.tests.clients import matrix
from quietchoir.tests.clients.serving import ENVIRONMENT, MODULES, PYTHON, obliging, run

pytestmark = [
    pytest.mark.skipif(
        not PYTHON.exists() and not os.environ.get("CI"),
        reason=f"no clients in {ENVIRONMENT}: make clients brings them",
    ),
    pytest.mark.timeout(600),
]
OUTCOMES: dict[str, dict[str, str]] = {}  # of the tests of this file that ran before


@pytest.mark.parametrize("module", MODULES)
async def test_a_client_gets_what_it_asks_for(module: str) -> None:
    async with obliging() as served:
        found = await run(module, served)
    OUTCOMES[module] = found
    assert len(found) >= 5, found
    assert {case: wrong for case, wrong in found.items() if wrong} == {}


def test_the_page_of_clients_tells_what_they_did_and_every_field_that_they_know() -> None:
    if OUTCOMES.keys() != {*MODULES}:
        pytest.skip("the clients did not run before")
    assert matrix.PAGE.read_text("utf-8") == matrix.page(OUTCOMES, matrix.known_fields())
