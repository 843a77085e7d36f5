"""Every fault of the table, done to real processes: each must be survived, and a whole round
must end after it.
"""

from collections.abc import Iterator

import pytest

from quietchoir.simulations.faults.namespaces import NoNamespacesError
from quietchoir.simulations.faults.table import LINES, NAMES, Play

PATIENCE_S = 900.0  # of the last one, on a machine that has much else to do; nothing is measured


@pytest.fixture(scope="module")
def play() -> Iterator[Play]:
    """All of them, going on; each test waits for its own."""
    with Play() as play:
        yield play


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.parametrize("fault", NAMES)
def test_a_whole_round_ends_after(fault: str, play: Play) -> None:
    try:
        play.outcomes[fault].result(timeout=PATIENCE_S)
    except NoNamespacesError as reason:
        pytest.skip(str(reason))


def test_no_name_stands_twice() -> None:
    assert len(set(NAMES)) == len(NAMES) == sum(len(faults) for _, faults in LINES)
