"""What strangers' texts do to a terminal: letters of every script arrive, nothing that a
terminal obeys does.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from quietchoir import cli
from quietchoir.core import screen
from quietchoir.plugins.hidden import legible

WHOLE = {
    "Persian with joiners": "می‌خواهم کتاب‌ها را ببینم",
    "Hindi with joiners": "क्‍ष और र्‍य",
    "Bengali with a joiner": "র‌্য",
    "Sinhala with a joiner": "ශ්‍රී ලංකා",
    "a family": "👨‍👩‍👧‍👦 arrived",
    "a skin tone and a profession": "👩🏽‍🚒",
    "a heart on fire": "❤️‍🔥",
    "a keycap": "press 1️⃣",
    "a text picture": "☎︎",
    "the flag of Wales": "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",
    "two letters that are a flag": "🇪🇺",
    "an ideograph in its variant": "葛\U000e0100城",
    "a Mongolian word": "ᠮᠣᠩᠭᠣᠯ",
    "Hebrew with a mark": "שלום\u200f!",
    "Arabic with a mark": "\u061cسلام",
    "a left-to-right mark": "C++\u200e",
    "Vietnamese, decomposed": "tie\u0302\u0301ng",
    "a zalgo letter": "h\u0335\u0321e\u0334",
    "a character newer than Python's tables": "new: \U0001faff and \U000323b0",
    "a soft hyphen": "Donau\u00addampf",
    "box drawing and braille": "┌─┐ ⠿",
    "a tab and a line end": "a\tb\nc",
    "no-break spaces": "10\u00a0000\u202f€",
    "a replacement character": "\ufffd",
}
ISOLATED = {
    "Arabic in isolates": "name: \u2068سلام\u2069, 3",
    "nested isolates": "\u2067א \u2066b\u2069 ג\u2069",
    "embedded and closed": "\u202bשלום\u202c.",
}
OBEYED = {
    "clear the screen": ("a\x1b[2Jb", "a[2Jb"),
    "a title for the window": ("\x1b]0;root\x07x", "]0;rootx"),
    "a link": ("\x1b]8;;http://x\x1b\\y\x1b]8;;\x1b\\", "]8;;http://x\\y]8;;\\"),
    "a string for the terminal": ("\x1bP$q\x1b\\x", "P$q\\x"),
    "the other alphabet": ("\x0eabc\x0f", "abc"),
    "C1 control sequence": ("a\x9b2Jb", "a2Jb"),
    "C1 string": ("\x9dx\x9c", "x"),
    "bell": ("\x07", ""),
    "backspaces": ("good\x08\x08\x08\x08evil", "goodevil"),
    "delete": ("a\x7fb", "ab"),
    "null": ("a\x00b", "ab"),
    "back to the line's start": ("real\rfake", "real\nfake"),
    "a line end of another system": ("a\r\nb", "a\nb"),
    "vertical tab and form feed": ("a\x0bb\x0cc", "a\nb\nc"),
    "next line": ("a\x85b", "a\nb"),
    "line separator": ("a\u2028b\u2029c", "a\nb\nc"),
    "right-to-left override": ("exe.\u202egnp.txt", "exe.gnp.txt"),
    "an override that is closed": ("\u202ecba\u202c", "cba"),
    "left-to-right override": ("\u202dabc", "abc"),
    "an isolate that stays open": ("\u2067abc", "abc"),
    "an embedding that stays open": ("\u202babc\ndef\u202c", "abc\ndef"),
    "a closing that closes nothing": ("a\u2069b\u202cc", "abc"),
    "closed by the other kind": ("\u2067a\u202cb", "ab"),
    "half a surrogate": ("a\ud83db", "a\ufffdb"),
}
HIDDEN = {
    "tags that spell": ("a" + "".join(chr(0xE0000 + ord(letter)) for letter in "send all"), "a"),
    "zero-width spaces": ("a\u200bb", "ab"),
    "joiners that spell": ("a\u200c\u200d\u200d\u200c\u200db", "ab"),
    "selectors that spell": ("😀" + "\ufe01\ufe02\ufe03\ufe04", "😀"),
    "a mark before all": ("\ufeffa", "a"),
    "an invisible plus": ("1\u20641", "11"),
    "private letters": ("a\ue000\U000f0000b", "ab"),
    "fillers": ("a\u3164\u115fb", "ab"),
}


def differs(found: object, wanted: object) -> str:
    """ "" if they are alike."""
    return "" if found == wanted else f"gave {found!a}, expected {wanted!a}"


def printed(text: str, *, encoding: str = "utf-8") -> str:
    """What a stream behind the screen gets."""
    raw = io.BytesIO()
    out, sys.stdout = sys.stdout, io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    try:
        with screen.guarded():
            print(text, end="")
        sys.stdout.flush()
        return raw.getvalue().decode(encoding)
    finally:
        sys.stdout = out


def run(*words: str, stdin: str = "", **environment: str) -> tuple[int, str]:
    """A command as a process: exit status, and what it said on both streams."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("QUIETCHOIR_", "LC_", "LANG", "PYTHONIO"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "quietchoir.cli", *words],
        input=stdin.encode(),
        capture_output=True,
        env={**kept, **environment},
        timeout=120,
    )
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def sentence(result: tuple[int, str], word: str) -> str:
    """ "" if a command ended with one sentence that holds `word`."""
    status, said = result
    good = status in (1, 2) and "Traceback" not in said and word in said
    return "" if good else f"exit {status}, said {said[-300:]!r}, expected a sentence with {word!r}"


def check() -> Iterator[tuple[str, str]]:
    """Each text through the one filter, then through what prints; then what an owner's files and
    variables can be.
    """
    for name, text in {**WHOLE, **ISOLATED}.items():
        yield f"stays: {name}", differs(screen.visible(text), text)
        yield f"is printed: {name}", differs(printed(text), text)
    for name, text in WHOLE.items():
        if "soft hyphen" not in name:
            yield f"stays in a plugin's text: {name}", differs(legible(text), text)
    for name, (text, left) in OBEYED.items():
        yield f"goes: {name}", differs(screen.visible(text), left)
        yield f"is not printed: {name}", differs(printed(text), left)
        yield f"begins no line: {name}", differs("\n" in screen.one_line(text), False)
        escaped = screen.json_line({"x": text})
        yield (
            f"JSON keeps it, escaped: {name}",
            differs((json.loads(escaped)["x"], screen.visible(escaped)), (text, escaped)),
        )
    for name, (text, left) in HIDDEN.items():
        yield f"hidden from a reader: {name}", differs(legible(text), left)
    yield (
        ("a letter that the encoding lacks"),
        differs(printed("naïve 😀", encoding="ascii"), "na\\xefve \\U0001f600"),
    )
    yield from errors_and_tables()
    with tempfile.TemporaryDirectory() as folder:
        yield from files(Path(folder))


def errors_and_tables() -> Iterator[tuple[str, str]]:
    """An error's own words, a usage error, and a table."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = cli.main(["model", "show", "/no\x1b[2J\nquietchoir: all is well"])
    lines = said.getvalue().splitlines()
    yield (
        ("an error cannot move the cursor"),
        differs(("\x1b" in said.getvalue(), status > 0), (False, True)),
    )
    yield "an error is one line", differs(len(lines), 1)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        cli.main(["\x1b[2Jserve"])
    yield "nor can a word on the command line", differs("\x1b" in said.getvalue(), False)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        from rich.console import Console

        table = screen.table("name", box=None)
        table.add_row("[link=http://x]\x1b[2J\u202ea\nb[/link]")
        Console(width=80).print(table)
    yield (
        ("a cell is text on one line"),
        differs("[link=http://x][2Ja b[/link]" in shown.getvalue(), True),
    )


def files(folder: Path) -> Iterator[tuple[str, str]]:
    """What an owner's variables and files can be by mistake: a sentence each, and nothing
    changed.
    """
    a_file, mark = folder / "a-file", b"\xef\xbb\xbf"
    a_file.write_text("x")
    yield (
        ("a home that is a file"),
        sentence(run("model", "list", QUIETCHOIR_HOME=str(a_file)), "QUIETCHOIR_HOME"),
    )
    yield (
        "a home inside a file",
        sentence(run("federation", "identity", QUIETCHOIR_HOME=str(a_file / "home")), "no folder"),
    )
    yield (
        "models that are a file",
        sentence(
            run("model", "list", QUIETCHOIR_MODELS=str(a_file), QUIETCHOIR_HOME=str(folder)),
            "is a file",
        ),
    )
    yield (
        "a home of nobody",
        sentence(run("model", "list", QUIETCHOIR_HOME="~nobody-of-this-name/x"), "no such user"),
    )
    own = {"QUIETCHOIR_HOME": str(folder / "home")}
    (folder / "home").mkdir()
    config = folder / "config.toml"
    for name, content in (
        ("UTF-8", mark + b"[engine]\n"),
        ("UTF-16", "[engine]\n".encode("utf-16")),
    ):
        config.write_bytes(content)
        yield (
            f"a configuration with a mark of {name}",
            sentence(run("--config", str(config), "doctor", **own), "byte-order mark"),
        )
        (folder / "home" / "models").mkdir(exist_ok=True)
        yield (
            f"a federation's file with a mark of {name}",
            sentence(run("federation", "show", str(config), **own), "byte-order mark"),
        )
        yield (
            (f"a scenario with a mark of {name}"),
            sentence(run("simulate", "run", str(config), **own), "byte-order mark"),
        )
    config.write_bytes(b'[engine]\nmodel = "\xe9"\n')
    yield (
        "a configuration in Latin-1",
        sentence(run("--config", str(config), "doctor", **own), "not UTF-8 at byte"),
    )
    token = folder / "token"
    chat = ("chat", "--url", "http://127.0.0.1:9", "--token-file", str(token))
    for name, content in (
        ("two lines", b"a\nb\n"),
        ("a letter", "é".encode()),
        ("a control character", b"a\x01b"),
    ):
        token.write_bytes(content)
        yield f"a token file with {name}", sentence(run(*chat, stdin="hi\n", **own), str(token))
    token.write_bytes(b"x" * 43 + b"\r\n")
    typed = run(*chat, stdin="naïve\n", PYTHONIOENCODING="ascii", **own)
    yield "typed letters on an ASCII terminal", sentence(typed, "PYTHONIOENCODING")
    typed = run(*chat, stdin="naïve\n", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", **own)
    yield "typed letters in the C locale", sentence(typed, "LANG=C.UTF-8")
    for name, card in (
        ("empty", ""),
        ("blank", " "),
        ("a folder", str(folder)),
        ("a binary file", str(a_file)),
    ):
        if name == "a binary file":
            a_file.write_bytes(b"\xff\xfe\x00")
        words = (
            "federation",
            "enroll",
            str(folder / "none.toml"),
            "--name",
            "ann",
            "--public",
            card,
        )
        yield (
            (f"a public card that is {name}"),
            sentence(run(*words, **own), "card" if name == "a folder" else "text"),
        )
