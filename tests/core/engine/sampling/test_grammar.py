"""Answers in a form: they fit it, they end with it, and they trouble nobody else."""

import dataclasses
import json
import re
from collections.abc import Iterator

import jsonschema  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling import grammar_compiler
from quietchoir.core.engine.sampling.grammar import Grammars, apply_grammar_mask
from quietchoir.core.engine.sampling.params import Constraint, SamplingParams
from quietchoir.core.engine.sequence import Sequence
from quietchoir.core.errors import EngineError, RequestError
from quietchoir.core.models.tokenizer.tokenizer import Tokenizer
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import (
    END,
    FakeModel,
    byte_tokenizer,
    config,
    drain,
    generate,
    tiny_weights,
)

DIGITS = Constraint("regex", "[0-9]{3}-[0-9]{2}")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "size": {"type": "integer", "minimum": -5, "maximum": 5},
    },
    "required": ["name", "tags", "size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    grammars = Grammars(byte_tokenizer())
    yield grammars
    grammars.close()


def asked(
    constraint: Constraint, prompt: tuple[int, ...] = (40, 41, 42), **params: object
) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt,
        sampling_params=SamplingParams(**{"max_tokens": 150, "constraint": constraint, **params}),  # type: ignore[arg-type]
    )


def allowed(one: Sequence, drafts: tuple[int, ...] = ()) -> list[set[int]]:
    """Which bytes may come next, and after each of the drafts."""
    assert one.sampling.matcher is not None
    logits = torch.zeros(len(drafts) + 1, END + 1)
    apply_grammar_mask(logits.numpy(), [(0, one.sampling.matcher, drafts)])
    return [set(torch.isfinite(row).nonzero()[:, 0].tolist()) for row in logits]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_an_answer_is_json_of_its_schema_however_it_is_sampled(weights, temperature):
    engine = Engine(weights, config())
    requests = [
        asked(Constraint("json_schema", json.dumps(SCHEMA)), temperature=temperature, seed=seed)
        for seed in range(3)
    ]
    generations = [engine.submit(request) for request in requests]
    drain(engine)
    for generation in generations:
        jsonschema.validate(json.loads(generation.text()), SCHEMA)
        assert generation.finish_reason == "stop"


def test_a_form_ends_the_answer_as_soon_as_nothing_can_follow(weights):
    engine = Engine(weights, config())
    generation = engine.submit(asked(DIGITS))
    drain(engine)
    assert re.fullmatch(r"\d{3}-\d{2}", generation.text())
    assert (generation.finish_reason, generation.completion_tokens) == ("stop", 6)


def test_where_the_form_could_go_on_the_model_decides(weights):
    model = FakeModel()
    model.script = [*b"12", END, *b"345"]
    engine = Engine(weights, config(), backend=model)
    generation = engine.submit(asked(Constraint("regex", "[0-9]+")))
    drain(engine)
    assert (generation.text(), generation.finish_reason) == ("12", "stop")


def test_an_answer_cut_by_its_length_says_so(weights):
    engine = Engine(weights, config())
    generation = engine.submit(asked(DIGITS, max_tokens=4))
    drain(engine)
    assert (len(generation.text()), generation.finish_reason) == (4, "length")


def test_the_neighbours_of_a_constrained_answer_say_what_they_say_alone(weights):
    plain = [
        GenerationRequest(prompt=(number, 9), sampling_params=SamplingParams(max_tokens=25))
        for number in range(4)
    ]
    alone = generate(Engine(weights, config()), plain)
    mixed = [plain[0], asked(DIGITS), plain[1], asked(Constraint("json")), plain[2], plain[3]]
    together = generate(Engine(weights, config()), mixed)
    assert [together[place] for place in (0, 2, 4, 5)] == alone


def test_after_guesses_the_grammar_stands_where_they_lead(grammars):
    one = Sequence(asked(DIGITS), matcher=grammars.compile(DIGITS))
    digits = set(range(ord("0"), ord("9") + 1))
    assert allowed(one, tuple(b"12")) == [digits, digits, digits]
    for token in b"123":
        one.accept(token)
    assert allowed(one, tuple(b"-9")) == [{ord("-")}, digits, digits]
    assert allowed(one) == [{ord("-")}]  # looking ahead did not move it


def test_rows_of_several_grammars_and_of_none_do_not_mix(grammars):
    letters = Constraint("regex", "[ab]")
    one, other = grammars.compile(DIGITS), grammars.compile(letters)
    logits = torch.zeros(5, END + 4)  # a model whose head is padded beyond the vocabulary
    drafts = tuple(b"7")
    apply_grammar_mask(logits.numpy(), [(1, one, drafts), (4, other, ())])
    counts = torch.isfinite(logits).sum(-1).tolist()
    assert counts == [END + 4, 10, 10, END + 4, 2]


def test_forced_tokens_are_guessed(grammars):
    one = Sequence(
        asked(Constraint("regex", "ab(cde|cdf)")),
        matcher=grammars.compile(Constraint("regex", "ab(cde|cdf)")),
    )
    assert one.propose(8, 0.1) == tuple(b"abcd")
    for token in b"abcde":
        one.accept(token)
    assert (
        one.sampling.matcher is not None
        and one.sampling.matcher.complete
        and one.propose(8, 0.1) == ()
    )


def test_guesses_that_the_grammar_forbids_are_not_made(grammars):
    constraint = Constraint("regex", "(123x)+[0-9]*")
    one = Sequence(
        asked(constraint, prompt=tuple(b"123x99 ")), matcher=grammars.compile(constraint)
    )
    for token in b"123x12":
        one.accept(token)
    assert one.sampling.matcher is not None
    drafts = one.sampling.matcher.fitting(tuple(b"3x9z"))
    assert drafts == tuple(b"3x9")


def test_an_answer_in_a_form_is_the_same_with_and_without_guesses(weights):
    form = Constraint("json_schema", json.dumps(SCHEMA))
    engines = [Engine(weights, config(drafts=drafts)) for drafts in (0, 8)]
    texts = [
        generate(engine, [asked(form), asked(form, temperature=1.0, seed=4, speculate=True)])
        for engine in engines
    ]
    assert texts[0] == texts[1]
    assert engines[1].stats().accepted > 20
    assert engines[1].stats().steps < engines[0].stats().steps


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("json_schema", "{"),
        Constraint("json_schema", '{"type": 7}'),
        Constraint("json_schema", "[" * 5000),
        Constraint("regex", "(a"),
        Constraint("lark", "start: nobody"),
        Constraint("lark", ""),
        Constraint("regex", "x" * 100_001),
    ],
)
def test_what_is_no_grammar_is_refused_and_nothing_waits(weights, constraint):
    engine = Engine(weights, config())
    with pytest.raises(RequestError):
        engine.submit(asked(constraint))
    assert engine.stats().waiting == 0


def test_a_model_without_an_end_mark_is_held_to_no_form():
    endless = Tokenizer(dataclasses.replace(byte_tokenizer().vocabulary, stop=frozenset()))
    with pytest.raises(RequestError, match="names no token that ends an answer"):
        Grammars(endless).compile(DIGITS)


def test_a_grammar_that_grows_beyond_its_limits_fails_its_own_request_alone(weights, monkeypatch):
    monkeypatch.setattr(
        grammar_compiler, "LIMITS", grammar_compiler.LIMITS | {"step_max_items": 60}
    )
    engine = Engine(weights, config())
    heavy = Constraint("lark", 'start: a\na: b | a a\nb: "x" | "y" b | b "z" | a b a')
    plain = GenerationRequest(prompt=(1, 9), sampling_params=SamplingParams(max_tokens=25))
    hard = engine.submit(asked(heavy))
    other = engine.submit(plain)
    drain(engine)
    assert other.text() == generate(Engine(weights, config()), [plain])[0]
    with pytest.raises(EngineError, match="grammar"):
        hard.text()


KEYWORDS = ["type", "properties", "items", "enum", "anyOf", "$ref", "pattern", "minimum"]
ANY_SCHEMA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner),
    max_leaves=12,
)


@settings(max_examples=30, deadline=None)
@given(ANY_SCHEMA)
def test_any_json_is_a_schema_or_refused(grammars, schema):
    try:
        matcher = grammars.compile(Constraint("json_schema", json.dumps(schema)))
    except RequestError:
        return
    assert not matcher.inner.is_error()


def lazily(text: str, **more: object) -> Constraint:
    """Digits from `text` on."""
    return dataclasses.replace(DIGITS, trigger=text, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("drafts", [0, 8])
@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_an_answer_is_free_until_its_trigger_and_again_behind_the_form(
    weights, drafts, temperature
):
    model = FakeModel()
    # dots stand where the form takes its own digits instead
    model.script = [*b"a 12 <x<......", *b" b <x<...... c", *[END] * 9]
    engine = Engine(weights, config(drafts=drafts), backend=model)
    found = generate(engine, [asked(lazily("<x<"), temperature=temperature, seed=1)])
    assert re.fullmatch(r"a 12 <x<\d{3}-\d{2} b <x<\d{3}-\d{2} c", found[0])


def test_inside_a_form_that_was_entered_the_likeliest_words_are_taken_unpenalised(grammars):
    one = Sequence(
        asked(lazily("<"), temperature=1.0, presence_penalty=1.0),
        matcher=grammars.compile(lazily("<")),
    )
    state = one.sampling
    free, within = (False, 1.0, True), (True, 0.0, False)
    assert (state.in_form, state.temperature, state.penalised) == free
    one.accept(ord("<"))
    assert (state.in_form, state.temperature, state.penalised) == within
    assert allowed(one) == [set(b"0123456789")]
    for letter in b"123-45":
        one.accept(letter)
    assert (state.in_form, state.temperature, state.penalised) == free and not state.complete


def test_a_trigger_that_counts_at_the_start_alone_is_text_elsewhere(grammars):
    once = lazily("<", at_start=True)
    for said, inside in ((b"a<", False), (b" \n<", True), (b"<", True)):
        one = Sequence(asked(once), matcher=grammars.compile(once))
        for letter in said:
            one.accept(letter)
        assert (one.sampling.matcher is not None) is inside
    for letter in b"123-45 <":  # behind a form another may begin
        one.accept(letter)
    assert one.sampling.matcher is not None
    for letter in b"123-45x<":
        one.accept(letter)
    assert one.sampling.matcher is None


def test_guesses_never_cross_where_a_form_begins_or_ends(grammars):
    matcher = grammars.compile(lazily("<x"))
    assert matcher.fitting(tuple(b"ab<x1")) == tuple(b"ab<")
    for letter in b"<x12":
        matcher.accept(letter)
    assert matcher.fitting(tuple(b"3-45 more")) == tuple(b"3-4")
    assert matcher.fitting(tuple(b"x")) == ()
    matcher.accept(ord("3"))
    assert matcher.forced(9) == tuple(b"-")


def test_the_same_grammar_is_compiled_once_and_its_answers_do_not_share_their_place(grammars):
    one, other = grammars.compile(DIGITS), grammars.compile(DIGITS)
    one.accept(ord("1"))
    assert other.fitting(tuple(b"123-45")) == tuple(b"123-45")
    assert grammars.compile(DIGITS).fitting(tuple(b"123-45")) == tuple(b"123-45")
