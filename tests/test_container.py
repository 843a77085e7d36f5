"""The container file, as far as it can be tried without a builder: its commands, run here."""

import asyncio
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from quietchoir import cli
from quietchoir.tests.fakes.http import Served
from quietchoir.tests.fakes.server import engine_saying

ROOT = Path(__file__).resolve().parents[1]
KNOWN = ("FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK",
         "STOPSIGNAL", "ENTRYPOINT", "CMD")  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """Each with what follows it; a line of this file is one instruction."""
    lines = (ROOT / "Containerfile").read_text("utf-8").splitlines()
    return [(word, rest) for word, _, rest in (
        line.partition(" ") for line in lines if line and not line.startswith("#")
    )]  # fmt: skip


def last(wanted: str) -> str:
    return [rest for word, rest in instructions() if word == wanted][-1]


def test_it_ends_as_a_user_whose_home_alone_is_kept_and_serves_on_the_published_port() -> None:
    assert {word for word, _ in instructions()} <= set(KNOWN)
    user, home = last("USER"), last("VOLUME")
    making = last("RUN")
    assert user != "root" and f"useradd --uid 1000 --no-create-home {user}" in making
    assert f"-o {user} -g {user} -m 0700 {home}" in making
    assert f"QUIETCHOIR_HOME={home}" in last("ENV")
    [command] = json.loads(last("ENTRYPOINT"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert command in scripts
    chosen = cli.parser().parse_args(json.loads(last("CMD")))
    assert (chosen.verb, chosen.host, chosen.plain_http) == ("serve", "0.0.0.0", True)
    assert last("EXPOSE") == "8765"


def test_it_installs_the_tested_versions_and_the_extras_that_are_asked_for(tmp_path: Path) -> None:
    [writing, making] = [rest for word, rest in instructions() if word == "RUN" and "pins" in rest]
    pins = tmp_path / "pins.txt"
    subprocess.run(["sh", "-ec", writing.replace("/pins.txt", str(pins))], cwd=ROOT, check=True)
    tested = (ROOT / "constraints.txt").read_text("utf-8")
    lines = pins.read_text("utf-8").splitlines()
    assert lines == re.findall(r"(?m)^(\w\S*==.*?) \\$", tested) and "--hash" not in str(lines)
    assert len(lines) == len(re.findall(r"(?m)^\w", tested))
    assert "-c /pins.txt" in making
    for extras, told in (("", "."), ("documents,plugins", ".[documents,plugins]")):
        words = ["sh", "-c", f"echo {making.rsplit(maxsplit=1)[1]}"]
        said = subprocess.run(words, env={"EXTRAS": extras}, stdout=subprocess.PIPE, check=True)
        assert said.stdout.decode() == f"{told}\n"
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    [line] = re.findall(r"name what you want of (.*)", (ROOT / "Containerfile").read_text("utf-8"))
    named = re.findall(r"`(\w+)`", line)
    assert named and set(named) <= set(offered["optional-dependencies"])


def test_what_is_built_is_what_git_keeps() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert {".git", ".venv", "build"} <= set(ignored)
    assert not {"README.md", "LICENSE", "pyproject.toml", "setup.py", "core"} & set(ignored)


async def test_its_health_check_tells_a_node_that_answers_from_none() -> None:
    program = json.loads(re.sub(r"^.*?CMD ", "", last("HEALTHCHECK")))
    assert program[0] == "python"

    def checked(url: str) -> int:
        code = program[2].replace("http://127.0.0.1:8765/", url)
        assert code != program[2]
        return subprocess.run(
            [sys.executable, *program[1:2], code], stderr=subprocess.DEVNULL
        ).returncode

    async with Served(engine_saying(["So."])).running() as served:
        assert await asyncio.to_thread(checked, served.server.url) == 0
    assert await asyncio.to_thread(checked, served.server.url) != 0
