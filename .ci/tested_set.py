"""The tested set, `constraints.txt`: one version of every package, with its files' hashes, for
every machine it is made for.

    python .ci/tested_set.py refresh [--upgrade] [--wheel FILE]    resolve pyproject.toml anew;
                                                                   `make tested-set`
    python .ci/tested_set.py check                                 ask the resolver for each
                                                                   machine; `.ci/run`
    python .ci/tested_set.py lines PART                            what `make setup` hands to pip

Knows pins, hashes and platforms. Needs uv for `refresh` and `check`, nothing but Python for
`lines`.
Always: `refresh` keeps a version that still fits unless it is told to upgrade; a set that one
machine cannot install fails `check`, and a network that is away is said and is no failure.
"""

import argparse
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SET, PEERS = ROOT / "constraints.txt", ROOT / "constraints-peers.txt"
CLIENTS = ROOT / "constraints-clients.txt"  # in an environment of their own
EXTRAS = ("all", "bench", "scale", "dev")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# glibc 2.31 (Debian 11, Ubuntu 20.04) is what llguidance's wheels ask for, macOS 14 what torch's
# and tenseal's do.
PLATFORMS = ("x86_64-manylinux_2_31", "aarch64-manylinux_2_31", "aarch64-apple-darwin")
ENVIRONMENT = {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
CUDA_ONLY = ("nvidia-", "cuda-")  # what torch's CUDA build brings, and its CPU builds do without
AWAY = re.compile(
    r"error sending request|dns error|tcp connect error|operation timed out|Could "
    r"not connect",
    re.IGNORECASE,
)
ELSEWHERE = re.compile(r"^# elsewhere: (\S+) (sha256:[0-9a-f]{64})$", re.MULTILINE)
HEADER = """\
# The tested set, for pip --require-hashes. Written by: make tested-set
# Ranges stay in pyproject.toml. Every hash is one that the index gives for a file of that version,
# except those of builds that lie elsewhere, here by name:
"""


class AwayError(Exception):
    """The index cannot be reached, so nothing is known."""


def uv(*arguments: str | Path) -> str:
    """Run uv with nobody's settings, and return what it said.

    Raises:
        AwayError: it could not reach the index. SystemExit: it refused; its own words are shown.
    """
    found = shutil.which(
        "uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if found is None:
        sys.exit("tested_set: uv is not installed; `make setup` brings it, or: pip install uv")
    done = subprocess.run(
        [found, "--no-config", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    if done.returncode:
        if AWAY.search(done.stderr):
            raise AwayError(done.stderr.strip().splitlines()[-1].strip())
        raise SystemExit(done.stderr.strip())
    return done.stdout + done.stderr


def compile_set(target: Path, source: Path, *options: str | Path) -> None:
    """Resolve `source` for all machines at once into `target`, whose own versions are kept where
    they fit.
    """
    uv(
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--fork-strategy",
        "fewest",
        "--python-version",
        PYTHONS[0],
        "--only-binary",
        ":all:",
        "--generate-hashes",
        "--no-annotate",
        "--no-header",
        "--output-file",
        target,
        *options,
        source,
    )


def extras() -> list[str]:
    """As uv wants them."""
    return [word for extra in EXTRAS for word in ("--extra", extra)]


def refresh(upgrade: bool, wheels: Sequence[Path]) -> None:
    """Write all three files anew."""
    elsewhere = dict(ELSEWHERE.findall(SET.read_text("utf-8"))) if SET.exists() else {}
    elsewhere |= {
        wheel.name: f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" for wheel in wheels
    }
    more = ["--upgrade"] if upgrade else []
    compile_set(SET, ROOT / "pyproject.toml", *extras(), *more)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "peers.in"
        wanted.write_text("".join(f"{one}\n" for one in extra_of("peers")), "utf-8")
        compile_set(PEERS, wanted, "--no-binary", "llama-cpp-python", "--constraints", SET, *more)
        wanted.write_text("".join(f"{one}\n" for one in extra_of("clients")), "utf-8")
        compile_set(CLIENTS, wanted, *more)
    CLIENTS.write_text(
        "# The clients that the tests ask the node with. "
        "Written by: make tested-set\n" + CLIENTS.read_text("utf-8"),
        "utf-8",
    )
    PEERS.write_text(
        "# What `bench engine` and `bench serve` compare with. "
        "Written by: make tested-set\n" + PEERS.read_text("utf-8"),
        "utf-8",
    )
    SET.write_text(with_elsewhere(SET.read_text("utf-8"), elsewhere), "utf-8")


def extra_of(name: str) -> list[str]:
    """The requirements of one extra."""
    import tomllib

    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return list(table["project"]["optional-dependencies"][name])


def with_elsewhere(text: str, elsewhere: dict[str, str]) -> str:
    """The set with the hashes of builds that the index does not carry; those of another version
    than the set's are dropped.
    """
    kept = []
    for name, digest in sorted(elsewhere.items()):
        package, version = name.split("-")[:2]
        line = re.compile(
            rf"^{re.escape(package)}=={re.escape(version.partition('+')[0])}(?: "
            rf";.*)? \\$",
            re.MULTILINE,
        )
        if (found := line.search(text)) is None:
            print(
                f"tested_set: {name} is not of the set's version, its hash is dropped",
                file=sys.stderr,
            )
            continue
        if f"--hash={digest}" not in text:  # the resolver keeps hashes that stood there before
            text = f"{text[: found.end()]}\n    --hash={digest} \\{text[found.end() :]}"
        kept.append(f"# elsewhere: {name} {digest}\n")
    return HEADER + "".join(kept) + text


def entries(text: str) -> dict[str, str]:
    """Name → its whole entry, of a file that `refresh` wrote. A package may stand there once for
    each of several machines.
    """
    found: dict[str, str] = {}
    for entry in re.split(r"(?m)^(?=[a-z0-9])", text):
        if pin := re.match(r"([a-z0-9._-]+)==", entry):
            found[pin[1]] = found.get(pin[1], "") + entry.rstrip("\n") + "\n"
    return found


def pins(text: str) -> dict[str, set[str]]:
    """Name → versions and markers, without hashes."""
    return {
        name: {line.rstrip(" \\") for line in entry.splitlines() if not line.startswith(" ")}
        for name, entry in entries(text).items()
    }


def lines(part: str) -> str:
    """What pip shall install.

    Args:
        part: "torch": as the index has it; "version": its version alone; "small": a CPU build whose
            hash the set knows; "rest": all the others, without CUDA's libraries if the torch that
            is installed asks for none.

    Raises:
        SystemExit: the set knows no small build.
    """
    text = SET.read_text("utf-8")
    whole = entries(text)
    if part == "torch":
        return whole["torch"]
    if part == "version":
        return whole["torch"].removeprefix("torch==").split()[0] + "\n"
    if part == "small":
        known = [
            (name.split("-")[1], digest)
            for name, digest in ELSEWHERE.findall(text)
            if name.startswith("torch-")
        ]
        if not known:
            raise SystemExit("tested_set: it knows no build of torch besides the index's")
        version = known[0][0]
        return (
            f"torch=={version} "
            f"{' '.join(f'--hash={digest}' for other, digest in known if other == version)}\n"
        )
    wanted = importlib.metadata.requires("torch") or []
    small = not any(one.startswith(CUDA_ONLY) for one in wanted)
    return "".join(
        entry
        for name, entry in whole.items()
        if name != "torch" and not (small and name.startswith(CUDA_ONLY))
    )


def check() -> int:
    """Is the set what pyproject.toml asks for, and can every machine install it from the index
    alone? 1 if not.
    """
    try:
        return int(differs()) or int(any(list(ThreadPoolExecutor(4).map(fails, machines()))))
    except AwayError as error:
        print(f"tested set: NOT CHECKED, the index cannot be reached: {error}")
        return 0


def machines() -> list[tuple[str, str]]:
    """Every platform with every Python."""
    return [(platform, python) for platform in PLATFORMS for python in PYTHONS]


def differs() -> bool:
    """Whether resolving again would change a version."""
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / SET.name
        again.write_text(SET.read_text("utf-8"), "utf-8")
        compile_set(again, ROOT / "pyproject.toml", *extras())
        old, new = pins(SET.read_text("utf-8")), pins(again.read_text("utf-8"))
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if changed:
        print(
            f"tested set: not what pyproject.toml asks for ({', '.join(changed)}); run: make "
            f"tested-set"
        )
    return bool(changed)


def fails(machine: tuple[str, str]) -> bool:
    """Ask the resolver what one machine would install: wheels alone, each with a hash that the
    set knows.
    """
    platform, python = machine
    with tempfile.TemporaryDirectory() as scratch:
        try:
            said = uv(
                "pip",
                "install",
                "--dry-run",
                "--target",
                scratch,
                "--python-platform",
                platform,
                "--python-version",
                python,
                "--only-binary",
                ":all:",
                "--require-hashes",
                "-r",
                SET,
            )
        except SystemExit as error:
            print(f"tested set: CPython {python}, {platform}: cannot be installed\n{error}")
            return True
    packages = sum(line.startswith(" + ") for line in said.splitlines())
    print(f"tested set: CPython {python}, {platform}: {packages} packages")
    return False


def main() -> int:
    """One of the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    again = actions.add_parser("refresh")
    again.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    again.add_argument(
        "--wheel",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a build the index lacks",
    )
    actions.add_parser("check")
    actions.add_parser("lines").add_argument("part", choices=["torch", "version", "small", "rest"])
    chosen = parser.parse_args()
    if chosen.action == "lines":
        print(lines(chosen.part), end="")
        return 0
    if chosen.action == "check":
        return check()
    try:
        refresh(chosen.upgrade, chosen.wheel)
    except AwayError as error:
        print(
            f"tested_set: the index cannot be reached, nothing was changed: {error}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
