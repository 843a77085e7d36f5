"""Weights are views on the mapped file: processes that load the same file share its pages."""

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import sys
from pathlib import Path
from quietchoir.core.models import weights
loaded = weights.load(Path(sys.argv[1]))
# touches every page
total = sum(int(blocks.raw.view(-1)[::4096].sum()) for blocks in loaded.tensors.values())
print("ready", flush=True)
sys.stdin.readline()
"""


def mapped(pid: int | str, path: Path) -> dict[str, int]:
    """Kilobytes of a file in one process, by what the system says of them."""
    found: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and rest.endswith(" kB"):
            found[name] = found.get(name, 0) + int(rest.split()[0])
    return found


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells which pages are shared"
)
def test_two_processes_share_the_files_pages_and_neither_copies_them(model_path):
    path = model_path.resolve()
    command = [sys.executable, "-c", CHILD, str(path)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for process in both:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        size = path.stat().st_size // 1024
        for process in both:
            pages = mapped(process.pid, path)
            assert pages["Rss"] > 0.9 * size  # all of it is there …
            assert pages["Shared_Clean"] > 0.9 * size  # … once for both …
            assert pages["Pss"] < 0.6 * size  # … so each pays half
            assert pages["Private_Dirty"] == pages["Anonymous"] == 0
    finally:
        for process in both:
            process.communicate("")
