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

from quietchoir.core.engine.adapters import AdapterRegistry, LoadedAdapter
from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.runner import NativeRunner
from quietchoir.core.engine.backends.select import BackendChoice, running_at_once
from quietchoir.core.engine.backends.states import FlatStates, SequenceStates
from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.block_pool import BLOCK_TOKENS
from quietchoir.core.engine.engine import Engine, planned
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.scheduler import Batch, Span
from quietchoir.core.errors import CacheError, ConfigError, EngineError, ModelFileError
from quietchoir.core.models.architecture import Architecture
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.checkpoint import from_gguf, from_hf
from quietchoir.core.models.files import gguf
from quietchoir.core.models.lora.adapter import Adapter, AdapterShape, Layout, assemble
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.core.training.frozen_layers import dense_linear
from quietchoir.core.training.packing import TokenExample, input_tokens, plan
from quietchoir.tests.fakes.engine import (
    END,
    FakeModel,
    byte_tokenizer,
    config,
    drain,
    float_blocks,
    generate,
)
from quietchoir.tests.fakes.models import GgufWriter, make_model
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
SCANNING = architecture(
    family="falcon-h1",
    num_layers=3,
    state_spaces=True,
    scan_norm=True,
    scan_beside=True,
    deltas=(True,) * 3,
    conv_kernel=4,
    delta_key_heads=2,
    delta_value_heads=4,
    delta_key_dim=16,
    delta_value_dim=32,
    context_length=256,
)
NOT_COMPILED = pytest.mark.skipif(library.available() is not None, reason="no compiled kernels")
KINDS = [
    pytest.param(("native", CONVOLVING), marks=NOT_COMPILED, id="convolutions-native"),
    pytest.param(("torch", CONVOLVING), id="convolutions-torch"),
    pytest.param(("native", FORGETTING), marks=NOT_COMPILED, id="delta-nets-native"),
    pytest.param(("torch", FORGETTING), id="delta-nets-torch"),
    pytest.param(("native", SCANNING), marks=NOT_COMPILED, id="scans-native"),
]
PROMPT = tuple(range(10, 75))  # four full blocks and a token
OTHERS = (tuple(range(40, 47)), tuple(range(100, 133)), (7,))


@dataclass(frozen=True)
class Start:
    """Makes engines over one kind of backend and of layers."""

    backend: str
    weights: Weights

    @property
    def paged(self) -> bool:
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


def test_a_beginning_that_was_computed_is_taken_over_at_whole_blocks(start: Start, alone) -> None:
    engine = start()
    generate(engine, [asked(PROMPT, 1)])
    before = engine.stats()
    assert generate(engine, [asked(PROMPT)]) == [alone[PROMPT]]
    assert engine.stats().reused_tokens - before.reused_tokens == 4 * BLOCK_TOKENS
    engine.scheduler.check_integrity()


def test_branches_of_one_beginning_go_their_own_ways(start: Start) -> None:
    branches = [PROMPT[:50] + end for end in ((1, 2, 3), (200, 201), (9,) * 20)]
    wanted = [generate(start(), [asked(branch)])[0] for branch in branches]
    engine = start()
    generate(engine, [asked(PROMPT[:50], 1)])
    assert generate(engine, [asked(branch) for branch in branches]) == wanted
    assert engine.stats().reused_tokens == 3 * 3 * BLOCK_TOKENS


def test_a_second_turn_computes_what_is_new_and_says_the_same(start: Start) -> None:
    engine = start()
    engine.submit(asked(PROMPT, 70))
    engine.step()
    (first,) = engine.scheduler.running
    drain(engine)
    second = (*first.tokens, 5, 6, 7)
    wanted = generate(start(share_prefixes=False), [asked(second)])
    before = engine.stats()
    assert generate(engine, [asked(second)]) == wanted
    # of the answer too; its states are copied at every fourth block
    assert engine.stats().reused_tokens - before.reused_tokens == 8 * BLOCK_TOKENS
    engine.scheduler.check_integrity()


def test_who_comes_third_goes_on_from_where_two_parted(start: Start) -> None:
    shared = PROMPT[:37]  # two blocks; nobody's prompt ends there
    texts = [shared + (first,) * 30 for first in (1, 2, 3)]
    wanted = [generate(start(), [asked(text)])[0] for text in texts]
    engine, reused = start(), []
    for text, answer in zip(texts, wanted, strict=True):
        before = engine.stats().reused_tokens
        assert generate(engine, [asked(text)]) == [answer]
        reused.append(engine.stats().reused_tokens - before)
    assert reused == [0, 2 * BLOCK_TOKENS * start.paged, 2 * BLOCK_TOKENS]


def test_no_more_copies_of_states_are_kept_than_memory_was_given_for(start: Start) -> None:
    engine = start(max_running=2)
    if start.paged:
        assert engine.scheduler.snapshots is None
        return
    texts = [tuple(range(first, first + 40)) for first in range(0, 160, 20)]
    answers = [generate(engine, [asked(text, 2)])[0] for text in texts]
    assert engine.scheduler.snapshots is not None and len(engine.scheduler.snapshots) == 2
    before = engine.stats().reused_tokens
    assert generate(engine, [asked(texts[-1], 2)]) == answers[-1:]  # among the latest
    assert engine.stats().reused_tokens - before == 2 * BLOCK_TOKENS
    assert generate(engine, [asked(texts[0], 2)]) == answers[:1]  # put out: computed anew
    assert engine.stats().reused_tokens - before == 2 * BLOCK_TOKENS


def test_a_kept_conversation_goes_on_from_its_file_or_is_refused(
    start: Start, alone, tmp_path: Path
) -> None:
    engine = start()
    generate(engine, [asked(PROMPT)])
    if start.backend == "torch" and not start.paged:
        with pytest.raises(CacheError, match="holds nothing of these 65 tokens"):
            engine.conversations.save(PROMPT, tmp_path / "one")
        return
    assert engine.conversations.save(PROMPT, tmp_path / "one") == 4 * BLOCK_TOKENS
    again = start()
    again.conversations.restore(tmp_path / "one")
    assert generate(again, [asked(PROMPT)]) == [alone[PROMPT]]
    assert again.stats().reused_tokens == 4 * BLOCK_TOKENS


def test_a_saved_state_of_another_size_or_without_numbers_is_refused() -> None:
    states = FlatStates(8)
    saved = np.arange(8, dtype=np.float32)
    assert np.array_equal(states.load(states.dump(saved)), saved)
    spoiled = np.full(8, np.inf, np.float32)
    for data in (states.dump(saved)[:-4], states.dump(spoiled)):
        with pytest.raises(CacheError, match="saved state"):
            states.load(data)


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
    if not start.paged:
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
    assert start.paged or not engine.stats().drafted


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
@pytest.mark.parametrize(
    "shape", [CONVOLVING, FORGETTING, SCANNING], ids=["convolutions", "delta-nets", "scans"]
)
def test_quantised_matrices_and_keys_stand_beside_them(shape: Architecture, kv_type: str) -> None:
    """Their rows and states stay bfloat16 and float32, on any number of threads."""
    weights = weights_of(shape, "Q8_0")
    wanted = Oracle(weights, kv_type).logits(list(PROMPT))
    found = []
    for threads in (1, 3):
        runner = NativeRunner(weights, 6, threads=threads, kv_type=kv_type, precision="exact")
        found.append(runner.forward(step(whole(sequence(list(PROMPT), range(5))))))
    assert np.array_equal(found[0], found[1])
    # of 4 bits a number that rounds the other way moves all layers behind, and these all attend
    bound = 0.15 if kv_type == "q4" and shape is SCANNING else 3e-2
    assert (torch.from_numpy(found[0]) - wanted).abs().max() < bound * wanted.std()


def test_a_state_goes_on_from_where_it_stands_or_not_at_all() -> None:
    states = SequenceStates[list[int]](
        list, list.clear, lambda source, target: target.__setitem__(slice(None), source)
    )
    first, second = sequence([1, 2, 3], range(1)), sequence([1, 2, 3], range(1, 2))
    (own,) = states.begin([Span(first, 0, 2, 0)])
    own.append(7)
    states.end([Span(first, 0, 2, 0)])
    for wrong in (Span(first, 1, 1, 1), Span(second, 2, 1, 1)):
        with pytest.raises(EngineError, match="goes on after"):
            states.begin([wrong])
    copy = states.snapshot(first)
    assert states.begin([Span(first, 2, 1, 1)]) == [[7]]
    with pytest.raises(EngineError, match="remember -1 tokens"):  # that step did not end
        states.begin([Span(first, 3, 1, 1)])
    first.block_table = []  # it is gone, and leaves its state to another
    assert states.begin([Span(second, 0, 1, 1)])[0] is own
    assert (own, len(states)) == ([], 1)
    third = sequence([1, 2, 3], range(2, 3))
    third.resumes = copy
    (taken,) = states.begin([Span(third, 2, 1, 1)])
    taken.append(8)
    states.end([Span(third, 2, 1, 1)])
    assert (taken, copy.state) == ([7, 8], [7])
    assert third.resumes is None


def test_memory_for_states_is_counted_and_bounds_how_many_run() -> None:
    choice = BackendChoice(100, lambda blocks, context: FakeModel(), sequence_bytes=1000)
    weights = weights_of(FORGETTING)
    pool, _ = planned(weights, config(kv_bytes=5000, max_running=16), choice)
    assert running_at_once(config(kv_bytes=5000, max_running=16), 1000) == 2
    assert pool.total == 20  # two states, and a copy of one
    with pytest.raises(ConfigError, match="100 for this model beside 1000 of a request"):
        planned(weights, config(kv_bytes=1050), choice)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_what_is_trained_beside_delta_nets_is_attention_and_feed_forwards_and_peft_reads_it(
    tmp_path: Path,
) -> None:
    """Queries stand among their gates in a folder's matrix, and gates are not changed."""
    from peft import PeftModel

    (model := make_model("qwen35")).save_pretrained(tmp_path)
    shape = from_hf.read_architecture(tmp_path)
    loaded = Weights(
        shape, from_hf.name_tensors(tmp_path, shape), byte_tokenizer(), digest="e" * 64
    )
    own = AdapterShape(rank=4, upper_layers=4)
    layout = Layout(own, shape)
    assert sum("self_attn" in name for name in layout.shapes) == 4  # one layer of the four attends
    flat = torch.sin(torch.arange(layout.size) * 1.7) * 0.2
    made = assemble(own, shape, loaded.digest, flat)
    made.save(tmp_path / "adapter")
    again = Adapter.load(tmp_path / "adapter")
    again.check(shape)
    assert torch.equal(layout.flatten(again.trained(shape)), flat)
    held = AdapterRegistry(loaded)
    held.load("one", again)
    one = sequence(list(PROMPT), range(5), held.find("one"))
    found = torch.as_tensor(Start("torch", loaded).runner().forward(step(whole(one))))
    with torch.inference_mode():
        bare = model(torch.tensor(PROMPT)[None]).logits[0]
        wanted = PeftModel.from_pretrained(model, tmp_path / "adapter")(torch.tensor(PROMPT)[None])
    assert (wanted.logits[0] - bare).abs().max() > 0.5
    assert (found - wanted.logits[0]).abs().max() < 1e-3 * bare.std()


INPUTS = {"qwen35": ("in_proj_qkv", "in_proj_z"), "qwen3next": ("in_proj_qkvz",)}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("name", "file"), [("qwen35", "folder"), ("qwen35", "gguf"), ("qwen3next", "folder")]
)
def test_an_adapter_of_delta_nets_that_peft_made_says_what_it_says_there(
    name: str, file: str, tmp_path: Path
) -> None:
    """Attention with its gate, inputs, gates and outputs of delta nets, feed-forwards."""
    from peft import LoraConfig, get_peft_model

    # all experts of a mixture: else one row that takes another at a near-tie moves all behind it
    model = make_model(name, **({} if name == "qwen35" else {"num_experts_per_tok": 6}))
    if file == "gguf":
        GgufWriter(model, tmp_path / "it.gguf").write()
        opened = gguf.read(tmp_path / "it.gguf")
        shape = from_gguf.read_architecture(opened)
        tensors = dict(from_gguf.name_tensors(opened, shape))
    else:
        model.save_pretrained(tmp_path)
        shape = from_hf.read_architecture(tmp_path)
        tensors = from_hf.name_tensors(tmp_path, shape)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj", *INPUTS[name]]
    targets += [] if shape.num_experts else ["gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    with torch.no_grad():
        for place, parameter in adapted.named_parameters():
            if "lora_B" in place:
                parameter.normal_(0, 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = Weights(shape, tensors, byte_tokenizer(), digest="e" * 64)
    held = AdapterRegistry(loaded)
    held.load("one", Adapter.load(tmp_path / "adapter"))
    with torch.inference_mode():
        wanted = adapted(torch.tensor(PROMPT)[None]).logits[0]
        with adapted.disable_adapter():
            assert (adapted(torch.tensor(PROMPT)[None]).logits[0] - wanted).abs().max() > 1
    for backend, bound in (("torch", 1e-3), ("native", 6e-2)):  # factors in bf16
        if backend == "native" and library.available() is not None:
            continue
        one = sequence(list(PROMPT), range(5), held.find("one"))
        found = torch.as_tensor(Start(backend, loaded).runner().forward(step(whole(one))))
        assert (found - wanted).abs().max() < bound * wanted.std(), backend


def test_another_adapter_of_delta_nets_than_fits_is_refused() -> None:
    weights = weights_of(FORGETTING)
    for module, rows in (
        ("model.layers.0.self_attn.q_proj", 128),  # that layer does not attend
        ("model.layers.1.self_attn.q_proj", 64),  # without its gate
        ("model.layers.0.linear_attn.in_proj_qkv", 192),  # of another family
        ("model.layers.1.self_attn.out_gate", 64),  # our own name
    ):
        tensors = {
            f"{module}.lora_A.weight": torch.ones(2, 64),
            f"{module}.lora_B.weight": torch.ones(rows, 2),
        }
        adapter = Adapter(AdapterShape(rank=2, targets=("q_proj",)), "", tensors)
        with pytest.raises(ModelFileError, match="does not fit the base model"):
            AdapterRegistry(weights).load("one", adapter)


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=NOT_COMPILED)])
@pytest.mark.parametrize(
    "own", [CONVOLVING, FORGETTING, SCANNING], ids=["convolutions", "delta-nets", "scans"]
)
def test_an_adapter_beside_such_layers_changes_what_it_says(
    own: Architecture, backend: str
) -> None:
    """Attention where a layer attends, feed-forwards everywhere; as if it were merged."""
    weights, generator = weights_of(own), torch.Generator().manual_seed(3)
    modules = AdapterShape(rank=2, upper_layers=own.num_layers).modules(own)
    assert sum("self_attn" in module for module in modules) == 4 * own.attending
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
    # as far off as scans are without an adapter, whose steps are exponentials of rounded rows
    assert (found - wanted).abs().max() < 1e-1 * wanted.std()
    assert (found - Oracle(weights).logits(list(PROMPT))).abs().max() > 0.5 * wanted.std()
    with pytest.raises(ValueError, match="upper 1 layers have none of q_proj"):
        AdapterShape(rank=2, upper_layers=1, targets=("q_proj",)).modules(CONVOLVING)


@pytest.mark.parametrize(
    "own", [CONVOLVING, FORGETTING, SCANNING], ids=["convolutions", "delta-nets", "scans"]
)
@torch.inference_mode()
def test_packed_examples_remember_each_by_itself_behind_what_they_share(own: Architecture) -> None:
    network = Transformer(weights_of(own), dense_linear(torch.float32))
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
        both = torch.cat([found[:20], found[start : start + len(text) - 20]])
        start += len(text) - 20
        torch.testing.assert_close(both, alone, atol=1e-4, rtol=1e-4)


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
