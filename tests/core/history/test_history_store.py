"""What is kept, what may train, and what is gone when it was forgotten."""

import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from quietchoir.core.assistant.context import Message
from quietchoir.core.errors import DataError, QuietchoirError
from quietchoir.core.history import store as store_module
from quietchoir.core.history.store import FILE, NEVER, PERSONAL, HistoryStore, least, marks_in
from quietchoir.core.toolcall import ToolCall, render

FED, OTHER = f"federation:{'a' * 64}", f"federation:{'b' * 64}"
LAMP = ToolCall("HassTurnOn", {"name": "lamp"})


def said(*texts: str) -> list[Message]:
    """A conversation, its user first."""
    return [Message(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]


def before_branches(store: HistoryStore, version: int) -> None:
    """As a version of the program left it that had no branches."""
    for column in ("root", "latest", "settings"):
        store.connection.execute(f"ALTER TABLE conversations DROP COLUMN {column}")
    store.connection.execute(f"PRAGMA user_version = {version}")


@pytest.fixture
def store(tmp_path: Path) -> HistoryStore:
    """One conversation of two answers, in an empty home."""
    made = HistoryStore(tmp_path)
    made.keep("evening", said("lamp on", "hm", "thanks", "you are welcome"), source="page")
    return made


def test_a_conversation_is_kept_as_it_stands_now_and_by_its_owner_alone(
    store: HistoryStore, tmp_path: Path
) -> None:
    store.keep("evening", said("lamp off", "done"), source="page")
    assert [one.content for one in store.messages("evening")] == ["lamp off", "done"]
    info = store.conversation("evening")
    assert (info.title, info.turns, info.consent) == ("lamp on", 2, NEVER)
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_nothing_trains_by_default_whatever_was_approved(store: HistoryStore) -> None:
    store.approve("evening")
    store.correct("evening", LAMP, turn=1)
    assert [one.consent for one in store.examples()] == [NEVER, NEVER]
    assert not any(one.may_train(where) for one in store.examples() for where in (PERSONAL, FED))


def test_what_may_train_a_federation_may_train_its_owners_adapter_and_no_other(
    store: HistoryStore,
) -> None:
    store.approve("evening")
    store.consent("conversation", "evening", FED)
    [example] = store.examples()
    assert [example.may_train(where) for where in (PERSONAL, FED, OTHER)] == [True, True, False]
    store.consent("conversation", "evening", PERSONAL)
    [example] = store.examples()
    assert [example.may_train(where) for where in (PERSONAL, FED)] == [True, False]


@pytest.mark.parametrize(
    ("source", "own", "collection", "holds"),
    [
        (None, None, None, NEVER),
        (FED, None, None, FED),  # as its source
        (FED, PERSONAL, None, PERSONAL),
        (NEVER, FED, None, NEVER),  # a source that never trains holds all its conversations
        (PERSONAL, FED, None, PERSONAL),
        (None, FED, "silent", NEVER),  # a collection of which nothing was said never trains
        (None, FED, FED, FED),
        (None, FED, OTHER, PERSONAL),
    ],
)
def test_the_least_of_what_was_said_holds(
    tmp_path: Path, source: str | None, own: str | None, collection: str | None, holds: str
) -> None:
    store = HistoryStore(tmp_path)
    used = ["manuals"] if collection else []
    store.keep("one", said("a", "b"), source="page", collections=used)
    store.consent("source", "page", source)
    store.consent("conversation", "one", own)
    if collection not in (None, "silent"):
        store.consent("collection", "manuals", collection)
    assert store.consent_of("one") == holds


def test_two_federations_share_nothing_but_the_owners_adapter() -> None:
    assert (least([FED, FED]), least([FED, OTHER]), least([FED, NEVER])) == (FED, PERSONAL, NEVER)


def test_a_thumb_takes_the_answer_as_it_is_and_a_correction_the_right_one(
    store: HistoryStore,
) -> None:
    first = store.approve("evening", 2)
    second = store.correct("evening", LAMP, 1)
    found = {one.id: one for one in store.examples("evening")}
    assert found[first].answer == "you are welcome"
    assert [one.content for one in found[first].messages] == ["lamp on", "hm", "thanks"]
    assert (found[second].answer, found[second].origin) == (render(LAMP), "correction")
    assert store.approve("evening", 2) == first  # said twice
    assert store.correct("evening", '{"arguments": {"name": "lamp"}, "name": "HassTurnOn"}', 1)
    assert {one.answer for one in store.examples()} == {"you are welcome", render(LAMP)}


@pytest.mark.parametrize("calls", [(), (LAMP,)], ids=["words alone", "a tool was used"])
def test_a_verdict_is_on_the_answer_that_its_owner_saw(
    store: HistoryStore, calls: tuple[ToolCall, ...]
) -> None:
    called = [Message("assistant", "", calls), Message("tool", "SECRET")] if calls else []
    later = said("lamp on", "the lamp is on", "why is the sky blue?", "Rayleigh.")
    store.keep("talk", [later[0], *called, *later[1:]], source="page")
    store.approve("talk", 2)
    [example] = store.examples("talk")
    assert (example.turn, example.messages[-1], example.answer) == (2, later[2], "Rayleigh.")
    store.correct("talk", "Scattering.", 2)
    assert [one.answer for one in store.examples("talk")] == ["Scattering."]
    store.reject("talk", 1)
    assert len(store.examples("talk")) == 1
    store.reject("talk", 2)
    assert store.examples("talk") == []


def test_an_answer_stays_the_same_one_when_its_tools_results_are_sent_along(
    store: HistoryStore,
) -> None:
    asked, words = said("lamp on", "it is on")
    store.keep("talk", [asked, Message("assistant", "it is on", (LAMP,))], source="page")
    store.approve("talk", 1)
    whole = [asked, Message("assistant", "", (LAMP,)), Message("tool", "done"), words]
    store.keep("talk", whole, source="page")
    store.reject("talk", 1)
    assert store.examples("talk") == []


def test_examples_of_version_1_are_called_by_their_answers_number(tmp_path: Path) -> None:
    old = HistoryStore(tmp_path)
    old.keep("talk", said("a", "b", "c", "d"), source="page")
    first, second = old.approve("talk", 1), old.approve("talk", 2)
    old.connection.execute("ALTER TABLE examples RENAME COLUMN turn TO position")
    for id, place in ((second, 3), (first, 1)):
        old.connection.execute("UPDATE examples SET position = ? WHERE id = ?", (place, id))
    old.connection.execute("DROP TABLE sources")
    before_branches(old, 1)
    old.close()
    store = HistoryStore(tmp_path)
    assert {one.id: one.turn for one in store.examples()} == {first: 1, second: 2}
    store.consent("source", "page", FED)
    assert store.consent_of("talk") == FED
    store.close()
    assert len(HistoryStore(tmp_path).examples()) == 2


def test_notes_of_a_conversation_go_with_it_and_with_the_turns_they_are_of(
    store: HistoryStore, tmp_path: Path
) -> None:
    store.keep("morning", said("hi", "hello"), source="page")
    for name in ("evening", "morning", "nobody kept this one"):
        store.keep_note(name, "n1", f"the nightjar of {name}")
    assert store.notes("evening") == {"n1": "the nightjar of evening"}
    assert store.notes("nobody kept this one") == {}
    longer = said("lamp on", "hm", "thanks", "you are welcome", "and now?", "nothing")
    store.keep("evening", longer, source="page")
    assert store.notes("evening")  # what it is of was said again
    store.keep("evening", said("lamp off", "hm"), source="page")
    assert store.notes("evening") == {}
    store.forget_conversation("morning")
    assert store.notes("morning") == {}
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"nightjar of morning" not in data and b"nobody kept" not in data


def test_a_database_of_before_there_were_notes_is_taken_along(tmp_path: Path) -> None:
    old = HistoryStore(tmp_path)
    old.keep("evening", said("lamp on", "hm"), source="page")
    old.connection.execute("DROP TABLE notes")
    before_branches(old, 2)
    old.close()
    with closing(HistoryStore(tmp_path)) as store:
        store.keep_note("evening", "n1", "a note")
        assert store.notes("evening") == {"n1": "a note"}
        assert [one.content for one in store.messages("evening")] == ["lamp on", "hm"]


def test_all_who_said_something_in_a_conversation_limit_it(store: HistoryStore) -> None:
    store.consent("source", "mailbot", NEVER)
    store.consent("conversation", "evening", PERSONAL)
    assert store.consent_of("evening") == PERSONAL
    store.keep("evening", said("the mail bot's text", "b"), source="mailbot")
    assert store.consent_of("evening") == NEVER


def test_a_bad_answer_is_no_example_any_more(store: HistoryStore) -> None:
    store.approve("evening")
    store.reject("evening")
    assert store.examples() == []


@pytest.mark.parametrize("turn", [0, 3, 9])
def test_only_answers_are_judged(store: HistoryStore, turn: int) -> None:
    with pytest.raises(DataError, match="is not there to be judged; kept are the answers 1, 2"):
        store.approve("evening", turn)
    with pytest.raises(DataError, match="no conversation 'morning' is kept here"):
        store.approve("morning")
    assert store.examples() == []


@pytest.mark.parametrize("wrong", ["federation:kitchen", "everybody", ""])
def test_nothing_is_consented_to_that_cannot_be_trained(store: HistoryStore, wrong: str) -> None:
    with pytest.raises(DataError, match="is nothing that can be trained"):
        store.consent("conversation", "evening", wrong)
    assert store.consents() == []


def test_what_is_forgotten_is_in_no_byte_of_the_folder(store: HistoryStore, tmp_path: Path) -> None:
    store.keep("secret", said("my safe's number is 5417-xyzzy", "noted"), source="chat")
    store.approve("secret")
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"5417-xyzzy" in held  # else the next line would say nothing
    assert store.forget_conversation("secret") == 1
    assert b"5417-xyzzy" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [info.id for info in store.conversations()] == ["evening"]


def test_adapters_that_learned_what_was_forgotten_are_marked(
    store: HistoryStore, tmp_path: Path
) -> None:
    kept, gone = store.approve("evening", 2), store.correct("evening", LAMP, 1)
    store.note_trained(FED, [kept, gone])
    store.note_adapter("shared", FED)
    store.note_trained("other", [kept])
    assert store.marks() == {}
    assert store.forget([gone]) == 1
    assert store.marks() == {"shared": 1} == marks_in(tmp_path)
    assert list(store.forgotten_since()) == ["shared"]
    assert store.forgotten_since()["shared"] <= time.time()
    assert store.learned_by("shared") == store.learned_by("other")
    assert len(store.learned_by("shared")) == 1
    store.note_adapter("next", FED)  # what follows on it has learned it too
    assert store.marks() == {"next": 1, "shared": 1}
    store.drop_marks("shared")
    assert store.marks() == {"next": 1}


def test_two_programs_see_each_others_steps(store: HistoryStore, tmp_path: Path) -> None:
    stamp = store.stamp()
    other = HistoryStore(tmp_path)
    other.consent("conversation", "evening", PERSONAL)
    other.close()
    assert store.consent_of("evening") == PERSONAL
    assert store.stamp() != stamp


def test_another_program_that_leaves_does_not_end_the_log_of_those_that_stay(
    store: HistoryStore, tmp_path: Path
) -> None:
    HistoryStore(tmp_path).close()  # a second connection of this process comes and goes
    code = (
        "from pathlib import Path; from quietchoir.core.history.store import HistoryStore as H; "
        "import sys; s = H(Path(sys.argv[1])); s.forget_conversation('evening'); s.close()"
    )
    store.approve("evening")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / f"{FILE}-wal").exists()
    for place in range(50):
        store.keep(f"talk-{place}", said("a" * 500, "b" * 500), source="page")
    assert store.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(HistoryStore(tmp_path)) as other:
        assert len(other.conversations()) == 50


def test_a_step_that_breaks_leaves_nothing_behind(store: HistoryStore) -> None:
    with pytest.raises(RuntimeError), store.step():
        store.connection.execute("DELETE FROM conversations")
        raise RuntimeError
    assert [info.id for info in store.conversations()] == ["evening"]


def test_a_database_of_another_kind_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database at all" * 100)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(DataError, match="damaged"):
        HistoryStore(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    (tmp_path / FILE).unlink()
    foreign = sqlite3.connect(tmp_path / FILE)
    foreign.execute("PRAGMA user_version = 7")
    foreign.close()
    with pytest.raises(DataError, match="of kind 0 and version 7"):
        HistoryStore(tmp_path)


def test_a_database_that_somebody_holds_is_told_and_nothing_is_written(
    store: HistoryStore, tmp_path: Path
) -> None:
    store.connection.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(QuietchoirError, match="nothing was written"):
        store.keep("late", said("a", "b"), source="page")
    other.execute("ROLLBACK")
    other.close()
    assert [info.id for info in store.conversations()] == ["evening"]


def test_what_another_program_still_reads_is_told_and_gone_when_it_is_forgotten_again(
    store: HistoryStore, tmp_path: Path
) -> None:
    def held() -> bool:
        return b"zanzibar" in b"".join(path.read_bytes() for path in tmp_path.iterdir())

    store.connection.execute("PRAGMA busy_timeout = 1")
    store.keep("secret", said("zanzibar", "noted"), source="chat")
    store.approve("secret")
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM turns").fetchone()
    with pytest.raises(QuietchoirError, match="end that program, then forget the same again"):
        store.forget_conversation("secret")
    assert [info.id for info in store.conversations()] == ["evening"] and held()
    other.execute("COMMIT")
    other.close()
    with pytest.raises(DataError, match="no conversation 'secret'"):
        store.forget_conversation("secret")
    assert not held()


def test_consent_of_a_collection_goes_with_it(store: HistoryStore) -> None:
    for name in ("old", "kept"):
        store.consent("collection", name, PERSONAL)
        store.keep(f"of-{name}", said("a", "b"), source="page", collections=[name])
        store.consent("conversation", f"of-{name}", PERSONAL)
    store.forget_collection("old")
    assert [store.consent_of(f"of-{name}") for name in ("old", "kept")] == [NEVER, PERSONAL]
    store.consent("collection", "old", PERSONAL)  # another one, of the same name
    store.keep("of-new", said("a", "b"), source="page", collections=["old"])
    store.consent("conversation", "of-new", PERSONAL)
    assert [store.consent_of(f"of-{name}") for name in ("old", "new")] == [NEVER, PERSONAL]


def test_a_consent_that_is_taken_back_under_a_wrong_name_is_not_said_to_be(tmp_path: Path) -> None:
    store = HistoryStore(tmp_path)
    store.consent("collection", "papers", PERSONAL)
    with pytest.raises(DataError, match="no collection Papers was used; did you mean papers"):
        store.consent("collection", "Papers", NEVER)
    assert store.consents() == [("collection", "papers", PERSONAL)]
    store.consent("source", "api", NEVER)  # said beforehand


def test_a_database_of_before_there_were_branches_is_taken_along(tmp_path: Path) -> None:
    old = HistoryStore(tmp_path)
    old.keep("evening", said("lamp on", "hm"), source="page")
    before_branches(old, 3)
    old.close()
    with closing(HistoryStore(tmp_path)) as store:
        [info] = store.conversations()
        assert (info.root, info.latest, store.settings("evening")) == ("evening", info.at, {})
        assert store.branches(store.branch("evening", 1))[0] == "evening"


def test_every_branch_is_reached_from_every_other_and_none_is_lost(store: HistoryStore) -> None:
    system = Message("system", "be brief")
    edited = store.branch("evening", 2)
    begun = [one.content for one in store.messages(edited)]
    store.keep(edited, [system, *said("lamp on", "hm", "why not?", "no lamp")], source="page")
    again = store.branch(edited, 2)
    assert store.variants(again)  # before its answer
    store.keep(again, said("lamp on", "hm", "why not?", "there is none"), source="page")
    other = store.branch(again, 1)
    store.keep(other, said("what time is it", "late"), source="page")
    assert begun == ["lamp on", "hm"]
    assert store.variants("evening") == {1: ["evening", other], 2: ["evening", edited, again]}
    names = {"evening", edited, again, other}
    for start in names:
        reached, todo = set[str](), {start}
        while todo:
            reached |= (now := {todo.pop()})
            for ids in (one for name in now for one in store.variants(name).values()):
                todo |= set(ids) - reached
        assert reached == names
    assert store.variants(other)[1][1] == other and len(store.variants(other)) == 1
    for turn in (0, 4):
        with pytest.raises(DataError, match="not there to branch from"):
            store.branch("evening", turn)
    assert set(store.branches("evening")) == names


OFF = ToolCall("HassTurnOff", {"name": "lamp"})
CALLED = [Message("user", "lamp on"), Message("assistant", "", (LAMP,)), Message("tool", "done")]


@pytest.mark.parametrize(
    ("before", "now", "left"),
    [
        (said("a", "b", "c", "d"), said("a", "other"), 1),  # edited: what followed is left out
        (said("a", "b", "c", "", "e", "f"), said("a", "b", "other", "d"), 2),  # c was stopped
        (said("a", "b", "c", "d"), said("c", "x", "e", "f"), 1),  # cut, and said otherwise
        (said("a", "b", "c", "d"), said("a", "b"), 2),
        ([*CALLED, *said("x", "y")[1:]], [CALLED[0], Message("assistant", "y", (OFF,))], 1),
        (CALLED, [CALLED[0], Message("assistant", "")], 1),
        (said("a", "b"), said("a", "b", "c", "d"), 0),
        (said("a", "b "), said("a\n", " b", "c", "d"), 0),
        (said("a", "b"), [Message("system", "brief"), *said("a", "b, and on")], 0),
        (CALLED, [*CALLED, *said("x", "done")[1:]], 0),
        ([*CALLED, *said("x", "y")[1:]], said("lamp on", "y", "c", "d"), 0),  # no calls sent back
    ],
)
def test_turns_that_are_not_said_any_more_go_on_as_a_branch_with_their_examples(
    store: HistoryStore, before: list[Message], now: list[Message], left: int
) -> None:
    store.keep("talk", before, source="page", collections=["papers"])
    store.put_settings("talk", {"seed": 1})
    turns = sum(one.role == "user" for one in before)
    examples = {store.approve("talk", turn + 1): turn + 1 for turn in range(turns)}
    store.keep("talk", now, source="mailbot")
    assert store.messages("talk") == tuple(now)
    former = [one for one in store.branches("talk") if one != "talk"]
    assert len(former) == bool(left)
    places = {one.id: (one.conversation, one.turn) for one in store.examples()}
    assert places == {
        one: (former[0] if left and turn >= left else "talk", turn)
        for one, turn in examples.items()
    }
    if left:
        assert store.messages(former[0]) == tuple(before)
        assert former[0] in store.variants("talk")[left]
        assert store.settings(former[0]) == {"seed": 1}
        assert store.conversations()[0].id == "talk"  # spoken in last
        store.keep("talk", now, source="page")
        assert len(store.branches("talk")) == 2  # said again, nothing is left out
        store.forget_conversation("talk")
        assert [one.id for one in store.conversations()] == ["evening"] and not store.examples()


def test_a_client_that_cuts_its_past_adds_to_the_conversation_and_makes_no_branch(
    store: HistoryStore,
) -> None:
    whole = [word for turn in range(12) for word in (f"question {turn}", f"answer {turn}")]
    for turn in range(2, 13):  # of ever longer talk, the last two turns are sent
        now = [Message("system", f"notes {turn}"), *said(*whole[2 * turn - 4 : 2 * turn])]
        store.keep("window", now, source="mailbot")
        if turn == 3:
            store.approve("window")
    assert store.messages("window") == (Message("system", "notes 2"), *said(*whole))
    assert store.branches("window") == ["window"]
    [kept] = store.examples("window")
    assert (kept.turn, kept.answer) == (3, "answer 2")
    store.keep("window", said("question 11", "another answer"), source="mailbot")
    assert len(store.branches("window")) == 2  # said otherwise is not cut


def test_a_client_that_writes_its_beginning_anew_each_time_makes_no_branch(
    store: HistoryStore,
) -> None:
    talk = [word for turn in range(8) for word in (f"question {turn}", f"answer {turn}")]
    for turn in range(2, 9):  # what is longer ago stands in a summary, which differs each time
        recent = talk[2 * turn - 4 : 2 * turn]
        store.keep("app", said(f"up to {turn} we spoke of birds", "I see", *recent), source="api")
    assert store.branches("app") == ["app"]
    assert store.messages("app") == tuple(said("up to 2 we spoke of birds", "I see", *talk))
    # who goes back says the same up to there, and no summary
    store.keep("app", said("up to 2 we spoke of birds", "I see", "question 7", "x"), source="api")
    assert len(store.branches("app")) == 2


def test_of_one_who_says_all_otherwise_each_time_the_last_states_are_kept(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MOST_FORMER", 3)
    for turn in range(8):
        store.keep("clock", said(f"it is {turn}", f"so it is {turn}"), source="api")
        if not turn:
            store.approve("clock")
    *former, now = sorted(store.messages(one)[0].content for one in store.branches("clock"))
    # one with an example in it stays
    assert former == ["it is 0", "it is 4", "it is 5", "it is 6"] and now == "it is 7"
    [example] = store.examples()
    assert store.messages(example.conversation)[1].content == "so it is 0"


def test_what_holds_for_a_conversation_holds_for_its_branches(store: HistoryStore) -> None:
    store.keep("evening", store.messages("evening"), source="page", collections=["papers"])
    store.consent("collection", "papers", FED)
    store.consent("conversation", "evening", FED)
    branch = store.branch("evening", 2)
    store.keep(branch, said("lamp on", "hm", "off", "done"), source="page")
    store.approve(branch)
    assert [one.consent for one in store.examples()] == [FED]
    store.consent("conversation", branch, NEVER)
    assert store.consent_of("evening") == NEVER
    store.consent("conversation", "evening", FED)
    store.consent("collection", "papers", NEVER)
    assert [one.consent for one in store.examples()] == [NEVER]
    store.rename(branch, "  The\nlamp ")
    assert {one.title for one in store.conversations()} == {"The lamp"}
    with pytest.raises(DataError, match="title is empty"):
        store.rename("evening", " \n")


def test_an_answer_that_is_bad_in_one_branch_trains_in_none(store: HistoryStore) -> None:
    store.approve("evening", 1)
    branch = store.branch("evening", 2)
    store.reject(branch, 1)
    assert store.examples() == []
    store.approve("evening", 1)
    store.correct(branch, "it is on", 1)
    assert [(one.conversation, one.answer) for one in store.examples()] == [(branch, "it is on")]


def test_to_forget_a_conversation_or_a_branch_forgets_all_its_branches(
    store: HistoryStore, tmp_path: Path
) -> None:
    branch = store.branch("evening", 2)
    store.keep(branch, said("lamp on", "hm", "of the nightjar", "so"), source="page")
    store.approve(branch)
    store.consent("conversation", "evening", PERSONAL)
    assert store.forget_conversation(branch) == 1
    assert store.conversations() == [] and store.consents() == []
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"nightjar" not in data and b"lamp on" not in data


def test_conversations_are_found_by_all_that_was_said_in_them(store: HistoryStore) -> None:
    store.keep("morning", said("Grüße", "good morning to you"), source="page")
    assert store.matching("WELCOME lamp") == ["evening"]
    assert store.matching("grüße MORN") == ["morning"]
    assert store.matching("lamp morning") == []


def test_how_a_conversation_is_to_be_answered_is_kept_with_it(store: HistoryStore) -> None:
    store.put_settings("evening", {"temperature": 0.5, "system": "kurz, bitte: ü"})
    assert store.settings("evening") == {"temperature": 0.5, "system": "kurz, bitte: ü"}
    assert store.settings(store.branch("evening", 2)) == store.settings("evening")
    with pytest.raises(DataError, match="no conversation"):
        store.put_settings("nobody", {})
