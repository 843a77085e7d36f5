"""Facts about training, on a random network of four layers; transformers and peft are the
oracle.
"""

import itertools
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quietchoir.core.errors import ConfigError, DataError, TrainingError
from quietchoir.core.models.attention import SOFTMAX_ALONE, masked_attention
from quietchoir.core.models.lora.adapter import AdapterShape, frozen_a
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.core.training import frozen_layers, loss, packing, precision
from quietchoir.core.training.frozen_layers import dense_linear
from quietchoir.core.training.lora_layers import LoraProduct
from quietchoir.core.training.loss import (
    ArgmaxCheck,
    VocabularyHead,
    answer_loss,
    best_tokens,
    grads_in_place,
    logits_room,
)
from quietchoir.core.training.packing import shared_start, tokenize
from quietchoir.core.training.trainer import Hyperparameters, StepInfo, Trainer
from quietchoir.tests.fakes.training import TINY, blocks, chatter, conversation, tiny_pair

SHAPE = AdapterShape(rank=4, alpha=8.0, upper_layers=2, seed=7)


@pytest.fixture(scope="module")
def pair() -> tuple[Weights, Any]:
    return tiny_pair()


@pytest.fixture
def trainer(pair: tuple[Weights, Any]) -> Trainer:
    return Trainer(pair[0], SHAPE, precision="float32")


def some_b(trainer: Trainer, scale: float = 0.1) -> Tensor:
    return torch.randn(trainer.size, generator=torch.Generator().manual_seed(3)) * scale


def plain_peft(model: Any, trainer: Trainer, flat_b: Tensor) -> dict[str, Tensor]:
    """Give transformers' model peft's LoRA with our A and B; returns its B parameters under our
    names.
    """
    config = peft.LoraConfig(
        r=SHAPE.rank,
        lora_alpha=8,
        target_modules=list(SHAPE.targets),
        layers_to_transform=[2, 3],
        layers_pattern="layers",
    )
    peft.inject_adapter_in_model(config, model)
    named = {
        name.replace(".default", ""): parameter for name, parameter in model.named_parameters()
    }
    b = trainer.upper.layout.unflatten(flat_b)
    with torch.no_grad():
        for name, tensor in {**frozen_a(SHAPE, TINY), **b}.items():
            named[name].copy_(tensor)
    return {name: named[name] for name in b}


def test_the_gradient_is_that_of_transformers_with_peft() -> None:
    weights, model = tiny_pair()
    trainer = Trainer(weights, SHAPE, precision="float32")
    examples, flat_b = chatter(7), some_b(trainer)
    trainer.upper.set(flat_b)
    loss, count = trainer.step(trainer.prepare(examples), range(7))

    theirs = plain_peft(model, trainer, flat_b)
    total = torch.zeros(())
    for example in tokenize(examples, weights.tokenizer, longest=TINY.context_length):
        tokens = torch.tensor([[*example.prompt, *example.answer]])
        labels = tokens.clone()
        labels[0, : len(example.prompt)] = -100
        total = total + model(input_ids=tokens, labels=labels).loss * len(example.answer)
    (total / count).backward()
    grads = trainer.upper.layout.flatten(
        {name: torch.as_tensor(b.grad) for name, b in theirs.items()}
    )
    assert loss == pytest.approx(float(total.detach()) / count, rel=1e-5)
    assert float(grads.norm()) > 0.1
    torch.testing.assert_close(trainer.upper.grad, grads, rtol=1e-4, atol=1e-5)


def test_only_b_is_trained(trainer: Trainer) -> None:
    trained = {
        name
        for name, parameter in trainer.upper.model.named_parameters()
        if parameter.requires_grad
    }
    assert len(trained) == 2 * 7
    assert all("lora_B" in name for name in trained)


def test_cached_prefix_rows_are_those_of_an_uncached_forward(
    pair: tuple[Weights, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, _ = pair
    monkeypatch.setattr(frozen_layers, "CHUNK_ROWS", 60)  # several chunks
    prepared = frozen_layers.prepare(chatter(9), weights, layers=2, dtype=torch.float32)
    lower = Transformer(weights, dense_linear(torch.float32), last_layer=2)
    assert prepared.shared > 5
    for index, example in enumerate(prepared.examples):
        alone = packing.plan([example], 0)
        expected = lower.layers_forward(
            lower.embed(packing.input_tokens([example], 0)), alone.positions, alone
        )
        cached, batch = prepared.batch([index])
        assert torch.equal(batch.positions, alone.positions)
        own = slice(0, example.rows)  # what is behind them, nobody reads
        torch.testing.assert_close(cached[own], expected[own], rtol=1e-4, atol=1e-5)


def test_a_batch_answers_as_each_example_alone_with_the_whole_last_layer(trainer: Trainer) -> None:
    prepared = trainer.prepare(chatter(6))
    trainer.upper.set(some_b(trainer))
    x, batch = prepared.batch(range(6))
    together = trainer.upper.answers(x, batch)
    apart = []
    for index in range(6):
        x, alone = prepared.batch([index])
        whole = trainer.upper.model.layers_forward(x, alone.positions, alone)
        rows = alone.answer_rows[: len(alone.targets)]
        apart.append(trainer.upper.model.model.norm(whole)[rows])
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


def test_both_ways_to_attend_agree_and_so_do_their_gradients() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(3, heads, 11, 8, generator=draw, requires_grad=True) for heads in (4, 2, 2)
    )
    results = []
    for out in (packing.plain_attention(q, k, v), masked_attention(q, k, v, None, SOFTMAX_ALONE)):
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)


def test_the_loss_is_cross_entropy_and_its_gradient_too() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(150, 16, generator=draw, requires_grad=True)
    weight, targets = (
        torch.randn(301, 16, generator=draw),
        torch.randint(301, (150,), generator=draw),
    )
    loss = answer_loss(hidden, weight, targets)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(
        *(torch.autograd.grad(3 * value, hidden) for value in (loss, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sure", [0.1, 1.0, 4.0, 20.0])
def test_gradients_in_bfloat16_are_as_near_as_bfloat16_is(sure: float) -> None:
    """Also where a model is nearly sure, and all of a target's slope is 1 - softmax."""
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(301, (90,), generator=draw)
    logits = torch.randn(90, 301, generator=draw)
    logits[torch.arange(90), targets] += sure
    rounded = logits.bfloat16()
    exact = rounded.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, targets, reduction="sum")
    expected.backward()
    loss, missed = grads_in_place(rounded, targets[:, None])
    assert exact.grad is not None
    torch.testing.assert_close(rounded.double(), exact.grad, rtol=2**-7, atol=1e-14)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2**-7, atol=1e-14)
    lacking = -exact.grad[torch.arange(90), targets]
    torch.testing.assert_close(missed.double(), lacking, rtol=2**-7, atol=1e-14)


def test_many_losses_in_one_room_are_those_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(301, 16, generator=draw)
    monkeypatch.setattr("quietchoir.core.training.loss.MATRIX_ROWS", 32)
    room = logits_room(weight).fill_(torch.nan)
    for count in (70, 5):
        hidden = torch.randn(count, 16, generator=draw, requires_grad=True)
        targets = torch.randint(301, (count,), generator=draw)
        pair = [answer_loss(hidden, weight, targets, given) for given in (room, None)]
        assert torch.equal(*pair)
        assert torch.equal(*(torch.autograd.grad(loss, hidden)[0] for loss in pair))


def likely_tokens(spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [60, 32] near a few of 400 tokens' weights, those weights and the tokens; the larger
    `spread`, the more all others are likely too.
    """
    draw = torch.Generator().manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(400, 32, generator=draw))
    targets = torch.randint(20, (60,), generator=draw)
    rivals = weight[torch.randint(20, 40, (60,), generator=draw)]
    return (20 / spread) * (weight[targets] + rivals), weight, targets


def test_losses_over_the_likely_tokens_alone_are_nearly_those_over_all() -> None:
    hidden, weight, targets = likely_tokens(spread=1.0)
    hidden.requires_grad_()
    head = VocabularyHead(weight, targets)
    whole = head.loss(hidden, targets)
    assert torch.equal(whole, answer_loss(hidden, weight, targets))
    assert len(targets.unique()) <= len(head.part) < len(weight) / 2
    (exact,) = torch.autograd.grad(whole, hidden)
    for _ in range(loss.NARROW_LOSSES):
        narrow = head.loss(hidden, targets)
        (near,) = torch.autograd.grad(narrow, hidden)
        # what is left out is no row's loss, and of each row's gradient at most its likelihood
        assert 0 < float((whole - narrow).detach()) < 2 * loss.OUTSIDE * len(hidden)
        assert float((near - exact).norm(dim=1).sum()) < 3 * loss.OUTSIDE * len(hidden)
    assert not head.left  # the next one asks all tokens again


def test_a_token_that_gains_is_found_by_the_next_whole_loss() -> None:
    hidden, weight, targets = likely_tokens(spread=1.0)
    head = VocabularyHead(weight, targets)
    head.loss(hidden, targets)
    gaining = weight[(hidden @ weight.T).amax(dim=0).argmin()]
    drifted = hidden + 60 * gaining
    for _ in range(loss.NARROW_LOSSES):
        assert not bool((head.part == gaining).all(dim=1).any())
        blind = head.loss(drifted, targets)
    seen = head.loss(drifted, targets)
    assert float(seen) > 2 * float(blind)
    assert bool((head.part == gaining).all(dim=1).any())
    torch.testing.assert_close(head.loss(drifted, targets), seen, rtol=2**-7, atol=0.1)


def test_where_every_token_is_likely_every_loss_asks_all() -> None:
    hidden, weight, targets = likely_tokens(spread=20.0)
    head = VocabularyHead(weight, targets)
    for _ in range(3):
        assert torch.equal(head.loss(hidden, targets), answer_loss(hidden, weight, targets))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_targets_that_are_sure_teach_nothing_and_all_others_what_they_would(share: float) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(301, 64, generator=draw))
    targets = torch.randint(301, (90,), generator=draw)
    sure = torch.arange(90) < share * 90
    hidden = torch.where(sure[:, None], 60.0, 4.0) * weight[targets]
    hidden.requires_grad_()
    each = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    assert torch.equal(each < loss.SURE, sure)
    found = answer_loss(hidden, weight, targets)
    torch.testing.assert_close(found, each.sum())  # told whole
    (ours,) = torch.autograd.grad(found, hidden)
    picked = share > 1 - loss.DENSE  # where they are few they go along
    (theirs,) = torch.autograd.grad((each[~sure] if picked else each).sum(), hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not picked or not ours[sure].any()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.6, 1.0])
def test_rows_without_a_gradient_are_left_out_on_the_way_back(share: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight, a, b, grad = (
        torch.randn(*shape, generator=draw)
        for shape in ((40, 12), (20, 12), (3, 12), (20, 3), (40, 20))
    )
    x.requires_grad_(), b.requires_grad_()
    grad[torch.arange(40) < share * 40] = 0
    ours = torch.autograd.grad(LoraProduct.apply(x, weight, a, b, 2.0), (x, b), grad)
    theirs = torch.autograd.grad(x @ weight.T + 2.0 * (x @ a.T) @ b.T, (x, b), grad)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_the_best_token_is_found_across_pieces_of_the_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quietchoir.core.training.loss.CHUNK_TOKENS", 10)
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 8, generator=draw), torch.randn(33, 8, generator=draw)
    weight[32] = weight[3]  # an exact tie is the first one's
    assert torch.equal(best_tokens(hidden, blocks(weight)), (hidden @ weight.T).argmax(1))


@pytest.mark.parametrize("closeness", [1.0, 1e-2, 1e-3, 0.0])
def test_rounded_logits_never_decide_what_their_rounding_could_turn(
    closeness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rivals of every target stand closer and closer to it, at last as exact ties."""
    monkeypatch.setattr("quietchoir.core.training.loss.MATRIX_ROWS", 64)
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 64, generator=draw)
    weight[100:200] = weight[:100] + closeness * torch.randn(100, 64, generator=draw)
    weight[200:] = weight[:100] + closeness * torch.randn(100, 64, generator=draw)
    targets = torch.randint(300, (150,), generator=draw)
    rows = (weight[targets] + 0.3 * torch.randn(150, 64, generator=draw)).bfloat16()
    expected = best_tokens(rows, blocks(weight)) == targets
    assert torch.equal(ArgmaxCheck(blocks(weight), weight.bfloat16())(rows, targets), expected)
    assert 0 < int(expected.sum()) < len(targets) or closeness == 1.0
    if 0 < closeness < 0.1:  # the rounded head alone is often wrong
        rounded = (rows @ weight.bfloat16().T).argmax(dim=1) == targets
        assert not torch.equal(rounded, expected)


def test_a_row_that_is_not_a_number_has_no_best_token() -> None:
    rows = torch.full((3, 8), torch.nan, dtype=torch.bfloat16)
    weight, targets = torch.ones(20, 8), torch.tensor([0, 1, 2])
    assert not ArgmaxCheck(blocks(weight), weight.bfloat16())(rows, targets).any()


def test_training_follows_from_the_seed_bit_for_bit(trainer: Trainer) -> None:
    prepared, start = trainer.prepare(chatter(10)), some_b(trainer, 0.01)
    recipe = Hyperparameters(batch=4, epochs=2)
    first, again, other = (trainer.train(start, prepared, recipe, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.flat_b, again.flat_b)
    assert first.loss == again.loss
    assert not torch.equal(first.flat_b, other.flat_b)
    assert torch.equal(start, some_b(trainer, 0.01))  # what was given is unchanged


def test_training_learns_and_evaluation_counts_it(trainer: Trainer) -> None:
    prepared = trainer.prepare(chatter(8))
    zero = torch.zeros(trainer.size)
    steps: list[StepInfo] = []
    result = trainer.train(
        zero, prepared, Hyperparameters(lr=3e-2, batch=4, epochs=40), seed=0, on_step=steps.append
    )
    assert [info.step for info in steps] == list(range(1, 81))
    assert {info.steps for info in steps} == {80}
    assert steps[-1].loss < 0.2 * steps[0].loss
    assert result.examples == 8 * 40
    assert result.tokens == prepared.answer_tokens * 40
    assert result.precision == "float32"
    before, after = trainer.evaluate(zero, prepared), trainer.evaluate(result.flat_b, prepared)
    assert before.correct == 0
    assert after.correct >= 6
    assert after.total == 8
    assert (before + after).total == 16


def test_in_bfloat16_training_learns_too(pair: tuple[Weights, Any]) -> None:
    trainer = Trainer(pair[0], SHAPE, precision="bfloat16")
    prepared, losses = trainer.prepare(chatter(8)), []
    result = trainer.train(
        torch.zeros(trainer.size),
        prepared,
        Hyperparameters(batch=4, epochs=8),
        seed=0,
        on_step=lambda info: losses.append(info.loss),
    )
    assert losses[-1] < 0.8 * losses[0]
    assert result.precision == "bfloat16"
    assert result.flat_b.dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_ends_training_and_changes_nothing(
    trainer: Trainer, bad: float
) -> None:
    prepared, start = trainer.prepare(chatter(4)), some_b(trainer)
    start[5] = bad
    before = start.clone()
    with pytest.raises(TrainingError, match=r"step 1 of 1.*not finite; lower lr"):
        trainer.train(start, prepared, Hyperparameters(), seed=0)
    assert torch.equal(start.nan_to_num(), before.nan_to_num())
    assert (
        trainer.train(torch.zeros(trainer.size), prepared, Hyperparameters(), seed=0)
        .flat_b.isfinite()
        .all()
    )  # and it goes on


def test_a_flat_b_of_another_shape_is_refused(trainer: Trainer) -> None:
    prepared = trainer.prepare(chatter(2))
    with pytest.raises(ValueError, match="expected"):
        trainer.train(torch.zeros(trainer.size + 1), prepared, Hyperparameters(), seed=0)
    with pytest.raises(ValueError, match="expected"):
        trainer.evaluate(torch.zeros(3), prepared)


def test_the_flat_b_is_what_peft_s_layers_hold(trainer: Trainer) -> None:
    flat_b = some_b(trainer)
    trainer.upper.set(flat_b)
    held = {
        name.replace(".default", ""): parameter
        for name, parameter in trainer.upper.model.named_parameters()
        if "lora_B" in name
    }
    assert torch.equal(trainer.upper.layout.flatten(held), flat_b)


def test_a_common_start_is_computed_once_and_never_reaches_into_a_request(
    pair: tuple[Weights, Any],
) -> None:
    examples = tokenize(
        [conversation("same", "a"), conversation("same", "b")],
        pair[0].tokenizer,
        longest=TINY.context_length,
    )
    shared = shared_start(examples)
    # the row that predicts the answer's first token stays an own row
    assert shared == len(examples[0].prompt) - 1
    rows = shared + 2 * (examples[0].rows - shared)
    assert len(packing.input_tokens(examples, shared)) == packing.few_sizes(rows + 1)


def test_examples_without_a_common_start_train_as_well(trainer: Trainer) -> None:
    examples = [
        replace(one, messages=({"role": role, "content": one.request}, *one.messages[1:]))
        for one, role in zip(chatter(4), ("user", "tool", "system", "user"), strict=True)
    ]
    prepared = trainer.prepare(examples)
    assert prepared.shared <= 1
    assert (
        trainer.train(torch.zeros(trainer.size), prepared, Hyperparameters(), seed=0).tokens
        == prepared.answer_tokens
    )


def test_prepare_tells_its_progress_and_its_memory(trainer: Trainer) -> None:
    told: list[tuple[int, int]] = []
    prepared = trainer.prepare(chatter(3), on_progress=lambda done, all_: told.append((done, all_)))
    assert told == [(1, 2), (2, 2)]
    count = prepared.shared + sum(example.rows - prepared.shared for example in prepared.examples)
    assert prepared.memory_bytes == count * TINY.hidden_size * 4
    assert len(prepared) == 3


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda examples: [], "no examples"),
        (
            lambda examples: [*examples, conversation("x" * 300, "y")],
            r"example 4 has \d+ tokens, "
            r"the model takes 256",
        ),
    ],
)
def test_examples_that_do_not_fit_the_model_are_refused(
    trainer: Trainer, spoil: Callable[..., Any], fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        trainer.prepare(spoil(chatter(3)))


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"lr": float("nan")}, {"batch": 0}, {"epochs": 0}, {"weight_decay": -1.0}],
)
def test_a_recipe_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Hyperparameters(**wrong)


def test_precision_is_chosen_by_name_and_auto_is_one_that_works() -> None:
    assert precision.resolve_dtype("float32") is torch.float32
    assert precision.resolve_dtype("bfloat16") is torch.bfloat16
    assert precision.dtype_name(precision.resolve_dtype("auto")) in ("float32", "bfloat16")
    with pytest.raises(ConfigError, match="float16"):
        precision.resolve_dtype("float16")


def probe(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], off: float = 0.0
) -> precision.Probe:
    """A probe whose trials in bfloat16 take so long, in turn, times float32's, and are so far
    off."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    number = itertools.count()

    def trial(dtype: torch.dtype) -> tuple[Tensor, float]:
        rounded = dtype is torch.bfloat16
        return torch.ones(4) * (1 + off * rounded), seconds(next(number)) if rounded else 1.0

    monkeypatch.setattr(precision, "trial", trial)
    now = itertools.count(0.0, precision.AGAIN_S / 2 + 1)
    return precision.Probe(lambda: next(now))


def test_bfloat16_that_computes_nonsense_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    never = probe(monkeypatch, lambda number: 1.0, off=1.0)
    assert not never.answer() and never.until == float("inf")


def test_bfloat16_is_found_between_trials_that_others_slowed_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert probe(monkeypatch, lambda number: 1.0 if number == 20 else 44.0).answer()


def test_a_machine_that_was_too_slow_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [True]
    asked = probe(monkeypatch, lambda number: 44.0 if busy[0] else 1.0)
    assert not asked.answer()
    busy[0] = False
    found = [asked.answer() for _ in range(4)]
    assert not found[0] and found[-1] and asked.until == float("inf")


def test_the_trial_leaves_the_number_of_threads_alone() -> None:
    before = torch.get_num_threads()
    precision.compared()
    assert torch.get_num_threads() == before


class Shapes(TorchDispatchMode):
    """Notes the shapes of products in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.found = set[tuple[str, tuple[torch.Size, ...]]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in args if isinstance(one, Tensor)]
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_", "bmm") and given[0].dtype is torch.bfloat16:
            self.found.add((name, tuple(one.shape for one in given)))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for one another take longer than so small a network."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_texts_of_all_lengths_make_products_of_few_shapes_and_memory_does_not_grow() -> None:
    trainer = Trainer(tiny_pair()[0], SHAPE, precision="bfloat16")
    prepared = trainer.prepare(chatter(60))
    trainer.upper.set(torch.zeros(trainer.size))
    draw = torch.Generator().manual_seed(5)
    head = VocabularyHead(trainer.upper.head, prepared.targets)

    def steps(count: int) -> int:
        """So many steps, each of other texts; resident bytes after them."""
        for _ in range(count):
            size = int(torch.randint(6, 9, (), generator=draw))
            trainer.step(prepared, torch.randperm(60, generator=draw)[:size].tolist(), head)
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    with Shapes() as shapes:
        steps(100)
        first = len(shapes.found)
        steps(100)
    assert len(shapes.found) < 1.25 * first + 10  # without sizes every step brings its own
    if Path("/proc/self/statm").exists():
        before = steps(20)
        assert steps(180) - before < 20 << 20


def test_a_long_text_among_short_ones_gives_the_same_gradient_in_parts(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [*chatter(5), conversation("x" * 150, "y" * 40), *chatter(3, seed=1)]
    prepared = trainer.prepare(examples)
    found = {}
    for places in (packing.PLACES, 400):
        monkeypatch.setattr(packing.fitting, "__defaults__", (places,))
        trainer.upper.set(some_b(trainer))
        loss, count = trainer.step(prepared, range(9))
        found[places] = (loss, count, trainer.upper.grad.clone())
        hits = trainer.evaluate(torch.zeros(trainer.size), prepared)
        assert hits.total == 9
    (whole, many, gradient), (parts, as_many, other) = found.values()
    assert many == as_many and parts == pytest.approx(whole, rel=1e-4)
    torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-6)
    assert [len(one) for one in packing.fitting([10, 300, 10, 10], 400)] == [3, 1]
    assert packing.fitting([10, 5, 7], 400) == [[0, 1, 2]] and packing.fitting([999], 400) == [[0]]


def test_one_example_trains(trainer: Trainer) -> None:
    result = trainer.train(
        torch.zeros(trainer.size), trainer.prepare(chatter(1)), Hyperparameters(), seed=0
    )
    assert (result.examples, result.steps) == (1, 1) and result.flat_b.any()
