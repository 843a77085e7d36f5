"""A grammar that ends its compiler ends nothing else."""

import json
import subprocess
import sys
import threading

import pytest

from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling import grammar_compiler, grammar_limits
from quietchoir.core.engine.sampling.grammar import Grammars
from quietchoir.core.engine.sampling.params import Constraint, SamplingParams
from quietchoir.core.errors import OverloadedError, RequestError
from quietchoir.tests.fakes import grammars as foreign
from quietchoir.tests.fakes.engine import byte_tokenizer, config, tiny_weights
from quietchoir.tests.fakes.grammars import (
    HARMFUL,
    groups,
    linked_objects,
    references,
    rules,
    terminals,
)

DIGITS = Constraint("regex", "[0-9]{3}")
# Compiles on one stack, computes masks on another; what is left of the child says how that went.
ALONE = """
import os, sys
from quietchoir.core.engine.sampling import grammar_compiler as compiler
from quietchoir.tests.fakes import grammars
from quietchoir.tests.fakes.engine import byte_tokenizer
kind, size, build_bytes, mask_bytes = sys.argv[1], *map(int, sys.argv[2:])
os.environ["RUST_MIN_STACK"] = str(mask_bytes)
compiler.TRIAL_STACK_BYTES = mask_bytes
trial = compiler.Trial(compiler.spelling(byte_tokenizer()))
grammar = getattr(grammars, kind)(size)
matcher = compiler.on_stack(build_bytes, lambda: compiler.build(trial._words, grammar))
compiler.on_stack(mask_bytes, lambda: trial._walk(matcher))
os._exit(0)  # the matcher is let go of by nobody
"""


@pytest.fixture(scope="module")
def grammars():
    grammars = Grammars(byte_tokenizer())
    yield grammars
    grammars.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A machine that does much else at once must not decide what these tests see."""
    monkeypatch.setattr(grammar_compiler, "DEADLINE_S", 600.0)


@pytest.fixture
def unbounded(monkeypatch):
    """The first wall is down: what is too deep reaches the worker."""
    monkeypatch.setattr(grammar_limits, "check", lambda constraint: None)


@pytest.mark.parametrize("kind, size", HARMFUL)
def test_a_harmful_grammar_is_refused_and_the_next_one_compiles(grammars, kind, size):
    with pytest.raises(RequestError):
        grammars.compile(kind(size))
    assert not grammars.compile(DIGITS).complete


@pytest.mark.parametrize(
    "kind, size", [(references, 3_000), (linked_objects, 1_000), (rules, 3_000), (terminals, 4_000)]
)
def test_what_gets_past_the_bounds_ends_the_worker_alone(grammars, unbounded, kind, size):
    grammars.compile(DIGITS)
    before = grammars._compiler._worker.starts
    with pytest.raises(RequestError, match="grammar compiler ended with code"):
        grammars.compile(kind(size))
    grammars.compile(Constraint("regex", f"{kind.__name__}[0-9]"))  # none that was tried before
    assert grammars._compiler._worker.starts == before + 1


def test_a_grammar_that_takes_too_long_is_given_up(grammars, monkeypatch):
    grammars.compile(DIGITS)
    monkeypatch.setattr(grammar_compiler, "DEADLINE_S", 0.2)
    with pytest.raises(RequestError, match="took longer than"):
        grammars.compile(foreign.options(9_000))
    monkeypatch.setattr(grammar_compiler, "DEADLINE_S", 600.0)
    grammars.compile(Constraint("regex", "z{7}"))


def test_a_mask_that_takes_too_long_is_found_before_anybody_waits_for_it(grammars):
    with pytest.raises(RequestError, match="for one token"):
        grammars.compile(foreign.repeated(100))


def test_a_busy_compiler_is_told_as_busy(grammars, monkeypatch):
    grammars.compile(DIGITS)
    monkeypatch.setattr(grammar_compiler, "DEADLINE_S", 0.05)
    with (
        grammars._compiler._worker._borrow(1),
        pytest.raises(OverloadedError, match="grammar compiler"),
    ):
        grammars.compile(Constraint("regex", "q{5}"))


def test_a_grammar_that_was_survived_is_not_tried_again(grammars):
    grammars.compile(DIGITS)
    with grammars._compiler._worker._borrow(1):  # nobody there to ask
        grammars.compile(DIGITS)


def test_ordinary_forms_are_within_the_bounds(grammars):
    """A schema of 200 definitions that refer to each other, and one that nests as deep as people
    write.
    """
    names = [f"t{number}" for number in range(200)]
    kin = {
        name: {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/{names[place - 7]}"}]}
        for place, name in enumerate(names)
    }
    grammars.compile(Constraint("json_schema", json.dumps({"$defs": kin, "$ref": "#/$defs/t0"})))
    grammars.compile(foreign.objects(20))
    grammars.compile(groups(20))


@pytest.mark.parametrize(
    "text, levels",
    [
        ("3", 1),
        ('{"a": [1]}', 3),
        ('{"$ref": "#/$defs/x~1y", "$defs": {"x/y": [[]]}}', 4),
        ('{"$ref": "#"}', 3),
        ('{"$ref": "#/a/1", "a": [0, {"b": {}}]}', 4),
        ('{"$ref": "#/a/9", "a": [0]}', 3),
        ('{"$ref": "http://x/y#/z"}', 2),
    ],
)
def test_depth_follows_each_reference_once(text, levels):
    schema = json.loads(text)
    assert grammar_limits.depth_of(schema, schema, follow=True) == levels


def test_others_are_answered_while_a_grammar_brings_its_compiler_down(unbounded):
    engine = Engine(tiny_weights(), config())
    engine.start()
    outcome = []

    def attack() -> None:
        try:
            engine.submit(
                GenerationRequest(
                    prompt=(1, 2),
                    sampling_params=SamplingParams(max_tokens=9, constraint=rules(3_000)),
                )
            )
        except RequestError as error:
            outcome.append(str(error))

    attacker = threading.Thread(target=attack)
    attacker.start()
    plain = [
        engine.submit(
            GenerationRequest(prompt=(1, number), sampling_params=SamplingParams(max_tokens=20))
        )
        for number in range(4)
    ]
    assert all(generation.text() for generation in plain)
    attacker.join()
    assert "ended with code" in outcome[0]
    assert (
        engine.submit(
            GenerationRequest(
                prompt=(1, 2), sampling_params=SamplingParams(max_tokens=9, constraint=DIGITS)
            )
        )
        .text()
        .isdecimal()
    )
    engine.stop()
    assert engine._grammars._compiler._worker is None


@pytest.mark.parametrize("kind, size", [("references", 11_000), ("rules", 12_000)])
def test_masks_need_no_stack_where_the_compiler_needs_all_of_it(kind, size):
    """The reason why masks may be computed in the node: about twenty times the depth that
    compiles on the same stack.
    """

    def child(build_bytes: int, mask_bytes: int) -> int:
        return subprocess.run(
            [sys.executable, "-c", ALONE, kind, str(size), str(build_bytes), str(mask_bytes)]
        ).returncode

    assert child(512 << 20, 2 << 20) == 0
    assert child(2 << 20, 2 << 20) < 0  # the unprotected arm: a signal
