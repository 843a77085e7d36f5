"""An answer that only repeats itself is ended; one that merely has like parts is not."""

import dataclasses

import pytest

from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.output import LOOP_CHARACTERS, LoopGuard
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.tests.fakes.engine import FakeModel, config, drain, tiny_weights

SENTENCE = "It is important to drink enough water and to sleep well. "
VERSE = (
    "{0} bottles of milk stood on the wall, {0} bottles of milk. Someone took one down and drank "
    "it, and so there were fewer. "
)


def met(text: str, piece: int = 3) -> int | None:
    """After how many characters a loop is seen; None: never."""
    guard = LoopGuard()
    for start in range(0, len(text), piece):
        if guard.push(text[start : start + piece]):
            return min(start + piece, len(text))
    return None


@pytest.mark.parametrize("before", ["", "Sleep matters for three reasons. First, rest. "])
@pytest.mark.parametrize("period", [SENTENCE, "word ", "-", "a b c d e f g h i " * 20])
def test_a_text_that_comes_again_and_again_is_a_loop(before: str, period: str) -> None:
    at = met(before + period * 300)
    assert at is not None
    assert at - len(before) <= max(LOOP_CHARACTERS, 4 * len(period)) + 3


def test_a_text_that_changes_nothing_but_its_numbers_is_a_loop() -> None:
    text = "".join(VERSE.format(number) for number in range(99, 0, -1))
    at = met(text)
    assert at is not None and len(text[:at]) <= 5 * len(VERSE)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(str, range(1, 400))),  # counting
        "\n".join(f"{a} x {b} = {a * b}" for a in range(1, 13) for b in range(1, 13)),
        "\n".join(f"| {n} | {n * n} | {n**3} |" for n in range(200)),
        "Yes. " * 40,  # short of what counts
        "".join(f"{SENTENCE}Then came day {chr(97 + n) * (n + 1)}. " for n in range(20)),
        "    return None\n\n\ndef a():\n    pass\n" * 2,
    ],
)
def test_what_only_has_like_parts_is_no_loop(text: str) -> None:
    assert met(text) is None


def test_the_engine_ends_a_loop_where_it_is_asked_to() -> None:
    weights = dataclasses.replace(tiny_weights())
    said = (SENTENCE * 40).encode()[:2000]
    model = FakeModel(300)
    model.script = [byte % 128 for byte in said]
    long = dataclasses.replace(
        weights, architecture=dataclasses.replace(weights.architecture, context_length=4096)
    )
    ends = {}
    for guarded in (True, False):
        engine = Engine(long, config(context=4096, kv_bytes=1 << 30), backend=model)
        generation = engine.submit(
            GenerationRequest(
                prompt=(1, 2),
                sampling_params=SamplingParams(
                    max_tokens=1500, loop_guard=guarded, speculate=False
                ),
            )
        )
        drain(engine)
        ends[guarded] = (generation.finish_reason, len(generation.text()))
    assert ends[True][0] == "repetition" and ends[True][1] <= LOOP_CHARACTERS + 60
    assert ends[False] == ("length", 1500)


def test_an_answer_without_a_limit_ends_where_the_context_does() -> None:
    engine = Engine(tiny_weights(), config(), backend=FakeModel())
    generation = engine.submit(GenerationRequest(prompt=(1,) * 56))
    drain(engine)
    assert generation.finish_reason == "length"
    assert generation.completion_tokens == engine.context - 56
