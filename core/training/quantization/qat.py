"""Training a quantised model on what its unquantised self says: weights that are rounded on the way
forward, norms alone, or an adapter beside what is rounded already.

Knows fake-quantised matrices, their gradients and an optimizer. Knows nothing of files or of how
the first rounding was found.
Always: the forward pass computes with exactly what the blocks will hold; the targets are the
unquantised model's own likelihoods and no text's, so that a model comes nearer to itself and not to
the text; what comes out is the best state on a part of the text that no step saw, and the start is
one of those states, so that training makes nothing worse there. Embedding and head stay as they
are.

Source: Bengio et al. 2013 for gradients straight through the rounding, Esser et al. 2020 (LSQ) for
those of the steps, Liu et al. 2023 (LLM-QAT) for the model as its own teacher, Li et al. 2023
(LoftQ) for the adapter's start.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from ... import log
from ...errors import DataError, ModelError, TrainingError
from ...models.attention import packed_attention
from ...models.lora.adapter import Adapter
from ...models.lora.layout import AdapterShape, a_name, b_name
from ...models.quant.grid import GRIDS, GridType, as_half, bytes_of, nearest
from ...models.quant.tensor import QuantTensor, plain
from ...models.quantization.quantizer import CHECKPOINT
from ...models.transformer import RMSNorm, Transformer
from ...models.weights import Weights
from ...paths import write_atomically
from ..frozen_layers import dense_linear
from ..precision import resolve_dtype

logger = log.get("training")

Mode = Literal["full", "norms", "adapters"]
MODES: tuple[Mode, ...] = ("full", "norms", "adapters")
CHUNK_ROWS = 256  # rows whose logits are held at a time
INSIDE = 0.49  # of a step: how far a weight may start from the point that it is rounded to
BEST = "best."  # before the names of the best state's tensors in it
KEEP_EVERY = 20  # steps
JUDGE_EVERY = 5  # steps
PATIENCE = 3  # judgements without a better one, after which it ends
HELD_OUT, HELD_OUT_MOST = 0.125, 4  # of the texts, and how many of them
WARM_UP = 0.1  # of all steps
CLIP = 1.0  # norm of all gradients together


@dataclass(frozen=True, slots=True, kw_only=True)
class QatSettings:
    """How it is trained."""

    mode: Mode = "full"
    steps: int = 60
    windows: int = 2  # pieces of text of one step
    lr: float = 0.0  # of the mode's main numbers; 0: its own
    rank: int = 16  # of an adapter
    precision: str = "auto"
    seed: int = 1

    def __post_init__(self) -> None:
        sound = self.steps >= 1 and self.windows >= 1 and self.rank >= 1
        if self.mode not in MODES or not sound or not 0 <= self.lr < 1:
            raise ValueError(
                f"mode {self.mode}, steps {self.steps}, windows {self.windows}, rank {self.rank}, "
                f"lr {self.lr}: out of range"
            )

    @property
    def rate(self) -> float:
        """Of the optimizer."""
        return self.lr or {"full": 1e-5, "norms": 3e-4, "adapters": 1e-4}[self.mode]


@dataclass(frozen=True, slots=True)
class QatResult:
    """What a training gave."""

    weights: Weights  # blocks of the same types, ready for a file
    adapter: Mapping[str, Tensor]  # A and B of mode "adapters", by PEFT's names
    # by step, 0 the start: nats a token from the unquantised model on what was held out
    judged: Mapping[int, float]
    steps: int  # that were taken
    ended: str  # why before all were; "" if all were

    @property
    def kept(self) -> int:
        """The step whose state this is, the first of the best."""
        return min(self.judged, key=lambda step: self.judged[step])

    @property
    def distance(self) -> tuple[float, float]:
        """Held out: of the start, of what is kept."""
        return self.judged[0], self.judged[self.kept]


class FakeQuant(torch.autograd.Function):
    """Weights as the nearest points of their grids; the gradient of a weight passes through where
    its grid reaches, that of a step follows from what was rounded away.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, offset: Tensor, kind: GridType) -> Tensor:
        """weight [m, group], step and offset [m, 1] -> [m, group]."""
        ctx.save_for_backward(weight, step, offset)
        ctx.kind = kind
        return nearest(weight, step, offset, kind).mul_(step).sub_(offset)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Esser et al. 2020, equation 3."""
        (grad,), (weight, step, offset) = outer, ctx.saved_tensors
        kind: GridType = ctx.kind
        place = (weight + offset) * torch.where(step == 0, 0, 1 / step)
        inside = (place >= kind.lowest - 0.5) & (place <= kind.highest + 0.5)
        through = grad * inside
        if not ctx.needs_input_grad[1]:
            return through, None, None, None
        q = place.round().clamp_(kind.lowest, kind.highest)
        own = (grad * q).sub_(through * place).sum(1, keepdim=True)
        return through, own, None, None


class FakeQuantLinear(nn.Module):
    """x Q(W)^T, with W trained and, where a block has one step as float16, the steps too."""

    def __init__(self, blocks: QuantTensor, original: Tensor) -> None:
        super().__init__()
        self.kind, self.shape = GRIDS[blocks.quant_type], blocks.shape
        size = blocks.raw.shape[1] * self.kind.columns // self.shape[1]
        self.grid = self.kind.read(blocks.raw.reshape(-1, size))
        step, offset = self.grid.step.reshape(-1, 1), self.grid.offset.reshape(-1, 1)
        held = blocks.dequantize().view(-1, self.kind.group)
        # It starts at the original weight, as near as it can be and still be rounded as it was.
        beyond = (original.view(-1, self.kind.group) - held).clamp_(
            -INSIDE * step.abs(), INSIDE * step.abs()
        )
        self.weight = nn.Parameter(held + beyond)
        self.step, self.offset = step.clone(), offset.clone()
        one_step = len(self.grid.head) == 1
        self.gain = nn.Parameter(torch.zeros_like(step), requires_grad=one_step)

    def steps(self) -> Tensor:
        """[m, 1], as float16 will hold them, gradients straight through."""
        if not self.gain.requires_grad:
            return self.step
        exact = self.step * (1 + self.gain)
        return exact + (as_half(exact.detach()).float() - exact.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[N, columns] -> [N, rows]."""
        weight: Tensor = FakeQuant.apply(self.weight, self.steps(), self.offset, self.kind)  # type: ignore[no-untyped-call]
        return functional.linear(x, weight.view(self.shape))

    @torch.no_grad()
    def blocks(self) -> QuantTensor:
        """What it computes with, as bytes."""
        columns, grid = self.kind.columns, self.grid
        if self.gain.requires_grad:
            step = as_half(self.steps())
            grid = replace(grid, step=step.float(), head=(bytes_of(step),))
        weights = self.weight.detach().view(-1, columns)
        raw = self.kind.packed(grid, grid.integers(weights, self.kind))
        return QuantTensor(self.kind.name, self.shape, raw.view(self.shape[0], -1))


class ErrorAdapter(nn.Module):
    """x (Q(W) + B A)^T: what is rounded stays, A and B are trained."""

    def __init__(self, held: Tensor, original: Tensor, rank: int) -> None:
        super().__init__()
        self.weight = held
        a, b = error_factors(original - held, rank)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        """[N, columns] -> [N, rows]."""
        low = functional.linear(x, self.a)
        return functional.linear(x, self.weight) + functional.linear(low, self.b)


def error_factors(error: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [rank, columns] and B [rows, rank] whose product is nearest to the error of rounding
    [rows, columns].

    Source: Li et al. 2023 (LoftQ), algorithm 1, whose rounding is done already; singular vectors by
    Halko et al. 2011.
    """
    rank = min(rank, *error.shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the sketch is the same for the same error
        u, s, v = torch.svd_lowrank(error, q=min(rank + 8, *error.shape), niter=4)
    root = s[:rank].sqrt()
    return (v[:, :rank] * root).T.contiguous(), (u[:, :rank] * root).contiguous()


class TeacherDistance(torch.autograd.Function):
    """Mean over rows of the Kullback-Leibler divergence of the student's likelihoods from the
    teacher's, over the whole vocabulary, a chunk of rows at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, head: Tensor, taught: Tensor, teacher_head: Tensor
    ) -> Tensor:
        """rows and taught [N, D], heads [V, D] -> float32 scalar."""
        gradient, total = torch.empty_like(rows), torch.zeros(())
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            own = (rows[part].to(head.dtype) @ head.T).float().log_softmax(1)
            wanted = (taught[part] @ teacher_head.T).float().log_softmax(1)
            likely = wanted.exp()
            total += (likely * (wanted - own)).sum()
            if ctx.needs_input_grad[0]:
                gradient[part] = (own.exp_() - likely).to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        ctx.count = len(rows)
        return total / len(rows)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        """What forward made."""
        (gradient,) = ctx.saved_tensors
        return gradient * (outer[0] / ctx.count), None, None, None


class QuantizedStudent:
    """The quantised network with its trained parts."""

    def __init__(self, quantised: Weights, original: Weights, settings: QatSettings) -> None:
        names = {
            id(blocks): name
            for name, blocks in quantised.tensors.items()
            if name.startswith("model.layers.") and blocks.quant_type in GRIDS
        }
        self.quantised, self.mode = quantised, settings.mode

        def make(blocks: QuantTensor) -> nn.Module:
            name = names.get(id(blocks))
            if name is None or settings.mode == "norms":
                return dense_linear(torch.float32)(blocks)
            first = original.tensors[name].dequantize()
            if settings.mode == "adapters":
                return ErrorAdapter(blocks.dequantize(), first, settings.rank)
            return FakeQuantLinear(blocks, first)

        self.network = Transformer(quantised, make)
        self.norms = {
            f"{name}.weight": module
            for name, module in self.network.named_modules()
            if isinstance(module, RMSNorm)
        }
        if settings.mode != "adapters":
            for norm in self.norms.values():
                norm.weight.requires_grad_()
        self.parameters = {
            name: one for name, one in self.network.named_parameters() if one.requires_grad
        }

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Parameters with their rates: norms and steps are few, and move further."""
        few = [one for name, one in self.parameters.items() if name.endswith(".gain")]
        norms = {id(norm.weight) for norm in self.norms.values()}
        gains = [one for one in self.parameters.values() if id(one) in norms]
        own = {id(one) for one in (*few, *gains)}
        rest = [one for one in self.parameters.values() if id(one) not in own]
        further = 3 * rate if self.mode == "full" else rate
        found = [(rest, rate), (few, further), (gains, further)]
        return [{"params": params, "lr": own_rate} for params, own_rate in found if params]

    def changed(self) -> dict[str, QuantTensor]:
        """What training changes of the quantised model's tensors, in the same types."""
        if self.mode == "adapters":
            return {}
        found = {
            name: plain(norm.weight.detach()[None].float().clone())
            for name, norm in self.norms.items()
            if name in self.quantised.tensors
        }
        return found | {
            f"{name}.weight": module.blocks()
            for name, module in self.network.named_modules()
            if isinstance(module, FakeQuantLinear)
        }

    def adapter(self) -> dict[str, Tensor]:
        """A and B of mode "adapters", by PEFT's names; scaled by 1."""
        return {
            called: tensor.detach().clone()
            for name, module in self.network.named_modules()
            if isinstance(module, ErrorAdapter)
            for called, tensor in ((a_name(name), module.a), (b_name(name), module.b))
        }


def train(
    quantised: Weights,
    original: Weights,
    texts: Sequence[Sequence[int]],
    settings: QatSettings,
    *,
    folder: Path | None = None,
    on_step: Callable[[int, int, float], None] = lambda step, steps, distance: None,
) -> QatResult:
    """Bring the quantised model nearer to the original, and end when it no longer comes nearer.

    Args:
        quantised: what rounding made of `original`.
        texts: tokens, each at most the context long; batches are drawn of all but those by which
            states are judged.
        folder: where the state is kept now and then; a run that was killed goes on from there.
        on_step: hears number, count and nats a token from the original.

    Raises:
        DataError: too little text. TrainingError: a start that is no finite number of nats away.
        ModelError: a model whose logits are capped or added to, which this does not follow.
    """
    if original.architecture.logit_softcap or original.architecture.head_bias:
        raise ModelError(
            f"this {original.architecture.family} model caps its logits or adds to them, and "
            f"training does not follow that; quantise it without --qat"
        )
    taught, apart = held_out(texts)
    student, teacher = (
        QuantizedStudent(quantised, original, settings),
        OriginalTeacher(original, settings),
    )
    optimizer = torch.optim.AdamW(
        student.groups(settings.rate), weight_decay=0.0, betas=(0.9, 0.95), fused=True
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    done, best = restore(student, settings, folder) or (0, BestState())
    if not done:
        best.judge(0, student, teacher, apart)
        if not math.isfinite(best.judged[0]):
            raise TrainingError(
                f"the quantised model's distance from its original is {best.judged[0]}, not "
                f"finite, before any step; look at both models"
            )
    ended = ""
    for step, batch in batches(taught, settings):
        if step < done:
            continue
        if best.stale:
            ended = "it no longer fell"
            break
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, settings.steps)
        distance = teacher.distance(student, batch)
        optimizer.zero_grad()
        distance.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(student.parameters.values(), CLIP)
        if not bool(torch.isfinite(distance.detach() + norm)):
            ended = "a gradient was not finite"
            break
        optimizer.step()
        done = step + 1
        on_step(done, settings.steps, float(distance.detach()))
        if done % JUDGE_EVERY == 0 or done == settings.steps:
            best.judge(done, student, teacher, apart)
        if folder is not None and done % KEEP_EVERY == 0:
            keep(student, best, settings, folder, done)
    tensors = {**quantised.tensors, **best.changed}
    return QatResult(replace(quantised, tensors=tensors), best.adapter, best.judged, done, ended)


def held_out(texts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Texts to train on, and those that states are judged by: some of them, evenly far from each
    other, of one text its end.

    Raises:
        DataError: too little for both.
    """
    texts = [text for text in texts if len(text) > 1]
    if not texts or (len(texts) == 1 and len(texts[0]) < 4):
        raise DataError(
            "there are no two texts of two tokens, to train on and to judge by; give a longer one"
        )
    if len(texts) == 1:
        cut = len(texts[0]) - max(2, int(HELD_OUT * len(texts[0])))
        return [texts[0][:cut]], [texts[0][cut:]]
    count = min(HELD_OUT_MOST, max(1, int(HELD_OUT * len(texts))))
    apart = {(2 * place + 1) * len(texts) // (2 * count) for place in range(count)}
    taught = [text for place, text in enumerate(texts) if place not in apart]
    return taught, [texts[place] for place in sorted(apart)]


@dataclass(slots=True)
class BestState:
    """The state that came nearest to the original on what was held out, and how near each came."""

    judged: dict[int, float] = field(default_factory=dict)  # nats a token, by step
    changed: dict[str, QuantTensor] = field(default_factory=dict)
    adapter: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def judge(
        self,
        step: int,
        student: QuantizedStudent,
        teacher: "OriginalTeacher",
        apart: Sequence[Sequence[int]],
    ) -> None:
        """Measure the student as it is after so many steps, and keep it if none was better."""
        total = sum(len(text) * float(teacher.distance(student, [text])) for text in apart)
        found = total / sum(map(len, apart))
        if all(found < other for other in self.judged.values()):
            self.changed = student.changed() if step else {}  # of the start, as it was given
            self.adapter = student.adapter()
        self.judged[step] = found if math.isfinite(found) else math.inf

    @property
    def stale(self) -> bool:
        """Whether so many states in a row were no better that no better one is waited for."""
        found = [*self.judged.values()]
        return len(found) - found.index(min(found)) > PATIENCE


class OriginalTeacher:
    """The unquantised model, and how far from it another one is."""

    def __init__(self, original: Weights, settings: QatSettings) -> None:
        self.dtype = resolve_dtype(settings.precision)
        self.network = Transformer(original, dense_linear(self.dtype), dtype=self.dtype)
        self.windows, self.scale = original.architecture.windows, original.architecture.logit_scale
        self.head = head_of(self.network)
        self.student_head: Tensor | None = None

    def distance(self, student: QuantizedStudent, batch: Sequence[Sequence[int]]) -> Tensor:
        """Nats a token, with the student's gradient."""
        tokens = torch.tensor([token for text in batch for token in text])
        lengths = [len(text) for text in batch]
        with torch.no_grad():
            taught = self.rows(self.network, tokens, lengths)
        if self.student_head is None:
            self.student_head = head_of(student.network).to(self.dtype)
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            rows = self.rows(student.network, tokens, lengths)
        found: Tensor = TeacherDistance.apply(  # type: ignore[no-untyped-call]
            rows.float(), self.student_head, taught.to(self.dtype), self.head
        )
        return found

    def rows(self, network: Transformer, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Normed rows [N, D], ready for the head."""
        positions = torch.cat([torch.arange(length) for length in lengths])
        attend = packed_attention(lengths, self.windows)
        out: Tensor = network.model.norm(
            network.layers_forward(network.embed(tokens), positions, attend)
        )
        return out if self.scale == 1.0 else out * self.scale


def head_of(network: Transformer) -> Tensor:
    """Its vocabulary head, [V, D]."""
    weight = getattr(network.lm_head, "weight", None)
    if not isinstance(weight, Tensor):
        raise RuntimeError("a network without a head")  # our bug
    return weight.detach()


def batches(
    texts: Sequence[Sequence[int]], settings: QatSettings
) -> Iterator[tuple[int, list[Sequence[int]]]]:
    """Number and texts of each step; the same seed draws the same."""
    draws = np.random.default_rng([settings.seed])
    order: list[int] = []
    for step in range(settings.steps):
        while len(order) < settings.windows:
            order += draws.permutation(len(texts)).tolist()
        yield step, [texts[index] for index in order[: settings.windows]]
        del order[: settings.windows]


def schedule(step: int, steps: int) -> float:
    """Of the rate: up within the first steps, then down along half a cosine to a tenth."""
    rise = max(1, int(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def keep(
    student: QuantizedStudent, best: BestState, settings: QatSettings, folder: Path, step: int
) -> None:
    """The state and the best one on disk; the optimizer starts afresh from it."""
    said = {"step": step, "settings": repr(settings), "judged": [*best.judged.items()]}
    # the file's own format has no sum of what it holds
    tensors = {name: one.detach().contiguous() for name, one in student.parameters.items()}
    tensors |= {f"{BEST}{name}": one.contiguous() for name, one in best.adapter.items()}
    tensors |= {f"{BEST}{name}": torch.as_tensor(one.raw) for name, one in best.changed.items()}
    # one key: the library's order of several is random
    said["digest"] = digest_of(said, tensors)
    header = {"qat": json.dumps(said, sort_keys=True)}
    write_atomically(folder / CHECKPOINT, safetensors.torch.save(tensors, metadata=header))


def digest_of(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a state: what is said of it, and every tensor by its name."""
    whole = hashlib.sha256(json.dumps({**said}, sort_keys=True).encode())
    for name in sorted(tensors):
        own = tensors[name].contiguous()
        whole.update(f"{name} {own.dtype} {[*own.shape]}".encode())
        whole.update(own.view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


@torch.no_grad()
def restore(
    student: QuantizedStudent, settings: QatSettings, folder: Path | None
) -> tuple[int, BestState] | None:
    """Take over what an earlier run of the same settings kept, if it is as it was written; how many
    steps that had done, and its best state.
    """
    path = folder / CHECKPOINT if folder is not None else None
    if path is None or not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {})["qat"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        held = {name for name in tensors if name.startswith(BEST)}
        if said["settings"] != repr(settings) or {*tensors} - held != {*student.parameters}:
            return None
        if said.pop("digest") != digest_of(said, tensors):
            raise ValueError("its digest is another")
        best = BestState({int(step): float(nats) for step, nats in said["judged"]})
        for name in held:
            own, tensor = name.removeprefix(BEST), tensors[name]
            if (blocks := student.quantised.tensors.get(own)) is None:
                best.adapter[own] = tensor
                continue
            kind = "F32" if own in student.norms else blocks.quant_type
            best.changed[own] = QuantTensor(kind, blocks.shape, tensor)
        for name, one in student.parameters.items():
            one.copy_(tensors[name])
        return int(said["step"]), best
    except (
        OSError, ValueError, RecursionError, KeyError, TypeError, RuntimeError,
        safetensors.SafetensorError,
    ) as error:  # fmt: skip
        logger.warning("%s: not as it was written (%.100s); training begins anew", path, error)
        return None


def save_adapter(result: QatResult, rank: int, base_digest: str, folder: Path) -> None:
    """The adapter of mode "adapters" as PEFT's files, for the base with this digest.

    Raises:
        QuietchoirError: no space or no permission.
    """
    targets = dict.fromkeys(name.split(".")[4] for name in result.adapter)
    layers = len({name.split(".")[2] for name in result.adapter})
    shape = AdapterShape(
        rank=rank, alpha=float(rank), upper_layers=layers, targets=tuple(targets), seed=0
    )
    Adapter(shape, base_digest, dict(result.adapter)).save(folder)
