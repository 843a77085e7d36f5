"""The bytes that are shown are the bytes that train, and nothing that was not given is in them."""

import json
from pathlib import Path

import pytest

from quietchoir.core.assistant.context import Message
from quietchoir.core.history.redactor import Redactor
from quietchoir.core.history.store import PERSONAL, HistoryStore
from quietchoir.core.history.training_set import TrainingSet, training_set
from quietchoir.core.prompt import AS_IT_COMES, HOUSEHOLD, PromptFormat
from quietchoir.core.toolcall import SYSTEM_PROMPT, ToolCall, render
from quietchoir.core.training.examples import check_prompts, read_jsonl

FED = f"federation:{'a' * 64}"
REDACTOR = Redactor()


def call(name: str) -> ToolCall:
    return ToolCall("HassTurnOn", {"name": name})


@pytest.fixture
def store(tmp_path: Path) -> HistoryStore:
    """Twenty corrections that may train a federation, and one that may not."""
    made = HistoryStore(tmp_path)
    for place in range(20):
        made.keep(f"day-{place}", asked(f"lamp {place} on"), source="page")
        made.correct(f"day-{place}", call(f"lamp {place}"))
        made.consent("conversation", f"day-{place}", FED)
    made.keep("private", asked("open the hidden door"), source="page")
    made.correct("private", call("hidden door"))
    return made


def asked(text: str) -> list[Message]:
    return [
        Message("user", "hello"), Message("assistant", "hi"),
        Message("user", text), Message("assistant", "hm"),
    ]  # fmt: skip


def of(store: HistoryStore, prompt: PromptFormat = HOUSEHOLD, where: str = FED) -> TrainingSet:
    return training_set(store, where, prompt, REDACTOR)


def test_the_preview_is_what_a_trainer_reads(store: HistoryStore, tmp_path: Path) -> None:
    found = of(store)
    (tmp_path / "train.jsonl").write_bytes(found.encoded)
    assert read_jsonl(tmp_path / "train.jsonl") == found.train
    assert len(found.train) + len(found.test) == 20 and found.test
    assert b"hidden" not in found.encoded and found.left_out["not consented"] == 1


def test_an_example_is_shown_as_its_adapter_is_asked(store: HistoryStore) -> None:
    [first, *_] = of(store).train
    assert [one["role"] for one in first.messages] == ["system", "user", "assistant"]
    assert first.messages[0]["content"] == SYSTEM_PROMPT
    [whole, *_] = of(store, AS_IT_COMES).train
    assert [one["role"] for one in whole.messages] == ["user", "assistant", "user", "assistant"]


def test_a_command_is_shown_behind_the_one_before_as_when_it_serves(store: HistoryStore) -> None:
    said = Message("assistant", "It is on.", (call("lamp"),))
    past = [Message("user", "lamp on"), said, Message("tool", "It is on.")]
    asks = [Message("user", "and the fan"), Message("assistant", "hm")]
    store.keep("leaning", [*past, *asks], source="page")
    store.correct("leaning", call("fan"))
    store.consent("conversation", "leaning", PERSONAL)
    found = [*of(store, where=PERSONAL).train, *of(store, where=PERSONAL).test]
    [one] = [example for example in found if example.request == "and the fan"]
    assert [message["content"] for message in one.messages] == [
        SYSTEM_PROMPT, "lamp on", render(call("lamp")), "and the fan", render(call("fan"))
    ]  # fmt: skip
    check_prompts([one], HOUSEHOLD, "here")


def test_an_answer_of_another_form_does_not_train(store: HistoryStore) -> None:
    store.keep("talk", [Message("user", "thanks"), Message("assistant", "gladly")], source="page")
    store.approve("talk")
    store.consent("conversation", "talk", FED)
    alone = PromptFormat(answers="tool_call", turns="last")
    assert of(store, alone).left_out["another form of answer"] == 1
    assert of(store).left_out["another form of answer"] == 0
    text = PromptFormat(answers="text")
    assert len(of(store, text).train) + len(of(store, text).test) == 1


def test_what_is_forgotten_or_taken_back_is_in_the_next_set_no_more(store: HistoryStore) -> None:
    before = of(store)
    gone = next(one for one in before.chosen if not one.held_out)
    store.forget(gone.ids)
    after = of(store)
    assert gone.example.request.encode() in before.encoded
    assert gone.example.request.encode() not in after.encoded
    assert len(after.train) == len(before.train) - 1 and after.digest != before.digest
    for place in range(20):
        store.consent("conversation", f"day-{place}", PERSONAL)
    assert of(store).chosen == () and len(of(store, where=PERSONAL).chosen) == 19


def test_equal_requests_are_learned_or_held_out_together_and_learned_once(
    store: HistoryStore,
) -> None:
    store.keep("again", asked("lamp 3 on"), source="page")
    twice = store.correct("again", call("lamp 3"))
    store.consent("conversation", "again", FED)
    found = of(store)
    assert len(found.chosen) == 20
    [example] = [one for one in found.chosen if twice in one.ids]
    assert len(example.ids) == 2


def test_names_do_not_reach_the_bytes(store: HistoryStore) -> None:
    store.keep("call", asked("tell Mary Smith dinner is ready"), source="page")
    store.correct("call", ToolCall("HassBroadcast", {"message": "Mary Smith, dinner is ready"}))
    store.consent("conversation", "call", FED)
    found = of(store)
    whole = [*found.train, *found.test]
    assert found.redacted == {"NAME": 1}
    assert "Mary" not in json.dumps([list(one.messages) for one in whole])
    [answer] = [one.answer for one in whole if "Broadcast" in one.answer]
    assert answer == render(ToolCall("HassBroadcast", {"message": "[NAME_1], dinner is ready"}))
