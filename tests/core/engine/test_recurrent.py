"""What layers with a state of their own remember of a sequence is its own, whatever the engine
does with it: batches, chunks, shared beginnings, files, branches, wrong guesses, cancelled company,
too little memory.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quietchoir.core.engine.adapters import LoadedAdapter
from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.runner import NativeRunner
from quietchoir.core.engine.backends.select import BackendChoice
from quietchoir.core.engine.backends.states import SequenceStates
from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.block_pool import BLOCK_TOKENS
from quietchoir.core.engine.engine import Engine, planned, running_at_once
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.scheduler import Batch, Span
from quietchoir.core.errors import CacheError, ConfigError, EngineError, ModelError
from quietchoir.core.models.architecture import Architecture
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.lora.adapter import AdapterShape
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.core.training.frozen_layers import dense_linear
from quietchoir.core.training.packing import TokenExample, input_tokens, plan
from quietchoir.tests.fakes.engine import END, FakeModel, config, drain, float_blocks, generate
from quietchoir.tests.fakes.native import (
    Oracle,
    architecture,
    random_weights,
    sequence,
    step,
    whole,
)

BLOCKS = 40
CONVOLVING = architecture(
    family="lfm2",
    num_layers=4,
    qk_norm=True,
    convolutions=(True, False, True, True),
    conv_kernel=4,
    context_length=256,
)
FORGETTING = architecture(
    family="qwen3next",
    num_layers=4,
    qk_norm=True,
    attention_gate=True,
    deltas=(True, False, True, True),
    conv_kernel=4,
    delta_key_heads=2,
    delta_value_heads=4,
    delta_key_dim=32,
    delta_value_dim=16,
    context_length=256,
)
NOT_COMPILED = pytest.mark.skipif(library.available() is not None, reason="no compiled kernels")
KINDS = [
    pytest.param(("native", CONVOLVING), marks=NOT_COMPILED, id="convolutions-native"),
    pytest.param(("torch", CONVOLVING), id="convolutions-torch"),
    pytest.param(("native", FORGETTING), marks=NOT_COMPILED, id="delta-nets-native"),
    pytest.param(("torch", FORGETTING), id="delta-nets-torch"),
]
PROMPT = tuple(range(10, 75))  # four full blocks and a token
OTHERS = (tuple(range(40, 47)), tuple(range(100, 133)), (7,))


@dataclass(frozen=True)
class Start:
    """Makes engines over one kind of backend and of layers."""

    backend: str
    weights: Weights

    @property
    def shares(self) -> bool:
        """Whether what layers remember stands in the cache's blocks."""
        return not self.weights.architecture.deltas

    def runner(self, blocks: int = BLOCKS) -> NativeRunner | TorchRunner:
        if self.backend == "native":
            return NativeRunner(self.weights, blocks, threads=2)
        return TorchRunner(self.weights, blocks, compute=torch.float32)

    def __call__(self, blocks: int = BLOCKS, **changes: object) -> Engine:
        runner = self.runner(blocks)
        own = config(kv_bytes=blocks * runner.block_bytes, **changes)
        return Engine(self.weights, own, backend=runner)


def weights_of(shape: Architecture, kind: str = "F32") -> Weights:
    """Random ones; delta nets forget a part, as trained ones do."""
    made = random_weights(shape, kind)
    tensors = {
        name: float_blocks(-0.3 * blocks.dequantize().abs())
        if name.endswith("linear_attn.decay.weight")
        else blocks
        for name, blocks in made.tensors.items()
    }
    return replace(made, tensors=tensors)


@pytest.fixture(scope="module", params=KINDS)
def start(request: pytest.FixtureRequest) -> Start:
    backend, shape = request.param
    return Start(backend, weights_of(shape))


def asked(prompt: tuple[int, ...], tokens: int = 12, **params: object) -> GenerationRequest:
    """A request whose answer does not end early."""
    never = ((END, -100.0),)
    own = SamplingParams(max_tokens=tokens, logit_bias=never, **params)  # type: ignore[arg-type]
    return GenerationRequest(prompt=prompt, sampling_params=own)


@pytest.fixture(scope="module")
def alone(start: Start) -> dict[tuple[int, ...], str]:
    """Each prompt's answer, in an engine of its own."""
    return {prompt: generate(start(), [asked(prompt)])[0] for prompt in (PROMPT, *OTHERS)}


def test_answers_in_one_batch_are_those_given_alone(start: Start, alone) -> None:
    prompts = [PROMPT, *OTHERS]
    engine = start()
    assert generate(engine, [asked(prompt) for prompt in prompts]) == [alone[p] for p in prompts]


def test_a_beginning_that_was_computed_is_taken_over_at_whole_blocks_or_computed_anew(
    start: Start, alone
) -> None:
    engine = start()
    generate(engine, [asked(PROMPT, 1)])
    before = engine.stats()
    assert generate(engine, [asked(PROMPT)]) == [alone[PROMPT]]
    assert engine.stats().reused_tokens - before.reused_tokens == 4 * BLOCK_TOKENS * start.shares
    engine.scheduler.check_integrity()


def test_branches_of_one_beginning_go_their_own_ways(start: Start) -> None:
    branches = [PROMPT[:50] + end for end in ((1, 2, 3), (200, 201), (9,) * 20)]
    wanted = [generate(start(), [asked(branch)])[0] for branch in branches]
    engine = start()
    generate(engine, [asked(PROMPT[:50], 1)])
    assert generate(engine, [asked(branch) for branch in branches]) == wanted
    assert engine.stats().reused_tokens == 3 * 3 * BLOCK_TOKENS * start.shares


def test_a_kept_conversation_goes_on_from_its_file_or_is_refused(
    start: Start, alone, tmp_path: Path
) -> None:
    engine = start()
    generate(engine, [asked(PROMPT)])
    if not start.shares:
        with pytest.raises(CacheError, match="holds nothing of these 65 tokens"):
            engine.conversations.save(PROMPT, tmp_path / "one")
        return
    assert engine.conversations.save(PROMPT, tmp_path / "one") == 4 * BLOCK_TOKENS
    again = start()
    again.conversations.restore(tmp_path / "one")
    assert generate(again, [asked(PROMPT)]) == [alone[PROMPT]]
    assert again.stats().reused_tokens == 4 * BLOCK_TOKENS


def test_a_kept_conversation_whose_rows_are_no_numbers_is_refused(start: Start) -> None:
    backend = start().backend
    data = backend.read_cache([0])
    head, _, body = data.partition(b"\n")
    spoiled = head + b"\n" + body[:-4] + np.full(1, np.nan, np.float32).tobytes()
    before = backend.read_cache([1])
    with pytest.raises(CacheError, match="not finite"):
        backend.write_cache([1], spoiled)
    assert backend.read_cache([1]) == before


def test_a_wrong_guess_leaves_no_trace(start: Start) -> None:
    """Guesses are computed, found wrong, and written over; or nobody guesses."""
    if not start.shares:
        assert start().scheduler.limits.drafts == 0
        return
    tokens = list(PROMPT[:40])
    rows = []
    for guesses in ((), (250, 251, 252, 253, 254)):
        backend, one = start.runner(), sequence(tokens[:30], range(4))
        backend.forward(Batch((Span(one, 0, 30, 1),)))
        one.tokens = tokens[:31]
        wrong = Span(one, 30, 1 + len(guesses), 1 + len(guesses), guesses)
        found = [np.asarray(backend.forward(Batch((wrong,))))[0]]
        for place in range(31, 40):
            one.tokens = tokens[: place + 1]
            found.append(np.asarray(backend.forward(Batch((Span(one, place, 1, 1),))))[0])
        rows.append(np.stack(found))
    assert np.abs(rows[0] - rows[1]).max() < 1e-4


def test_guesses_change_no_answer(start: Start) -> None:
    prompt = (5, 6, 7, 8, 9) * 6
    plain = generate(start(), [asked(prompt, 40, speculate=False)])
    engine = start()
    assert generate(engine, [asked(prompt, 40, speculate=True)]) == plain
    assert start.shares or not engine.stats().drafted


def test_a_cancelled_neighbour_changes_nothing(start: Start, alone) -> None:
    engine = start()
    gone, kept = engine.submit(asked(OTHERS[1], 60)), engine.submit(asked(PROMPT))
    for _ in range(4):
        engine.step()
    gone.cancel()
    drain(engine)
    assert (gone.finish_reason, kept.text()) == ("cancelled", alone[PROMPT])
    engine.scheduler.check_integrity()
    assert generate(engine, [asked(OTHERS[0])]) == [alone[OTHERS[0]]]


def test_who_gives_way_for_want_of_memory_ends_with_the_same_text(start: Start) -> None:
    prompts = [tuple(range(first, first + 30)) for first in (10, 60, 110)]
    plenty = generate(start(), [asked(prompt, 40) for prompt in prompts])
    scarce = start(blocks=8, share_prefixes=False)
    assert generate(scarce, [asked(prompt, 40) for prompt in prompts]) == plenty
    assert scarce.stats().preemptions > 0


@NOT_COMPILED
@pytest.mark.parametrize("kv_type", ["bf16", "q8", "q4"])
@pytest.mark.parametrize("shape", [CONVOLVING, FORGETTING], ids=["convolutions", "delta-nets"])
def test_quantised_matrices_and_keys_stand_beside_them(shape: Architecture, kv_type: str) -> None:
    """Their rows and states stay bfloat16 and float32, on any number of threads."""
    weights = weights_of(shape, "Q8_0")
    wanted = Oracle(weights, kv_type).logits(list(PROMPT))
    found = []
    for threads in (1, 3):
        runner = NativeRunner(weights, 6, threads=threads, kv_type=kv_type, precision="exact")
        found.append(runner.forward(step(whole(sequence(list(PROMPT), range(5))))))
    assert np.array_equal(found[0], found[1])
    assert (torch.from_numpy(found[0]) - wanted).abs().max() < 3e-2 * wanted.std()


def test_a_state_goes_on_from_where_it_stands_or_not_at_all() -> None:
    states = SequenceStates[list[int]](list, list.clear)
    first, second = sequence([1, 2, 3], range(1)), sequence([1, 2, 3], range(1, 2))
    (own,) = states.begin([Span(first, 0, 2, 0)])
    own.append(7)
    states.end([Span(first, 0, 2, 0)])
    for wrong in (Span(first, 1, 1, 1), Span(second, 2, 1, 1)):
        with pytest.raises(EngineError, match="goes on after"):
            states.begin([wrong])
    assert states.begin([Span(first, 2, 1, 1)]) == [[7]]
    with pytest.raises(EngineError, match="remember -1 tokens"):  # that step did not end
        states.begin([Span(first, 3, 1, 1)])
    first.block_table = []  # it is gone, and leaves its state to another
    assert states.begin([Span(second, 0, 1, 1)])[0] is own
    assert (own, len(states)) == ([], 1)


def test_memory_for_states_is_counted_and_bounds_how_many_run() -> None:
    choice = BackendChoice(100, lambda blocks, context: FakeModel(), sequence_bytes=1000)
    weights = weights_of(FORGETTING)
    pool, _ = planned(weights, config(kv_bytes=5000, max_running=16), choice)
    assert running_at_once(config(kv_bytes=5000, max_running=16), choice) == 2
    assert pool.total == 30
    with pytest.raises(ConfigError, match="100 for this model beside 1000 of a request"):
        planned(weights, config(kv_bytes=1050), choice)


def test_an_adapter_of_delta_nets_is_refused_with_a_sentence() -> None:
    with pytest.raises(ModelError, match="gated delta nets, whose matrices no adapter of ours"):
        AdapterShape(rank=2, upper_layers=1).modules(FORGETTING)


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=NOT_COMPILED)])
def test_an_adapter_beside_convolutions_changes_what_it_says(backend: str) -> None:
    """Attention where a layer attends, feed-forwards everywhere; as if it were merged."""
    weights, generator = weights_of(CONVOLVING), torch.Generator().manual_seed(3)
    modules = AdapterShape(rank=2, upper_layers=4).modules(CONVOLVING)
    assert sum("self_attn" in module for module in modules) == 4
    factors, merged = {}, dict(weights.tensors)
    for module, (rows, columns) in modules.items():
        a = torch.randn(columns, 2, generator=generator) * columns**-0.5
        b = torch.randn(2, rows, generator=generator) * 0.5
        factors[module] = (a, b)
        name = f"{module}.weight"
        merged[name] = float_blocks(merged[name].dequantize() + (a @ b).T)
    one = sequence(list(PROMPT), range(5), LoadedAdapter("a", factors))
    found = torch.as_tensor(Start(backend, weights).runner().forward(step(whole(one))))
    wanted = Oracle(replace(weights, tensors=merged)).logits(list(PROMPT))
    assert (found - wanted).abs().max() < 3e-2 * wanted.std()
    assert (found - Oracle(weights).logits(list(PROMPT))).abs().max() > 0.5 * wanted.std()
    with pytest.raises(ValueError, match="upper 1 layers have none of q_proj"):
        AdapterShape(rank=2, upper_layers=1, targets=("q_proj",)).modules(CONVOLVING)


@torch.inference_mode()
def test_packed_examples_convolve_each_by_itself_behind_what_they_share() -> None:
    network = Transformer(weights_of(CONVOLVING), dense_linear(torch.float32))
    texts = [PROMPT[:20] + end for end in ((1, 2, 3, 4), (200,), (9,) * 7)]
    examples = [TokenExample(text, (5,)) for text in texts]
    batch = plan(examples, shared=20)
    rows = network.embed(input_tokens(examples, 20))
    found = network.layers_forward(rows, batch.positions, batch)
    start = 20
    for text in texts:
        alone = network.layers_forward(
            network.embed(torch.tensor(text)),
            torch.arange(len(text)),
            packed_attention([len(text)]),
        )
        own = torch.cat([found[:20], found[start : start + len(text) - 20]])
        start += len(text) - 20
        torch.testing.assert_close(own, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"conv_kernel": 0},
        {"conv_kernel": 17},
        {"convolutions": (True,) * 4},
        {"convolutions": (True, False)},
        {"biases": ("self_attn.q_proj",)},
    ],
)
def test_convolutions_that_would_be_computed_wrongly_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(CONVOLVING, **change).validate()
