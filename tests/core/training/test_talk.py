"""Talk, requests beyond the home, second requests and double ones: made by seed."""

import json
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import DataError
from quietchoir.core.prompt import HOUSEHOLD
from quietchoir.core.toolcall import ToolCall, parse, parse_all
from quietchoir.core.training.dataset import Beside, build_homes, make_homes
from quietchoir.core.training.examples import check_prompts, read_jsonl
from quietchoir.core.training.household.dialogue import changes, dialogues, doubles, split_wordings
from quietchoir.core.training.household.home import HomeDevice, Household
from quietchoir.core.training.household.talk import CANNOT, general_requests, talk_requests
from quietchoir.core.training.own_answers import first_sentences
from quietchoir.simulations.bench import tool_set

HOME = Household(
    "h", {"kitchen": "ground floor", "attic": "attic"},
    (HomeDevice("lamp", "light", "kitchen"), HomeDevice("orb", "light", "attic"),
     HomeDevice("fan", "fan", "attic")), (), {}, {},
)  # fmt: skip


def test_talk_differs_and_comes_again_with_its_seed() -> None:
    found = [talk_requests(200, np.random.default_rng(2)) for _ in range(2)]
    assert found[0] == found[1] and len({one.text for one in found[0]}) == 200
    assert not any("{" in one.text for one in found[0])
    assert sum(one.kind == "unserved" for one in found[0]) == 67
    with pytest.raises(DataError, match="ask for fewer"):
        talk_requests(4000, np.random.default_rng(2))
    assert general_requests(50) == general_requests(50)


def test_what_talk_is_tested_with_is_no_sentence_of_the_training() -> None:
    learned = {
        one.text.casefold().strip("?!.") for one in talk_requests(900, np.random.default_rng(1))
    }
    asked = {text.casefold().strip("?!.") for text in (*tool_set.TALK, *tool_set.BEYOND)}
    assert len(asked) == 100 and not asked & learned


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


def test_two_wishes_in_one_sentence_are_two_calls_in_its_order() -> None:
    [data] = make_homes(households=1, train=60, test=20, seed=3)
    kept, _ = split_wordings(0.25, np.random.default_rng(1))
    made = doubles(data.household, data.train, kept, 20, np.random.default_rng(2))
    assert made == doubles(data.household, data.train, kept, 20, np.random.default_rng(2))
    assert len({one.text for one in made}) == 20
    for one in made:
        assert parse_all(one.example("s").answer) == one.calls and one.calls[0] != one.calls[1]
        said = [str(call.arguments.get("name", "")) for call in one.calls]
        assert all(name in one.text for name in said)
        assert one.text.find(said[0]) <= one.text.rfind(said[1])
    whole = {request.text for request in data.train}
    assert any(text in one.text and one.text not in whole for one in made for text in whole)


def test_a_household_is_built_in_the_form_that_its_adapter_is_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    def answers(texts: object, seed: int) -> list[str]:
        assert isinstance(texts, list)
        asked.extend(texts)
        return ["I would say so." if place else "" for place in range(len(texts))]

    beside = Beside.usual(40, talk=21, answers=answers)
    assert (beside.follow_ups, beside.doubles) == (5, 3)
    for _ in range(2):
        [info] = build_homes(tmp_path, households=1, train=40, test=10, seed=5, beside=beside)
    learned = read_jsonl(tmp_path / "household-0" / "train.jsonl")
    held = read_jsonl(tmp_path / "household-0" / "test.jsonl")
    check_prompts([*learned, *held], HOUSEHOLD, "here")
    calls = [parse_all(example.answer) for example in learned]
    texts = [example.answer for example in learned if not parse_all(example.answer)]
    assert sorted(map(len, calls)) == [0] * 20 + [1] * 45 + [2] * 3
    assert len(held) == 10 and all(parse(example.answer) for example in held)
    assert texts.count(CANNOT) == 7 and texts.count("I would say so.") == 13  # one had none
    assert len(asked) % 2 == 0 and asked[: len(asked) // 2] == asked[len(asked) // 2 :]
    after = [one for one in learned if len(one.messages) == 5]
    assert {bool(parse(one.answer)) for one in after} == {True, False}  # second requests, and talk
    assert len(after) == 5 + 10
    assert json.loads((tmp_path / "household-0" / "home.json").read_text())["devices"]
    assert (info.train, info.test) == (len(learned), 10)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Hello. I am fine! And y", "Hello."),
        ("I am fine! And y", "I am fine!"),
        ("no end at all", ""),
        ("3.5 is a number. Yes", "3.5 is a number."),
    ],
)
def test_an_own_answer_is_whole_sentences(text: str, kept: str) -> None:
    assert first_sentences(text) == kept
