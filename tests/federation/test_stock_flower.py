"""Stock `flwr run` on Flower's own deployment engine, with the objects that pyproject.toml names."""

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from quietchoir.tests.federation.test_flower_rounds import free_port

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0  # of the test; nothing is measured


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """A SuperLink and two SuperNodes, as Flower starts them; and a project that names our apps, small enough to ship."""
    port, ours = free_port(), tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    home, project = tmp_path / "flwr", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n', "utf-8"
    )
    (project / "pyproject.toml").write_text(
        '[project]\nname = "stock"\nversion = "1.0.0"\ndescription = ""\nlicense = "Apache-2.0"\ndependencies = []\n'
        f'[tool.flwr.app]\npublisher = "{ours["publisher"]}"\n'
        f'[tool.flwr.app.components]\nserverapp = "{ours["components"]["serverapp"]}"\n'
        f'clientapp = "{ours["components"]["clientapp"]}"\n'
        "[tool.flwr.app.config]\nrounds = 1\nmin-nodes = 2\nrehearse = 100\n",
        "utf-8",
    )
    environment = {
        **os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(home),
    }  # fmt: skip
    address = f"127.0.0.1:{port}"
    commands = [
        [
            "flower-superlink",
            "--insecure",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--disable-runtime-dependency-installation",
        ]
    ]
    commands += [
        [
            "flower-supernode",
            "--insecure",
            "--superlink",
            address,
            "--port",
            str(free_port()),
            "--node-config",
            f"partition-id={i}",
        ]
        for i in range(2)
    ]
    log = (tmp_path / "log").open("wb")
    running = [
        subprocess.Popen([str(BIN / words[0]), *words[1:]], env=environment, stdout=log, stderr=log) for words in commands
    ]
    try:
        wait_until_open(f"http://{address}/", running[0])
        yield environment, project
    finally:
        for process in reversed(running):  # the nodes' and the link's children watch their parents and end with them
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.close()


def wait_until_open(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Until somebody answers at `url`."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, "the SuperLink did not start"
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            time.sleep(0.2)


def test_flwr_run_trains_a_round_on_two_nodes(engine: tuple[dict[str, str], Path]) -> None:
    environment, project = engine
    done = subprocess.run(
        [str(BIN / "flwr"), "run", ".", "here", "--stream"],
        cwd=project, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert "quietchoir round 1: 2 nodes" in done.stdout, done.stdout + done.stderr
