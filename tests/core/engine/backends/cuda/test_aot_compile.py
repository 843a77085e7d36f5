"""Every kernel compiled for GPUs that are not here: what Triton's interpreter lets pass, its
compiler may not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = os.environ.get("QUIETCHOIR_FUZZ") == "full"
KERNELS = {
    "product_4",
    "product_8",
    "unpack_4",
    "unpack_8",
    "rope_head",
    "attend_part",
    "attend_whole",
    "add_norm_row",
    "gate_row",
}
FEW = (["--capability=80", "--shape=odd 3"],)  # seconds; the whole takes minutes
ALL = (
    *([f"--capability={capability}"] for capability in (80, 86, 89, 90)),
    ["--dtype=float32", "--shape=odd 3"],
    ["--dtype=float16", "--shape=13b 1"],
)


@pytest.mark.fuzz
@pytest.mark.parametrize("asked", ALL if FULL else FEW, ids=" ".join)
def test_every_kernel_compiles_and_would_start(asked: list[str], tmp_path: Path) -> None:
    """The driver finds out alone: no register goes to memory, and shared memory and registers
    are there.
    """
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    command = [
        sys.executable,
        "-m",
        "quietchoir.core.engine.backends.cuda.aot_compile",
        "--json",
        *asked,
    ]
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert {kernel["name"] for kernel in found} == KERNELS
    assert not [kernel for kernel in found if kernel["spilled"] or not kernel["registers"]]
