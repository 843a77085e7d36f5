"""Talk, requests beyond the home, and second requests: made by seed, held out by template."""

import json
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import DataError
from quietchoir.core.prompt import HOUSEHOLD_TALK
from quietchoir.core.toolcall import ToolCall, parse, render
from quietchoir.core.training.dataset import Beside, build_homes, make_homes
from quietchoir.core.training.examples import check_prompts, read_jsonl
from quietchoir.core.training.household.dialogue import changes, dialogues, split_wordings
from quietchoir.core.training.household.home import HomeDevice, Household
from quietchoir.core.training.household.talk import (
    CANNOT,
    general_requests,
    split_talk,
    talk_requests,
)
from quietchoir.core.training.own_answers import first_sentences

HOME = Household(
    "h", {"kitchen": "ground floor", "attic": "attic"},
    (HomeDevice("lamp", "light", "kitchen"), HomeDevice("orb", "light", "attic"),
     HomeDevice("fan", "fan", "attic")), (), {}, {},
)  # fmt: skip


def test_no_template_is_learned_and_held_out() -> None:
    kept, held = split_talk(0.25, np.random.default_rng(1))
    assert kept and held and not set(kept) & set(held)
    assert {kind for kind, _ in held} == {"talk", "unserved"}
    again, _ = split_talk(0.25, np.random.default_rng(1))
    assert again == kept


def test_talk_differs_and_comes_again_with_its_seed() -> None:
    kept, _ = split_talk(0.25, np.random.default_rng(1))
    found = [talk_requests(kept, 200, np.random.default_rng(2)) for _ in range(2)]
    assert found[0] == found[1] and len({one.text for one in found[0]}) == 200
    assert not any("{" in one.text for one in found[0])
    with pytest.raises(DataError, match="ask for fewer"):
        talk_requests([("talk", "hello")], 2, np.random.default_rng(2))
    assert general_requests(50) == general_requests(50)


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (ToolCall("HassTurnOn", {"area": "kitchen", "domain": "light"}),
         [ToolCall("HassTurnOn", {"area": "attic", "domain": "light"}),
          ToolCall("HassTurnOff", {"area": "kitchen", "domain": "light"})]),
        (ToolCall("HassTurnOff", {"name": "lamp"}),
         [ToolCall("HassTurnOff", {"name": "orb"}), ToolCall("HassTurnOn", {"name": "lamp"})]),
        (ToolCall("HassGetState", {"name": "fan"}), []),
    ],
)  # fmt: skip
def test_a_second_request_means_the_first_call_but_for_what_it_says(
    call: ToolCall, meant: list[ToolCall]
) -> None:
    assert [made for _, _, made in changes(HOME, call)] == meant


def test_dialogues_name_what_is_in_the_home_in_wordings_of_their_part() -> None:
    [data] = make_homes(households=1, train=60, test=20, seed=3)
    kept, held = split_wordings(0.25, np.random.default_rng(1))
    assert all(set(kept[one]) and not set(kept[one]) & set(held[one]) for one in kept)
    made = dialogues(data.household, data.train, kept, 30, np.random.default_rng(2))
    assert len({(one.first.text, one.text) for one in made}) == 30
    names = {device.name for device in data.household.devices}
    for one in made:
        assert one.wording in {text for several in kept.values() for text in several}
        assert one.call.arguments.get("name", "") in {*names, *data.household.lists, ""}
        assert one.call != one.first.call


def test_a_household_that_talks_is_built_in_the_form_that_its_adapter_is_asked(
    tmp_path: Path,
) -> None:
    asked: list[str] = []

    def answers(texts: object, seed: int) -> list[str]:
        assert isinstance(texts, list)
        asked.extend(texts)
        return ["I would say so." if place else "" for place in range(len(texts))]

    beside = Beside(talk=20, follow_ups=10, answers=answers)
    for _ in range(2):
        [info] = build_homes(tmp_path, households=1, train=40, test=10, seed=5, beside=beside)
    learned = read_jsonl(tmp_path / "household-0" / "train.jsonl")
    held = read_jsonl(tmp_path / "household-0" / "test.jsonl")
    check_prompts([*learned, *held], HOUSEHOLD_TALK, "here")
    calls = [example for example in learned if parse(example.answer) is not None]
    texts = [example.answer for example in learned if parse(example.answer) is None]
    assert len(calls) == 40 + 10 and len(held) == 10 + 2
    assert len(texts) == 20 - 1  # one had no answer of the model's own
    assert set(texts) == {"I would say so."} | (set(texts) & set(CANNOT))
    assert len(asked) % 2 == 0 and asked[: len(asked) // 2] == asked[len(asked) // 2 :]
    turns = [sum(one["role"] == "user" for one in example.messages) for example in learned]
    assert turns.count(2) == 10
    assert all(render(call) == example.answer for example in calls
               if (call := parse(example.answer)) is not None)  # fmt: skip
    assert json.loads((tmp_path / "household-0" / "home.json").read_text())["devices"]
    assert info.name == "household-0"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Hello. I am fine! And y", "Hello. I am fine!"),
        ("One. Two. Three.", "One. Two."),
        ("no end at all", ""),
        ("3.5 is a number. Yes", "3.5 is a number."),
    ],
)
def test_an_own_answer_is_whole_sentences(text: str, kept: str) -> None:
    assert first_sentences(text) == kept
