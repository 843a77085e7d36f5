"""`make debug`: the kernels with -O1 -g and sanitizers, played without Python, to be looked into.

The player, its objects and the tape stay in the folder that is named; a debugger runs them again.
"""

import argparse
import sys
from pathlib import Path

from quietchoir.tests.core.engine.backends.native.test_player import fits, whole_scene
from quietchoir.tests.fakes.player import build, play

FLAGS = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)


def main() -> int:
    """Build, play, and say which instruction sets are right; 1 if one is not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compiler", default="g++")
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    evex = Path(__file__).parent / "evex.cpp"
    # with sanitizers a unit takes a minute, on a busy machine many
    player = build(folder, chosen.compiler, *FLAGS, also=(evex,), timeout_s=3600)
    scene, wrong = whole_scene(), 0
    for name, found in play([str(player)], scene.tape, folder).items():
        right = fits(scene, found)
        wrong += not right
        print(f"{name}: {len(found)} numbers, {'right' if right else 'WRONG'}")
    print(f"again, step by step: gdb --args {player} {folder / 'tape'} {folder / 'out'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
