"""Children of a demonstration are heard and always ended."""

from pathlib import Path

import pytest

from quietchoir.core.errors import QuietchoirError
from quietchoir.simulations.processes import ProcessGroup


def test_a_child_that_fails_is_quoted(tmp_path: Path) -> None:
    with (
        ProcessGroup(tmp_path) as stage,
        pytest.raises(
            QuietchoirError,
            match=r"broken ended with code "
            r"2: .*no such file",
        ),
    ):
        stage.start("broken", "--config", str(tmp_path / "absent.toml"), "doctor").next_line(60)


def test_leaving_the_stage_ends_a_child_that_would_go_on(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as stage:
        child = stage.start("patient", "serve", "--help")
        child.wait_for(lambda text: "usage" in text, 60)
    assert child.process.poll() is not None
