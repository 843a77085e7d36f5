"""Conversations with a planted fact are what they claim to be, and the control keeps the newest."""

import pytest

from quietchoir.core.assistant.passages import asks_of_all
from quietchoir.core.models import weights
from quietchoir.core.models.hub import catalog
from quietchoir.core.models.tokenizer.tokenizer import Tokenizer
from quietchoir.simulations.bench import context
from quietchoir.simulations.bench.planted import (
    GERMAN,
    HELD_OUT,
    TUNED,
    Kind,
    PlantedSet,
    conversation,
    survey,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return weights.load(catalog.find(context.MODEL)).tokenizer


@pytest.mark.parametrize("material", [TUNED, HELD_OUT, GERMAN])
@pytest.mark.parametrize("kind", context.KINDS)
def test_the_fact_stands_once_at_its_depth_among_others_like_it(
    material: PlantedSet, kind: Kind, tokenizer: Tokenizer
) -> None:
    count = context.counter(tokenizer)
    for number in range(len(material.relations)):
        found = conversation(material, kind, 2000, number, count)
        said = "\n".join(message.content for message in found.messages)
        assert said.count(found.statement) == 1
        assert said.replace(found.statement, "").count(found.value) == 0
        assert 1500 < count(said[said.index(found.statement) :]) < 3200
        assert found == conversation(material, kind, 2000, number, count)


@pytest.mark.parametrize("kind", context.KINDS)
def test_a_survey_holds_a_fact_of_each_relation_and_asks_for_all(
    kind: Kind, tokenizer: Tokenizer
) -> None:
    count = context.counter(tokenizer)
    for number in range(3):
        found = survey(HELD_OUT, kind, 2000, number, count)
        said = "\n".join(message.content for message in found.messages)
        assert len(found.values) == len(HELD_OUT.relations)
        assert all(value in said for value in found.values)
        assert asks_of_all(found.messages[-1].content[-60:])
        assert 1800 < count(said) < 3500


def test_no_relation_stands_in_both_sets() -> None:
    said = {text for relation in TUNED.relations for text in (*relation.said, *relation.asked)}
    assert not said & {
        text for relation in HELD_OUT.relations for text in (*relation.said, *relation.asked)
    }
    assert not {*TUNED.openings, *TUNED.things} & {*HELD_OUT.openings, *HELD_OUT.things}


def test_the_control_keeps_the_newest_tokens_and_fills_its_budget(tokenizer: Tokenizer) -> None:
    for kind in context.KINDS:
        one = conversation(TUNED, kind, 4000, 1, context.counter(tokenizer))
        prompt = context.truncated(one.messages, tokenizer)
        assert context.BUDGET - 40 <= len(prompt) <= context.BUDGET
        assert one.messages[-1].content[-40:] in tokenizer.decode(prompt)
        assert one.value not in tokenizer.decode(prompt)


def test_a_loop_is_told_from_prose() -> None:
    assert context.is_loop("You should drink water and sleep well. " * 20)
    assert not context.is_loop(" ".join(f"word{number}" for number in range(100)))
