"""What people and programs see of a run: nothing of one member on the page, and no quiet change
in the log.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from quietchoir import cli
from quietchoir.core.errors import ConfigError, FederationError, IntegrityError
from quietchoir.federation.events import AskedEvent
from quietchoir.federation.membership import roster
from quietchoir.federation.membership.log import create_chain
from quietchoir.federation.monitor import audit_log, event_printer, run_status
from quietchoir.federation.monitor.audit_log import AuditLog
from quietchoir.federation.monitor.page import HOST, Page, metrics
from quietchoir.federation.monitor.run_status import RunStatus
from quietchoir.federation.store import checkpoint
from quietchoir.federation.store.checkpoint import Store
from quietchoir.tests.fakes.events import event_of
from quietchoir.tests.fakes.federation import clients, coordinator, house

SIZE = 8
MEMBERS = ("ann", "ben", "cat", "dan")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's state folder after two rounds and a score."""
    home, state = house(4), tmp_path_factory.mktemp("made") / "state"
    log, store = AuditLog(state), Store(state)
    roster.write(state / roster.FILE, create_chain(home.policy, home.owner))
    coordinator(home, clients(home, SIZE), SIZE, store=store, on_event=log.note).run(2)
    store.close()
    return state


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy, to be spoiled."""
    return Path(shutil.copytree(made, tmp_path / "state"))


@pytest.fixture
def seen(folder: Path) -> dict[str, Any]:
    return run_status.from_disk(folder).snapshot()


def lines(folder: Path) -> list[bytes]:
    return (folder / audit_log.FILE).read_bytes().splitlines(keepends=True)


def test_every_line_leads_to_the_next(folder: Path) -> None:
    read = list(audit_log.read(folder / audit_log.FILE))
    assert [line.number for line in read] == list(range(1, len(read) + 1))
    assert [line.event["event"] for line in read if line.event["event"] in ("round", "score")] == [
        "round",
        "round",
        "score",
    ]
    assert read[-1].event["event"] == "delivered"
    assert (folder / audit_log.FILE).stat().st_mode & 0o777 == 0o600
    again = AuditLog(folder)
    again.note(event_of({"event": "open", "address": "here"}))
    assert len(list(audit_log.read(folder / audit_log.FILE))) == len(read) + 1


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda said: [said[0], said[1].replace(b'"number":2', b'"number": 2'), *said[2:]], 2),
        (
            lambda said: [
                *said[:2],
                said[2].replace(b"127", b"128").replace(b'"at":1', b'"at":2'),
                *said[3:],
            ],
            4,
        ),
        (lambda said: [*said[:1], *said[2:]], 2),
        (lambda said: [said[0], said[2], said[1], *said[3:]], 2),
        (lambda said: [*said[:2], said[1], *said[2:]], 3),
        (lambda said: [b"{}\n", *said[1:]], 1),
        (lambda said: [*said[:-1], said[-1].replace(b"delivered", b"returned")], None),
    ],
)
def test_the_first_line_that_was_changed_is_named(
    folder: Path, change: Any, named: int | None
) -> None:
    path = folder / audit_log.FILE
    path.write_bytes(b"".join(change(lines(folder))))
    # the last line: nothing after it vouches for it, only a hash that was noted elsewhere
    if named is None:
        assert list(audit_log.read(path))
        return
    with pytest.raises(IntegrityError, match=f"line {named} does not follow"):
        list(audit_log.read(path))
    with pytest.raises(FederationError, match="it is not added to"):
        AuditLog(folder)


def test_a_line_that_a_kill_cut_short_is_taken_off_and_told(folder: Path) -> None:
    path, whole = folder / audit_log.FILE, len(lines(folder))
    with path.open("ab") as file:
        file.write(b'{"at":17')
    AuditLog(folder)
    assert [line.event for line in audit_log.read(path)][whole:] == [{"event": "torn", "bytes": 8}]


def test_a_round_that_a_kill_kept_out_of_the_log_is_added_at_the_next_start(folder: Path) -> None:
    path, said = folder / audit_log.FILE, lines(folder)
    state = checkpoint.read(folder)
    assert state is not None and audit_log.missing(path, state.history) == []
    cut = next(number for number, line in enumerate(said) if b'"event":"score"' in line)
    path.write_bytes(b"".join(said[:cut]))
    assert [entry["kind"] for entry in audit_log.missing(path, state.history)] == ["score"]
    log = AuditLog(folder)
    log.catch_up(state.history)
    log.catch_up(state.history)
    assert [line.event.get("late") for line in audit_log.read(path)][cut:] == [True]


def test_the_board_shows_sums_and_counts_and_no_member(folder: Path, seen: dict[str, Any]) -> None:
    assert (seen["round"], seen["finished"], seen["members"], seen["mode"]) == (2, True, 4, "plain")
    assert [(entry["kind"], entry["parties"], entry["dropped"]) for entry in seen["history"]] == [
        ("train", 4, 0), ("train", 4, 0), ("score", 4, 0),
    ]  # fmt: skip
    assert seen["curve"] == [[0.0, 0.4], [1.0, 0.4], [2.0, 0.4]]
    text = json.dumps(seen)
    assert not [name for name in MEMBERS if name in text]
    state = checkpoint.read(folder)
    assert state is not None
    sums = [sum(entry["bytes_up"].values()) for entry in state.history]
    assert [entry["bytes_up"] for entry in seen["history"]] == sums and seen["bytes_up"] == sum(
        sums
    )


def test_events_and_disk_give_the_same_board(folder: Path, seen: dict[str, Any]) -> None:
    live = RunStatus(roster.load(folder / roster.FILE))
    for line in audit_log.read(folder / audit_log.FILE):
        live.note(event_of(line.event))
    assert {**live.snapshot(), "now": None} == seen
    live.note(event_of({"event": "waiting", "present": 3, "roster": 4, "minimum": 3}))
    live.note(AskedEvent(round=3, attempt=1, stage="train", cohort=tuple(MEMBERS)))
    live.note(event_of({"event": "ready", "round": 3, "party": "ann"}))
    now = live.snapshot()
    assert (now["present"], now["now"]) == (
        3,
        {"round": 3, "stage": "train", "asked": 4, "ready": 1},
    )
    live.note(event_of({"event": "aborted", "round": 3, "reason": "too few"}))
    live.note(event_of({"event": "renewed", "version": 7, "members": ["ann"], "left": []}))
    now = live.snapshot()
    assert (now["aborted"], now["reason"], now["now"], now["version"], now["members"]) == (
        1,
        "too few",
        None,
        7,
        1,
    )


def test_prometheus_reads_the_metrics_and_no_label_names_a_member(
    folder: Path, seen: dict[str, Any]
) -> None:
    text = generate_latest(metrics(run_status.from_disk(folder))).decode("utf-8")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {name: family.samples[0].value for name, family in families.items()}
    assert values["quietchoir_rounds"] == 2 and values["quietchoir_accuracy"] == 0.4
    assert (
        values["quietchoir_bytes_up"] == seen["bytes_up"]
        and families["quietchoir_bytes_up"].type == "counter"
    )
    # without differential privacy there is none to tell
    assert "quietchoir_epsilon_spent" not in values
    labels = [sample.labels for family in families.values() for sample in family.samples]
    assert all(label == {"federation": "choir", "mode": "plain"} for label in labels)


@pytest.fixture
def page(folder: Path) -> Iterator[Page]:
    with Page(run_status.from_disk(folder), 0, folder) as running:
        yield running


def test_the_page_needs_its_token_and_a_host_of_its_own(page: Page, seen: dict[str, Any]) -> None:
    bearer = {"Authorization": f"Bearer {page.token}"}
    with httpx.Client(base_url=f"http://{HOST}:{page.port}") as client:
        assert client.get("/api/status", headers=bearer).json() == seen
        assert "quietchoir_rounds_total" in client.get("/metrics", headers=bearer).text
        for path in ("/api/status", "/metrics"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={**bearer, "Host": "evil.example"}).status_code == 403
            assert (
                client.get(path, headers={**bearer, "Origin": "http://evil.example"}).status_code
                == 403
            )
            assert client.post(path, headers=bearer).status_code == 405
        for name in ("", "ui/watch.js", "ui/watch.css", "ui/api.js", "ui/vendor/htm-preact.js"):
            answer = client.get(f"/{name}")
            assert (
                answer.status_code == 200
                and "default-src 'self'" in answer.headers["Content-Security-Policy"]
            )
        assert client.get("/ui/app.js").status_code == 404  # the chat's own
    assert page.socket.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_told(page: Page, folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        Page(page.run_status, page.port, folder)


def quietchoir(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_status_is_a_table_and_json(
    folder: Path, seen: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = quietchoir(capsys, "federation", "status", "--state", folder)
    assert code == 0 and "2 rounds done; finished" in said and "4 of 4" in said and "40.0 %" in said
    code, said = quietchoir(capsys, "federation", "status", "--state", folder, "--json")
    assert code == 0 and json.loads(said) == seen
    code, said = quietchoir(capsys, "federation", "status", "--state", folder / "elsewhere")
    assert code == 1 and "no run here yet" in said


def test_audit_says_that_the_log_is_whole_or_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = lines(folder)
    code, words = quietchoir(capsys, "federation", "audit", folder, "--lines")
    assert (
        code == 0
        and (f"{len(said)} lines, every one leads to the next") in words
        and '"event": "delivered"' in words
    )
    (folder / audit_log.FILE).write_bytes(b"".join(said[: len(said) // 2]))
    code, words = quietchoir(capsys, "federation", "audit", folder)
    assert code == 1 and "is in the run's database and not in the log" in words
    (folder / audit_log.FILE).write_bytes(b"".join([*said[:1], *said[2:]]))
    code, words = quietchoir(capsys, "federation", "audit", folder)
    assert code == 1 and "line 2 does not follow" in words
    (folder / audit_log.FILE).unlink()
    assert quietchoir(capsys, "federation", "audit", folder)[0] == 1


def test_the_end_of_a_rehearsal_does_not_name_an_adapter_that_is_none() -> None:
    given = event_of({"event": "delivered", "adapter": "", "members": ["ann", "bo"]})
    assert event_printer.sentence(given) == "the finished adapter is with ann, bo"
    assert event_printer.sentence(given, rehearsal=True) == (
        "the rehearsal is over, and ann, bo know it; it leaves no adapter"
    )
    assert event_printer.sentence(event_of({"event": "adopted", "adapter": "kitchen-1"})) == (
        "a finished adapter came: kitchen-1"
    )
    assert event_printer.sentence(event_of({"event": "adopted", "adapter": ""})) == (
        "the run is over; a rehearsal leaves no adapter"
    )
