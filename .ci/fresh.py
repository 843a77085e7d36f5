"""The two commands on a machine as a stranger has it: an empty home, nobody's pip settings, no
system packages of ours.

    python .ci/fresh.py [--keep] [TARGET …]    `make fresh`; demo, then test, unless other targets
                                               are named

Knows environments, clones and clocks. Covered: what the checkout forgot to commit, files of the
home, settings and caches of pip, and, for root on Linux, the programs that `.ci/system-packages`
lists (g++ stays: a compiler is asked for in the README).
Not covered: other programs and libraries of this system, and its kernel's settings.
Always: this checkout is only read; the folder of the run goes when it ends, unless it is to be
kept.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# How this machine reaches the index is no setting of pip's: proxies and certificates pass.
PASSES = re.compile(r"(?i)(.*_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|PIP_CERT|LANG|TZ|TERM)")
STAYS = ("g++",)


def environment(home: Path) -> dict[str, str]:
    """Of a new user who has Python and make."""
    kept = {name: value for name, value in os.environ.items() if PASSES.fullmatch(name)}
    python = Path(sys.base_prefix) / "bin"
    return kept | {
        "HOME": str(home),
        "PATH": f"{python}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_CACHE_DIR": str(home / "pip"),
        "PYTHON": str(python / "python3"),
    }


def listed() -> list[str]:
    """The programs that system packages bring and that a stranger may lack."""
    text = (ROOT / ".ci" / "system-packages").read_text("utf-8")
    table = text.partition("list='")[2].partition("'")[0]
    return [
        command
        for _, command, _ in (line.split() for line in table.splitlines())
        if command not in STAYS
    ]


def hiding(command: Sequence[str]) -> list[str]:
    """The command where the listed programs cannot be seen; as it is, with a word about it,
    where that takes rights we lack.
    """
    there = sorted({found for name in listed() if (found := shutil.which(name))})
    if not there:
        return list(command)
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        print(f"fresh: not hidden, which takes root on Linux: {', '.join(there)}", flush=True)
        return list(command)
    over = "".join(f"mount --bind /dev/null {program}\n" for program in there)
    return ["unshare", "--mount", "sh", "-ec", f'{over}exec "$@"', "sh", *command]


def main() -> int:
    """Clone, run, time. The exit code is that of the first target that failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", default=["demo", "test"], metavar="TARGET")
    parser.add_argument("--keep", action="store_true", help="leave the folder where it is")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="quietchoir-fresh-"))
    seconds: dict[str, float] = {}
    try:
        home, checkout = folder / "home", folder / "quietchoir"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
        for target in chosen.targets:
            started = time.monotonic()
            done = subprocess.run(
                hiding(["make", target]),
                cwd=checkout,
                env=environment(home),
                stdin=subprocess.DEVNULL,
            )
            seconds[target] = round(time.monotonic() - started, 1)
            if done.returncode:
                print(
                    f"fresh: make {target} ended with {done.returncode} after {seconds[target]} s",
                    file=sys.stderr,
                )
                return done.returncode
    finally:
        print(
            json.dumps({"seconds": seconds, "folder": str(folder) if chosen.keep else None}),
            flush=True,
        )
        if not chosen.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
