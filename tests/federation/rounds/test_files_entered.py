"""How many files one round of four synthetic members enters: what is off is not on the path.

`python -m quietchoir.tests.federation.rounds.test_files_entered` prints the files.
"""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import quietchoir
from quietchoir.tests.fakes.federation import clients, coordinator, house

ROOT = Path(quietchoir.__file__).resolve().parent
SIZE, MEMBERS = 50, 4
# Of each room: masks are crypto's own files besides.
MOST = {"plain": {"federation": 13}, "masked": {"federation": 15, "crypto": 9}}


def entered(mode: str, rooms: tuple[str, ...] = ("federation", "crypto")) -> list[str]:
    """Files of `rooms` in which a function was called while one round was trained, sorted.

    The run is taken up and the members are there before the count starts: what is counted is the
    round itself, both sides of it, from the number of the attempt to the step on disk.
    """
    home = house(MEMBERS, mode=mode, recipe={"evaluate_every": 0})
    conductor = coordinator(home, clients(home, SIZE), SIZE)
    conductor.insist(conductor.train_round)  # warm: what is remembered once is not a round's
    found = set[str]()

    def enter(frame: FrameType, event: str, argument: Any) -> None:
        del argument
        if event == "call":
            found.add(frame.f_code.co_filename)

    before = conductor.state.round
    sys.setprofile(enter)
    try:
        conductor.insist(conductor.train_round)
    finally:
        sys.setprofile(None)
    assert conductor.state.round == before + 1
    inside = (Path(name).resolve() for name in found if name.endswith(".py"))
    named = (path.relative_to(ROOT).as_posix() for path in inside if path.is_relative_to(ROOT))
    return sorted(name for name in named if name.split("/")[0] in rooms)


@pytest.mark.parametrize("mode", MOST)
def test_a_round_enters_no_file_of_a_feature_that_is_off(mode: str) -> None:
    files = entered(mode, tuple(MOST[mode]))
    print(f"a {mode} round enters {len(files)} files:", *files, sep="\n  ")
    for room, most in MOST[mode].items():
        assert sum(name.startswith(f"{room}/") for name in files) <= most


if __name__ == "__main__":
    for one, rooms in MOST.items():
        print(f"{one}:", *entered(one, tuple(rooms)), sep="\n  ")
