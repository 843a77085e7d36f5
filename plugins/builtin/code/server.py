"""The code plugin: runs Python, checks and formats it, runs its tests, shows differences.

Runs inside a sandbox: what it runs has no network and no file of its owner's. On the kit, numpy,
ruff and pytest.
Always: no process of a run outlives it, and nothing else of it does: what is run could change
`/tmp` and this server's own memory, so the node ends the server after each call
(`runtime.fresh`), with all that a run without namespaces left beside it.
"""

import difflib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from quietchoir_sdk import ToolFailure, paged, serve, tool  # type: ignore[import-not-found]

PACKAGES = Path(__file__).resolve().parents[1] / "files"
MAX_CODE, MAX_SECONDS = 60_000, 8  # characters; the node waits 10 s for a call by default
HEAD, TAIL = 2000, 800  # characters of an output that are told
# runs main.py, and shows the value of its last line as an interactive Python does
DRIVER = """
import ast, sys
sys.path.insert(0, ".")
with open("main.py", encoding="utf-8") as file:
    tree = ast.parse(file.read(), "main.py")
last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
names = {"__name__": "__main__", "__file__": "main.py"}
exec(compile(tree, "main.py", "exec"), names)
if last is not None:
    value = eval(compile(ast.Expression(last.value), "main.py", "eval"), names)
    if value is not None:
        print(repr(value))
"""


def environment(folder: Path) -> dict[str, str]:
    """Variables of what is run: one thread, for processes are few here."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    libraries = os.environ.get("LD_LIBRARY_PATH")
    return {
        **dict.fromkeys(threads, "1"),
        **({} if libraries is None else {"LD_LIBRARY_PATH": libraries}),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PATH": f"{PACKAGES}/bin:/usr/bin:/bin",
        "PYTHONPATH": str(PACKAGES),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run(
    words: Sequence[str], files: Mapping[str, str], seconds: int, text: str = ""
) -> tuple[str, int]:
    """What a program says and its exit status, from a folder of `files` that is gone afterwards.

    Raises:
        ToolFailure: it took too long, or there is too much code.
    """
    if sum(map(len, (*files.values(), text))) > MAX_CODE:
        raise ToolFailure(f"more than {MAX_CODE} characters of code; send less")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        for name, content in files.items():
            (folder / name).write_text(content, "utf-8", errors="replace")
        with tempfile.TemporaryFile() as said:
            started = subprocess.Popen(
                words,
                cwd=folder,
                env=environment(folder),
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                # without namespaces nobody leaves this server's group, with which all end
                start_new_session=os.getpid() == 1,
            )
            try:
                started.communicate(text.encode(errors="replace"), timeout=seconds)
            except subprocess.TimeoutExpired:
                raise ToolFailure(
                    f"still running after {seconds} s, and stopped. It had said: {told(said)}"
                ) from None
            finally:
                end_all(started)
            return told(said), started.returncode


def end_all(started: "subprocess.Popen[bytes]") -> None:
    """End a run with all that it started."""
    with suppress(ProcessLookupError):
        # in its own pid namespace this server is the first process, and all others are the run's
        if os.getpid() == 1:
            os.kill(-1, signal.SIGKILL)
        else:
            started.kill()
    started.wait()
    with suppress(ChildProcessError):
        while os.getpid() == 1:
            os.waitpid(-1, 0)


def told(said: IO[bytes]) -> str:
    """What was said: its beginning and its end."""
    size = said.seek(0, os.SEEK_END)
    said.seek(0)
    begin = said.read(4 * (HEAD + TAIL)).decode("utf-8", "replace")
    if size <= 4 * (HEAD + TAIL) and len(begin) <= HEAD + TAIL:
        return begin.strip() or "(nothing)"
    said.seek(max(0, size - 4 * TAIL))
    end = said.read().decode("utf-8", "replace")[-TAIL:]
    return f"{begin[:HEAD]}\n… (of {size} bytes) …\n{end}".strip()


def python() -> list[str]:
    """The interpreter that this server runs on."""
    return [sys.executable or "/usr/bin/python3", "-B"]


@tool(read_only=True)  # type: ignore[untyped-decorator]
def code_run(code: str, seconds: int = 5) -> str:
    """Run a Python program and tell what it prints, or the value of its last line. numpy is there;
    no network, no files.
    """
    if not 1 <= seconds <= MAX_SECONDS:
        raise ToolFailure(f"seconds is {seconds}; expected 1 to {MAX_SECONDS}")
    said, status = run([*python(), "-c", DRIVER], {"main.py": code}, seconds)
    if status:
        raise ToolFailure(f"ended with status {status}:\n{said}")
    return said


@tool(read_only=True)  # type: ignore[untyped-decorator]
def code_check(code: str, page: int = 1) -> str:
    """Look for mistakes in Python code with ruff, without running it."""
    words = [ruff(), "check", "--isolated", "--no-cache", "--output-format=concise"]
    said, status = run(
        [*words, "--select=B,E,F,W", "--stdin-filename=main.py", "-"], {}, MAX_SECONDS, code
    )
    if status > 1:
        raise ToolFailure(f"ruff ended with status {status}: {said}")
    return str(paged(said.splitlines(), page))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def code_format(code: str) -> str:
    """Python code in the layout of ruff, which is that of black."""
    words = [ruff(), "format", "--isolated", "--no-cache", "--stdin-filename=main.py", "-"]
    said, status = run(words, {}, MAX_SECONDS, code)
    if status:
        raise ToolFailure(f"cannot be formatted: {said}")
    return said


@tool(read_only=True)  # type: ignore[untyped-decorator]
def code_test(code: str, tests: str, seconds: int = 8) -> str:
    """Run pytest on Python code, which the tests import as main: from main import add."""
    if not 1 <= seconds <= MAX_SECONDS:
        raise ToolFailure(f"seconds is {seconds}; expected 1 to {MAX_SECONDS}")
    words = [*python(), "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    said, status = run(
        [*words, "--color=no", "."], {"main.py": code, "test_main.py": tests}, seconds
    )
    if status > 1:
        raise ToolFailure(f"the tests did not run (status {status}):\n{said}")
    return said


@tool(read_only=True)  # type: ignore[untyped-decorator]
def code_diff(before: str, after: str, page: int = 1) -> str:
    """The difference between two texts, line by line."""
    if len(before) + len(after) > MAX_CODE:
        raise ToolFailure(f"more than {MAX_CODE} characters; send less")
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "before", "after", lineterm=""
    )
    return str(paged(list(lines) or ["They are the same."], page))


def ruff() -> str:
    """The program. ToolFailure: it is not there."""
    found = shutil.which("ruff", path=f"{PACKAGES}/bin")
    if found is None:
        raise ToolFailure(
            "ruff is not installed; install it with: pip install 'quietchoir[plugins]'"
        )
    return found


if __name__ == "__main__":
    serve("quietchoir/code", "0.1.0")
