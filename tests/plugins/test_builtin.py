"""The plugins that come along, through the real sandbox: what each is for, and what is meant to
break it.
"""

import ast
import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from quietchoir import cli
from quietchoir.core.errors import ManifestError, SandboxUnavailableError
from quietchoir.plugins import installing, manifest
from quietchoir.plugins.builtin.calculator import arithmetic
from quietchoir.plugins.builtin.calendar import entries
from quietchoir.plugins.grants import PluginSettings
from quietchoir.plugins.host import BUILTIN
from quietchoir.plugins.running import Plugin
from quietchoir.plugins.sandbox import interpreter, packages
from quietchoir.plugins.sandbox.policy import Interpreter
from quietchoir.plugins.sandbox.probe import SandboxReport
from quietchoir.plugins.sdk import quietchoir_sdk

SMALL = 3200  # characters of an answer; some 800 tokens
Ask = Callable[..., tuple[str, bool]]


@pytest.fixture(scope="module")
def shown() -> Iterator[Path]:
    """A folder that the plugin's user can reach; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def ask(
    sandbox: SandboxReport, shown: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ask]:
    """Calls a tool of a built-in plugin, which is started once for all tests here."""
    private = tmp_path_factory.mktemp("private")
    folders = {
        "files": {"documents": shown / "documents", "downloads": shown / "downloads"},
        "calendar": {"calendars": shown / "calendars"},
    }
    started = dict[str, Plugin]()
    with asyncio.Runner() as runner:

        def call(name: str, tool: str, **arguments: object) -> tuple[str, bool]:
            if name not in started:
                for folder in folders.get(name, {}).values():
                    folder.mkdir(exist_ok=True)
                settings = PluginSettings(folders=folders.get(name, {}))
                installing.fill_in(private / name, settings)
                started[name] = Plugin(manifest.read(BUILTIN / name), private / name, {})
            return runner.run(started[name].call(tool, arguments, 30))

        def restart(name: str) -> None:
            runner.run(started.pop(name).stop())

        call.restart = restart  # type: ignore[attr-defined]
        yield call
        for plugin in started.values():
            runner.run(plugin.stop())


def test_each_tool_is_small_enough_for_a_small_model_and_collides_with_no_other():
    names = list[str]()
    for folder in sorted(path.parent for path in BUILTIN.glob("*/manifest.json")):
        terms = manifest.read(folder)
        if terms.id == "quietchoir/documents":
            continue  # called by the node, not by a model
        names += [tool.name for tool in terms.tools]
        if terms.id != "quietchoir/household":
            # all of one plugin's tools leave most of a context of 2,048 tokens to the conversation
            listed = [[tool.name, tool.description, tool.schema] for tool in terms.tools]
            assert len(json.dumps(listed)) < 3200, terms.id
            assert all(tool.description for tool in terms.tools)
    assert len(names) == len(set(names))
    # names that servers of other people have, and that would keep those out
    assert not {"read_file", "write_file", "search_files", "list_directory", "fetch"} & set(names)


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("0.1 + 0.2", "0.3"),
        ("1,250.50 * 4", "5002"),
        ("(3 + 4) × 2^10 ÷ 7 =", "1024"),
        ("15% of 80", "12"),
        ("80 * 15%", "12"),
        ("7 % 3", "1"),
        ("1/3 + 1/6", "0.5"),
        ("2/3", "2/3 (about 0.666666666667)"),
        ("sqrt(2.25)", "1.5"),
        ("√(2)", "about 1.41421356237"),
        ("max(1,200)", "200"),
        ("round(2.675, 2)", "2.68"),
        ("-2^2", "-4"),
        ("factorial(20)", "2432902008176640000"),
        ("average(1, 2, 4)", "7/3 (about 2.33333333333)"),
        ("(-1)^100000000001", "-1"),
        ("0.5^3 + 1e-3", "0.126"),
        ("0x1F + 1", "32"),
    ],
)
def test_sums_are_exact(expression: str, answer: str):
    assert arithmetic.shown(arithmetic.evaluate(expression)) == answer


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("9**9**9**9", "digits; ask for less"),
        ("2^8001", "digits; ask for less"),
        ("10^2000 * 10^2000", "digits; ask for less"),
        ("factorial(10^9)", "whole numbers from 0 to 900"),
        ("comb(10^9, 5)", "whole numbers from 0 to 5000"),
        ("1e999999999", "too large or too small"),
        ("exp(1000)", "too large"),
        ("10.5^10000", "digits; ask for less"),
        ("1/0", "a division by zero"),
        ("0^-1", "a division by zero"),
        ("sqrt(-1)", "no real number"),
        ("(-8)^0.5", "no real number"),
        ("log(0)", "not defined there"),
        ("(" * 300 + "1" + ")" * 300, "characters; at most 500"),
        ("(" * 240 + "1" + ")" * 240, "is no expression"),
        ("1" + "+1" * 150, "more than 200 parts"),
        ("__import__('os').system('id')", "is not computed here"),
        ("().__class__", "is not computed here"),
        ("[1]*10**9", "is not computed here"),
        ("(x for x in y)", "is not computed here"),
        ("'a'*999999999", "is not computed here"),
        ("round(1, 10**9)", "at most 50"),
        ("", "is no expression"),
        ("1\0", "is no expression"),
    ],
)
def test_what_would_take_long_or_is_no_sum_is_refused(expression: str, told: str):
    with pytest.raises(arithmetic.Unanswerable, match=told.replace("(", r"\(")):
        arithmetic.evaluate(expression)


def test_the_calculator_answers_and_converts(ask: Ask):
    assert ask("calculator", "calculate", expression="12.5 * 8") == ("12.5 * 8 = 100", True)
    said, ok = ask("calculator", "calculate", expression="9**9**9")
    assert not ok and "digits" in said
    for value, source, target, answer in (
        (5, "mile", "km", "5 mile = 8.04672 km"),
        (100, "celsius", "fahrenheit", "100 celsius = 212 fahrenheit"),
        (90, "km/h", "m/s", "90 km/h = 25 m/s"),
        (1, "cup", "ml", "1 cup = 236.5882365 ml"),
    ):
        found = ask("calculator", "convert_unit", value=value, from_unit=source, to_unit=target)
        assert found == (answer, True)
    for source, target, told in (
        ("kg", "m", "measure different things"),
        ("flurb", "m", "no unit is called"),
        ("m^999999999", "m", "is no unit"),
        ("(10**10)**(10**10)", "m", "is no unit"),
        ("m" + "*m" * 9999, "m", "is no unit"),
    ):
        said, ok = ask("calculator", "convert_unit", value=1, from_unit=source, to_unit=target)
        assert not ok and told in said


def test_notes_are_kept_found_and_deleted(ask: Ask):
    assert ask("notes", "notes_write", title="Shopping", text="milk\nbread")[1]
    assert ask("notes", "notes_append", title="shopping", text="tea")[1]
    assert ask("notes", "notes_write", title="Long", text="word " * 3000)[1]
    ask.restart("notes")  # type: ignore[attr-defined]
    assert ask("notes", "notes_read", title="SHOPPING") == ("Shopping:\nmilk\nbread\ntea", True)
    assert "Shopping: tea" in ask("notes", "notes_search", text="TEA")[0]
    pages = [ask("notes", "notes_read", title="Long", page=page)[0] for page in range(1, 7)]
    assert all(len(page) < SMALL for page in pages) and "page 1 of 6; ask for page 2" in pages[0]
    assert sum(page.count("word") for page in pages) >= 2990  # a cut goes through few
    assert ask("notes", "notes_read", title="Long", page=7) == (
        "there is no page 7; there are 6",
        False,
    )
    said, ok = ask("notes", "notes_write", title="Large", text="x" * 30_000)
    assert not ok and "at most 20000" in said
    assert ask("notes", "notes_delete", title="Long")[1]
    said, ok = ask("notes", "notes_read", title="Long")
    assert not ok and "there are: Shopping" in said
    assert ask("notes", "notes_list")[0].startswith("Shopping (")


def test_granted_files_are_listed_read_and_searched(ask: Ask, shown: Path):
    papers = shown / "documents"
    (papers / "house").mkdir(parents=True)
    (papers / "house" / "lease.txt").write_text("The rent is due.\nThe cat may stay.\n")
    (papers / "long.txt").write_text("".join(f"line {number}\n" for number in range(3000)))
    (papers / "data.bin").write_bytes(b"\0\1" * 100)
    (papers / "(a+)+$.txt").write_text("a" * 50_000 + "!")  # what a pattern would not end on
    assert ask("files", "files_list")[0] == "documents/\ndownloads/"
    assert ask("files", "files_list", folder="documents")[0].startswith("documents/house/\n")
    odd = os.fsencode(papers / "house") + b"/a\nb\xff.txt"
    Path(os.fsdecode(odd)).write_text("odd name")
    listed = ask("files", "files_list", folder="documents/house")[0].splitlines()
    assert listed[0].startswith(r"documents/house/a\nb\xff.txt (8 bytes") and len(listed) == 2
    assert r"a\nb\xff.txt:1: odd name" in ask("files", "files_search", text="odd name")[0]
    read = ask("files", "files_read", path="documents/house/lease.txt")
    assert read == ("The rent is due.\nThe cat may stay.", True)
    found = ask("files", "files_search", text="CAT may")
    assert found == ("documents/house/lease.txt:2: The cat may stay.", True)
    assert ask("files", "files_search", text="(a+)+$")[0].startswith("documents/(a+)+$.txt")
    page, ok = ask("files", "files_read", path="documents/long.txt", page=3)
    assert ok and len(page) < SMALL and "(page 3 of " in page
    for path, told in (
        ("documents/data.bin", "no text"),
        ("documents/gone.txt", "there is no such file"),
        ("elsewhere/x", "a path begins with one of: documents, downloads"),
        ("documents/house", "is a folder"),
    ):
        said, ok = ask("files", "files_read", path=path)
        assert not ok and told in said


def test_no_link_name_or_pipe_leads_out_of_the_granted_folders(ask: Ask, shown: Path):
    inside = shown / "documents"
    inside.mkdir(exist_ok=True)
    secret = shown / "secret.txt"
    secret.write_text("nobody granted this")
    links: dict[str, str | Path] = {
        "host": secret,
        "system": "/usr/lib/os-release",
        "self": "/proc/self/environ",
        "above": "../..",
        "loop": "loop",
    }
    for name, target in links.items():
        (inside / name).symlink_to(target)
    os.mkfifo(inside / "pipe")
    tried = [f"documents/{name}" for name in links]
    tried += [
        "documents/../../usr/lib/os-release",
        "documents/pipe",
        "documents/a\0b",
        "/etc/passwd",
    ]
    for path in tried:
        said, ok = ask("files", "files_read", path=path)
        assert not ok and "granted this" not in said and "PATH=" not in said, path
    assert ask("files", "files_search", text="granted this")[0].startswith("No file has")
    said, ok = ask("files", "files_write", path="documents/new.txt", text="x")
    assert not ok and "read only" in said and not (inside / "new.txt").exists()
    for name in (*links, "pipe"):
        (inside / name).unlink()


CALENDAR = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//test//
{}
END:VCALENDAR
"""


def event(uid: str, start: str, *more: str) -> str:
    """One VEVENT."""
    return "\n".join(["BEGIN:VEVENT", f"UID:{uid}", f"DTSTART{start}", f"SUMMARY:{uid}", *more,
                      "END:VEVENT"])  # fmt: skip


def test_the_calendar_tells_what_happens_and_what_is_free(ask: Ask, shown: Path):
    folder = shown / "calendars"
    folder.mkdir(exist_ok=True)
    (folder / "work.ics").write_text(
        CALENDAR.format(
            "\n".join(
                [
                    event("Standup", ":20270104T090000", "DURATION:PT30M",
                          "RRULE:FREQ=WEEKLY;BYDAY=MO,WE", "EXDATE:20270106T090000"),
                    event("Standup", ":20270113T100000", "DURATION:PT30M",
                          "RECURRENCE-ID:20270113T090000"),
                    event("Fair", ";VALUE=DATE:20270105", "DTEND;VALUE=DATE:20270107"),
                    event("Dentist", ":20270105T140000", "DTEND:20270105T150000",
                          "LOCATION:High Street", "DESCRIPTION:bring the card"),
                ]
            )
        )
    )  # fmt: skip
    assert ask("calendar", "calendar_list", start="2027-01-04", days=3) == (
        "Mon 2027-01-04 09:00 to 09:30: Standup (work)\n"
        "Tue 2027-01-05 to 2027-01-06: Fair (work)\n"
        "Tue 2027-01-05 14:00 to 15:00: Dentist, High Street (work)",
        True,
    )
    assert "Wed 2027-01-13 10:00" in ask("calendar", "calendar_list", start="2027-01-13", days=1)[0]
    found = ask("calendar", "calendar_search", text="CARD", start="2027-01-01")
    assert found[0].startswith("Tue 2027-01-05 14:00")
    free = {"start": "2027-01-05", "minutes": 90, "from_hour": 9, "to_hour": 18}
    assert ask("calendar", "calendar_free", **free) == (
        "Tue 2027-01-05 09:00 to 14:00\nTue 2027-01-05 15:00 to 18:00",
        True,
    )
    before = (folder / "work.ics").read_bytes()
    said = ask("calendar", "calendar_add", title="Visit", start="2027-01-05 16:00")
    assert said == ("Added Tue 2027-01-05 16:00 to 17:00: Visit (own).", True)
    ask.restart("calendar")  # type: ignore[attr-defined]
    assert "Visit" in ask("calendar", "calendar_list", start="2027-01-05", days=1)[0]
    assert ask("calendar", "calendar_free", **free)[0] == "Tue 2027-01-05 09:00 to 14:00"
    for arguments, told in (
        ({"start": "someday"}, "is no time"),
        ({"start": "2027-01-05 16:00", "end": "2027-01-05 15:00"}, "before it begins"),
        ({"start": "2027-01-05", "end": "2027-01-05 15:00"}, "both with an hour"),
    ):
        refused, ok = ask("calendar", "calendar_add", title="x", **arguments)
        assert not ok and told in refused
    assert not ask("calendar", "calendar_remove", title="Dentist", start="2027-01-05")[1]
    assert ask("calendar", "calendar_remove", title="visit", start="2027-01-05")[1]
    assert (folder / "work.ics").read_bytes() == before


def test_hostile_calendars_are_named_and_the_others_are_told(ask: Ask, shown: Path):
    folder = shown / "calendars"
    folder.mkdir(exist_ok=True)
    sixty = ",".join(map(str, range(60)))
    bombs = [
        event("Seconds", ":20270101T000000", "RRULE:FREQ=SECONDLY"),
        event("Parts", ":20270101T000000", f"RRULE:FREQ=DAILY;BYMINUTE={sixty};BYSECOND={sixty}"),
        event("Old", ":16000101T000000", "RRULE:FREQ=HOURLY"),
        event("Never", ":20270101T000000", "RRULE:FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"),
        event("Odd", ":20270101T000000", "RRULE:FREQ=SOMETIMES"),
        event("Late", ":99991231T230000", "DTEND:99991231T235959"),
        event("Fine", ":20270301T120000"),
    ]  # fmt: skip
    (folder / "bombs.ics").write_text(CALENDAR.format("\n".join(bombs)))
    (folder / "damaged.ics").write_bytes(b"BEGIN:VCALENDAR\n\xff\0END")
    (folder / "link.ics").symlink_to("/usr/lib/os-release")
    said, ok = ask("calendar", "calendar_list", start="2027-03-01", days=7)
    assert ok and "Fine (bombs)" in said and len(said) < SMALL
    for left_out in (
        "'Seconds' repeats too often",
        "'Parts' repeats",
        "'Old' repeats",
        "link.ics: a link",
    ):
        assert left_out in said
    assert "Mon 2027-03-01 09:00 to 09:30: Standup" in said or not (folder / "work.ics").exists()
    for name in ("bombs.ics", "damaged.ics", "link.ics"):
        (folder / name).unlink()


def test_what_is_written_destroys_nothing_beside_it_and_follows_no_link(
    sandbox: SandboxReport, shown: Path, tmp_path: Path
):
    place, other = shown / "out", shown / "other.txt"
    place.mkdir()
    place.chmod(0o777)
    theirs = {".letter.txt.new": "the owner's", "quietchoir.new": "his too", "letter.txt": "old"}
    for name, text in theirs.items():
        (place / name).write_text(text)
        (place / name).chmod(0o666)
    (place / "letter.txt").chmod(0o640)
    os.chown(place / "letter.txt", *[65534 if os.geteuid() == 0 else -1] * 2)
    other.write_text("elsewhere")
    other.chmod(0o666)
    (place / ".list.txt.new").symlink_to("letter.txt")

    async def told(name: str, grant: str, *calls: tuple[str, Mapping[str, object]]) -> list[str]:
        installing.fill_in(tmp_path / name, PluginSettings(folders={grant: place}))
        plugin = Plugin(manifest.read(BUILTIN / name), tmp_path / name, {})
        try:
            return [(await plugin.call(*call, 30))[0] for call in calls]
        finally:
            await plugin.stop()

    letter = {"path": "drafts/letter.txt", "text": "new", "overwrite": True}
    draft = {"path": "drafts/list.txt", "text": "milk"}
    said = asyncio.run(told("files", "drafts", ("files_write", letter), ("files_write", draft)))
    assert all(one.startswith("Wrote drafts/") for one in said), said
    add = ("calendar_add", {"title": "Visit", "start": "2027-01-05 16:00"})
    assert "Added" in asyncio.run(told("calendar", "added", add, add))[1]
    (place / "quietchoir.ics").unlink()
    (place / "quietchoir.ics").symlink_to("../other.txt")
    assert "is a link" in asyncio.run(told("calendar", "added", add))[0]
    assert (place / "list.txt").read_text() == "milk"
    assert (place / "letter.txt").read_text() == "new"
    assert (place / "letter.txt").stat().st_mode & 0o777 == 0o640
    assert {name: (place / name).read_text() for name in theirs} == theirs | {"letter.txt": "new"}
    assert other.read_text() == "elsewhere"
    assert {one.name for one in place.iterdir()} == {
        *theirs, "list.txt", ".list.txt.new", "quietchoir.ics"
    }  # fmt: skip


def test_a_calendar_that_takes_too_long_is_named_and_the_others_are_told(tmp_path: Path):
    folder = tmp_path / "calendars"
    folder.mkdir()
    many = "\n".join(event(str(number), ":20270101T000000") for number in range(2000))
    (folder / "many.ics").write_text(CALENDAR.format(many))
    (folder / "zfine.ics").write_text(CALENDAR.format(event("Fine", ":20270301T120000")))
    calendars = entries.Calendars()
    found, left_out = calendars.series([folder], "", 0.02)
    assert not found and "many.ics: takes too long" in left_out[0]
    assert left_out[1:] == ["zfine.ics: not read yet; ask again"]
    found, left_out = calendars.series([folder], "", 0.02)
    assert [name for name, _ in found] == ["zfine"] and "takes too long" in left_out[0]
    assert len(entries.Calendars().series([folder], "", 60.0)[0]) == 2001


LEAVE = """
for name in ("/tmp/conftest.py", "/tmp/pytest.ini", "/dev/shm/left"):
    open(name, "w").close()
"""
SEE = """
import os
left = {"conftest.py", "left", "pytest.ini"} & {*os.listdir("/tmp"), *os.listdir("/dev/shm")}
len(left), open("/proc/1/stat").read().rpartition(")")[2].split()[19]
"""


async def test_one_run_of_code_leaves_nothing_to_the_next(sandbox: SandboxReport, tmp_path: Path):
    terms = manifest.read(BUILTIN / "code")
    kept = replace(terms.head.runtime, fresh=False)
    arms = {"kept": replace(terms, head=replace(terms.head, runtime=kept)), "fresh": terms}
    seen = dict[str, list[tuple[int, str]]]()
    for name, which in arms.items():
        plugin = Plugin(which, tmp_path / name, {})
        try:
            said = [await plugin.call("code_run", {"code": one}, 30) for one in (SEE, LEAVE, SEE)]
        finally:
            await plugin.stop()
        assert all(ok for _, ok in said), said
        seen[name] = [ast.literal_eval(said[one][0]) for one in (0, 2)]
    (_, server), later = seen["kept"]
    assert later == (3, server)  # what a run leaves is there for the next, and so is its server
    (_, server), (left, again) = seen["fresh"]
    assert left == 0 and again != server


def test_code_is_run_checked_formatted_and_tested(ask: Ask):
    assert ask("code", "code_run", code="x = 6\nprint('six')\nx * 7") == ("six\n42", True)
    median = "import numpy\nfloat(numpy.median([3, 1, 2]))"
    assert ask("code", "code_run", code=median) == ("2.0", True)
    said, ok = ask("code", "code_run", code="def f():\n    return 1 / 0\n\nf()")
    assert not ok and "ZeroDivisionError" in said and 'File "main.py", line 2' in said
    assert "F401" in ask("code", "code_check", code="import os\n")[0]
    assert ask("code", "code_format", code="x=[1,\n2]") == ("x = [1, 2]", True)
    tests = "from main import add\n\ndef test_it():\n    assert add(2, 2) == {}\n"
    code = "def add(left, right):\n    return left + right\n"
    assert "1 passed" in ask("code", "code_test", code=code, tests=tests.format(4))[0]
    said, ok = ask("code", "code_test", code=code, tests=tests.format(5))
    assert ok and "assert 4 == 5" in said
    assert "-b\n+c" in ask("code", "code_diff", before="a\nb", after="a\nc")[0]


def test_what_runs_sees_nothing_and_leaves_nothing_behind(ask: Ask):
    def run(code: str, seconds: int = 3) -> tuple[str, bool]:
        return ask("code", "code_run", code=code, seconds=seconds)

    said, ok = run("while True: pass", 1)
    assert not ok and "still running after 1 s" in said
    left = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n'left one'"
    assert "left one" in run(left, 2)[0]
    alive = "import os\nsorted(int(one) for one in os.listdir('/proc') if one.isdigit())[:-1]"
    assert run(alive) == ("[1]", True)
    said, ok = run("import os\nwhile True: os.fork()", 2)
    assert not ok
    said, ok = run("while True: print('x' * 10_000)", 2)
    assert not ok and len(said) < 4 * SMALL
    assert run("open('left.txt', 'w').write('x')\nimport os\nos.listdir()")[1]
    assert "left.txt" not in run("import os\nos.listdir('.') + os.listdir('/tmp')")[0]
    for code in (
        "import socket; socket.socket()",
        "open('/etc/shadow')",
        "open('/data/documents/house/lease.txt')",
        "x = 'x' * 10**10",
        "import os; os.kill(1, 9); open('/plugin/bundle/server.py', 'w')",
    ):
        assert not run(code)[1], code
    assert run("1 + 1") == ("2", True)


def test_packages_are_shown_to_a_plugin_once_whole_and_only_those_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packages, "place_for", lambda user: tmp_path)
    runs_on = interpreter.find(interpreter.unprivileged_user())
    found = packages.folder(("pypdf",), runs_on, None)
    assert (found / "pypdf" / "__init__.py").is_file() and not (found / "openpyxl").exists()
    assert packages.folder(("pypdf",), runs_on, None) == found
    monkeypatch.setattr(packages, "PACKAGES", {"pypdf": ("pypdf", "markdown-it-py")})
    again = packages.folder(("pypdf",), runs_on, None)
    assert again != found and not found.exists() and (again / "markdown_it").is_dir()
    monkeypatch.setattr(packages, "PACKAGES", {"pypdf": ("never-installed",)})
    with pytest.raises(
        SandboxUnavailableError, match=r"never-installed is not installed.*pip install"
    ):
        packages.folder(("pypdf",), runs_on, None)
    other = Interpreter(runs_on.executable, tmp_path)  # of another installation
    monkeypatch.setattr(interpreter, "minor_version", lambda found: "3.2")
    monkeypatch.setattr(packages, "PACKAGES", {"numpy": ("numpy",)})
    with pytest.raises(SandboxUnavailableError, match=r"numpy: compiled for .* run on 3\.2"):
        packages.folder(("numpy",), other, None)


def test_a_long_answer_comes_in_pages_that_hold_all_of_it():
    lines = [f"{number} " + "x" * (number % 700) for number in range(100)]
    first = quietchoir_sdk.paged(lines)
    count = int(first.rpartition(" of ")[2].partition(";")[0])
    pages = [quietchoir_sdk.paged(lines, page) for page in range(1, count + 1)]
    assert "\n".join(page.rpartition("\n(page ")[0] for page in pages) == "\n".join(lines)
    assert all(len(page) <= 3100 for page in pages)
    assert quietchoir_sdk.paged(["short"]) == "short"
    with pytest.raises(quietchoir_sdk.ToolFailure, match="there is no page 0"):
        quietchoir_sdk.paged(lines, 0)


def test_a_grant_is_told_and_that_the_plugin_is_still_off(
    shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path))
    granted = shown / "granted"
    granted.mkdir()
    words = ["plugin", "grant", "quietchoir/files", "--read", f"documents={granted}"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"reads in documents: {granted}" in said and "reads in projects: not granted" in said
    assert "it is off; to let it answer, add quietchoir/files to [plugins] enabled" in said
    (tmp_path / "config.toml").write_text('[plugins]\nenabled = ["quietchoir/files"]\n')
    assert cli.main(words) == 0
    assert "it is off" not in capsys.readouterr().out


def test_what_may_be_left_unfilled_is_of_what_is_asked_for():
    terms = manifest.read(BUILTIN / "files")
    asked = terms.head.permissions
    assert asked.filled({"documents"}).folders == ("documents",)
    assert asked.filled(()).write_folders == ()
    assert "of these only if you name it: documents" in "; ".join(terms.head.asks())
    table = json.loads((BUILTIN / "files" / "manifest.json").read_bytes())
    table["permissions"]["optional"] = ["secrets"]
    with pytest.raises(ManifestError, match="optional names 'secrets'"):
        manifest.parse({"manifest.json": json.dumps(table).encode()}, Path("x"))
