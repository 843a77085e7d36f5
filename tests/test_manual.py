"""Completions and pages say what the parser says, and shells and man take them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from quietchoir import cli, manual


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man") / "man1"
    assert cli.main(["manual", "--out", str(folder)]) == 0
    return folder


def test_every_command_and_every_flag_is_in_the_pages(made: Path) -> None:
    top = cli.parser()
    first = (made / "quietchoir.1").read_text("utf-8")
    for verb, parser in manual.below(top).items():
        page = (made / f"quietchoir-{verb}.1").read_text("utf-8")
        assert manual.text(verb) in first
        for one in manual.family(parser):
            assert manual.text(one.prog.split()[-1]) in page
            for flag in (flag for action in one._actions for flag in action.option_strings):
                assert f"\\fB{manual.text(flag)}\\fR" in page, (one.prog, flag)


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff to read them")
def test_man_takes_the_pages_without_a_warning(made: Path) -> None:
    done = subprocess.run(
        ["groff", "-Kutf8", "-man", "-ww", "-z", "-Tutf8", *sorted(map(str, made.iterdir()))],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("quietchoir mod", {"model"}),
        ("quietchoir model p", {"pull"}),
        ("quietchoir federation pa", {"pause"}),
        ("quietchoir serve --pow", {"--power"}),
        ("quietchoir serve --power ", {"quiet", "balanced", "full"}),
    ],
)
def test_bash_completes_commands_flags_and_choices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, shown: set[str]
) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "quietchoir.bash"
    script.write_text(capsys.readouterr().out, "utf-8")
    parts = words.split(" ")
    asked = f"""
source {script}
COMP_WORDS=({" ".join(f"'{one}'" for one in parts)}) COMP_CWORD={len(parts) - 1}
function=$(complete -p quietchoir | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function quietchoir '{parts[-1]}' '{parts[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert shown <= {one.strip() for one in done.stdout.split("\n")}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_scripts_name_every_command(
    capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in manual.below(cli.parser()))


def test_words_of_a_flag_are_no_command_of_roff() -> None:
    assert manual.text(".so /etc/passwd") == "\\&.so /etc/passwd"
    assert manual.text("'a\\n") == "\\(aqa\\en"
