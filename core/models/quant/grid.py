"""Where the weights of a block may stand: the grid of each block type, found for numbers and packed
into bytes.

Knows the types that are written here: their groups, steps and bytes. Knows nothing of matrices,
files or why one weight matters more than another.
Always: a weight is step * q - offset, q a whole number from `lowest` to `highest`; what `pack`
writes `dequantize` reads back as exactly that, bit for bit, since steps and offsets are those that
the bytes hold.

Source: ggml's `ggml-common.h` for layouts. Steps are searched as ggml's `make_qx_quants` and
`make_qkx2_quants` do: some candidates, each followed by weighted least squares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .dequantize import half, scales_and_minima
from .types import GROUP, QUANT_TYPES, SUPER

TINY = 1e-30
# By how much the largest weight may lie beyond the last step, in steps: candidates of the search.
TRIES = tuple(0.1 * step for step in range(-9, 10))
AFFINE_TRIES = tuple(0.1 * step - 1.0 for step in range(0, 21, 2))
NO_SEARCH = (0.0,)
SIX_BITS = 63
MANY = 100  # steps on one side of 0


@dataclass(frozen=True, slots=True)
class Grid:
    """The grids of n blocks."""

    step: Tensor  # float32 [n, groups]
    offset: Tensor  # float32 [n, groups]
    head: tuple[Tensor, ...]  # what of the bytes says so, uint8 [n, some] each

    def integers(self, blocks: Tensor, kind: "GridType") -> Tensor:
        """The nearest q of each weight, float32 [n, columns]."""
        return nearest(blocks, self.wide(self.step, kind), self.wide(self.offset, kind), kind)

    def wide(self, numbers: Tensor, kind: "GridType") -> Tensor:
        """One number a group as one a weight, [n, columns]."""
        return numbers.repeat_interleave(kind.group, dim=1)


def nearest(weights: Tensor, step: Tensor, offset: Tensor, kind: "GridType") -> Tensor:
    """The q whose step * q - offset is nearest, float32, in the shape of all three."""
    inverse = torch.where(step == 0, 0, 1 / step)
    return ((weights + offset) * inverse).round_().clamp_(kind.lowest, kind.highest)


@dataclass(frozen=True, slots=True)
class GridType:
    """What one block type's grids look like."""

    name: str
    group: int  # weights under one step
    lowest: int
    highest: int
    # blocks [n, columns] and how much each weight matters [n, columns] -> their best grids
    fit: Callable[["GridType", Tensor, Tensor, Sequence[float]], Grid]
    # bytes [n, size] -> their grids
    read: Callable[[Tensor], Grid]
    # head and q, uint8 [n, columns] counted from `lowest` -> bytes, uint8 [n, size]
    pack: Callable[[tuple[Tensor, ...], Tensor], Tensor]
    affine: bool = False  # it has offsets

    @property
    def columns(self) -> int:
        """Weights of one block."""
        return QUANT_TYPES[self.name].columns

    def fitted(self, blocks: Tensor, importance: Tensor, *, quick: bool = False) -> Grid:
        """The grids on which the blocks lose least.

        Args:
            blocks: float32 [n, columns].
            importance: of each weight's squared error, float32 in the same shape, at least 0.
            quick: without the search, for estimates.
        """
        # of 8 bits the first try is as good as the best of many
        tries = NO_SEARCH if quick or self.highest > MANY else self.tries
        return self.fit(self, blocks, importance, tries)

    @property
    def tries(self) -> tuple[float, ...]:
        """Candidates of the search."""
        return AFFINE_TRIES if self.affine else TRIES

    def packed(self, grid: Grid, integers: Tensor) -> Tensor:
        """q [n, columns] on their grids as bytes, uint8 [n, size]."""
        return self.pack(grid.head, (integers - self.lowest).to(torch.uint8))


def encode_weighted(
    rows: Tensor, importance: Tensor, name: str, *, quick: bool = False
) -> tuple[Tensor, Tensor]:
    """Each weight to the nearest point of the best grid.

    Args:
        rows: float32 [n, columns]. importance: of squared errors, float32 [columns] or
            [n, columns].

    Returns:
        The bytes, uint8 [n, bytes of a row], and the weights that they hold, float32 [n, columns].
    """
    kind = GRIDS[name]
    blocks = rows.reshape(-1, kind.columns)
    weights = importance.expand_as(rows).reshape(-1, kind.columns)
    grid = kind.fitted(blocks, weights, quick=quick)
    integers = grid.integers(blocks, kind)
    held = grid.wide(grid.step, kind) * integers - grid.wide(grid.offset, kind)
    return kind.packed(grid, integers).view(len(rows), -1), held.view(rows.shape)


def best_steps(
    groups: Tensor, importance: Tensor, kind: GridType, tries: Sequence[float]
) -> Tensor:
    """Steps without offset, [m, 1], for groups [m, group]; the sign is that which puts the largest
    weight on `lowest`, the side that reaches further.
    """
    largest = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    best, gain = torch.zeros_like(largest), torch.zeros_like(largest)
    inverse = torch.where(largest == 0, 0, 1 / largest)
    for beyond in tries:
        q = (groups * (inverse * (kind.lowest - beyond))).round_().clamp_(kind.lowest, kind.highest)
        heavy = importance * q
        dot = (heavy * groups).sum(1, keepdim=True)
        square = (heavy * q).sum(1, keepdim=True).clamp_min_(TINY)
        won = dot * dot / square  # the squared error that these steps take away
        best = torch.where(won > gain, dot / square, best)
        gain = torch.maximum(won, gain)
    return best


def best_affine(
    groups: Tensor, importance: Tensor, kind: GridType, tries: Sequence[float], *, signed: bool
) -> tuple[Tensor, Tensor]:
    """Steps and offsets, [m, 1] each, for groups [m, group].

    Args:
        signed: offsets may be negative; else a group of positive weights starts at 0.
    """
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    if not signed:
        low = low.clamp_max(0)
    span = high - low
    inverse = torch.where(span == 0, 0, 1 / span)
    importance = importance + TINY
    weight = importance.sum(1, keepdim=True)
    mass = (importance * groups).sum(1, keepdim=True)
    best_step, best_low = span / kind.highest, low
    least = torch.full_like(low, torch.inf)
    for beyond in tries:
        q = ((groups - low) * (inverse * (kind.highest + beyond))).round_()
        q = q.clamp_(0, kind.highest)
        heavy = importance * q
        first, second = heavy.sum(1, keepdim=True), (heavy * q).sum(1, keepdim=True)
        dot = (heavy * groups).sum(1, keepdim=True)
        det = weight * second - first * first
        sound = det > 1e-9 * weight * second
        step = torch.where(sound, (weight * dot - first * mass) / det, best_step)
        start = torch.where(sound, (second * mass - first * dot) / det, best_low)
        if not signed:
            step = torch.where(start > 0, dot / second.clamp_min(TINY), step)
            start = start.clamp_max(0)
        error = (importance * (step * q + start - groups).square_()).sum(1, keepdim=True)
        better = (error < least) & (step >= 0)
        best_step = torch.where(better, step, best_step)
        best_low = torch.where(better, start, best_low)
        least = torch.where(better, error, least)
    return best_step, -best_low


def as_half(numbers: Tensor) -> Tensor:
    """Float16 [n, 1], those that are too large for it as the largest that it has."""
    largest = torch.finfo(torch.float16).max
    return numbers.clamp(-largest, largest).half()


def bytes_of(numbers: Tensor) -> Tensor:
    """A column of float16 as its bytes, uint8 [n, 2]."""
    return numbers.contiguous().view(torch.uint8)


# ---- blocks of 32: one float16 step, perhaps one float16 offset ----


def fit_plain(kind: GridType, blocks: Tensor, importance: Tensor, tries: Sequence[float]) -> Grid:
    """Q4_0, Q5_0, Q8_0."""
    step = as_half(best_steps(blocks, importance, kind, tries))
    return Grid(step.float(), torch.zeros_like(step, dtype=torch.float32), (bytes_of(step),))


def read_plain(raw: Tensor) -> Grid:
    """Q4_0, Q5_0, Q8_0."""
    step = half(raw, 0)
    return Grid(step, torch.zeros_like(step), (raw[:, :2],))


def fit_affine(kind: GridType, blocks: Tensor, importance: Tensor, tries: Sequence[float]) -> Grid:
    """Q4_1, Q5_1."""
    step, offset = best_affine(blocks, importance, kind, tries, signed=True)
    step, low = as_half(step), as_half(-offset)
    return Grid(step.float(), -low.float(), (bytes_of(step), bytes_of(low)))


def read_affine(raw: Tensor) -> Grid:
    """Q4_1, Q5_1."""
    return Grid(half(raw, 0), -half(raw, 2), (raw[:, :2], raw[:, 2:4]))


def halves(q: Tensor) -> Tensor:
    """32 nibbles, the second half high: uint8 [n, 32] -> [n, 16]."""
    return (q[:, : GROUP // 2] & 15) | (q[:, GROUP // 2 :] << 4)


def bits(q: Tensor, place: int) -> Tensor:
    """One bit of each of 32 numbers, uint8 [n, 32] -> [n, 4], the first lowest."""
    spread = ((q >> place) & 1).view(len(q), -1, 8)
    return (spread << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)


def pack_four(head: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """Q4_0, Q4_1."""
    return torch.cat([*head, halves(q)], dim=1)


def pack_five(head: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """Q5_0, Q5_1."""
    return torch.cat([*head, bits(q, 4), halves(q)], dim=1)


def pack_eight(head: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """Q8_0: signed bytes, none of them -128, as the format's reference writes them."""
    return torch.cat([*head, q - 127], dim=1)


# ---- super-blocks of 256: their groups' steps are whole multiples of one float16 ----


def fit_k(kind: GridType, blocks: Tensor, importance: Tensor, tries: Sequence[float]) -> Grid:
    """Q4_K, Q5_K: six bits each for the step and the offset of eight groups."""
    groups, heavy = blocks.view(-1, kind.group), importance.reshape(-1, kind.group)
    found = best_affine(groups, heavy, kind, tries, signed=False)
    outer, inner = [], []
    for numbers in found:
        own = numbers.view(len(blocks), -1).clamp_min(0)
        unit = as_half(own.amax(1, keepdim=True) / SIX_BITS)
        wide = unit.float()
        whole = (own * torch.where(wide == 0, 0, 1 / wide)).round_().clamp_(0, SIX_BITS)
        outer.append(unit)
        inner.append(whole)
    small = pack_scales(*(whole.to(torch.uint8) for whole in inner))
    return Grid(
        outer[0].float() * inner[0],
        outer[1].float() * inner[1],
        (bytes_of(outer[0]), bytes_of(outer[1]), small),
    )


def pack_scales(steps: Tensor, offsets: Tensor) -> Tensor:
    """Six bits each for eight groups, the inverse of `scales_and_minima`: uint8 [n, 8] twice ->
    [n, 12].
    """
    low = steps[:, :4] | ((steps[:, 4:] >> 4) << 6)
    middle = offsets[:, :4] | ((offsets[:, 4:] >> 4) << 6)
    high = (steps[:, 4:] & 15) | ((offsets[:, 4:] & 15) << 4)
    return torch.cat([low, middle, high], dim=1)


def read_k(raw: Tensor) -> Grid:
    """Q4_K, Q5_K."""
    steps, offsets = scales_and_minima(raw[:, 4:16])
    head = (raw[:, :2], raw[:, 2:4], raw[:, 4:16])
    return Grid(half(raw, 0) * steps, half(raw, 2) * offsets, head)


def pairs(q: Tensor, run: int) -> Tensor:
    """Nibbles, runs of `run` bytes of which each holds first its low, then its high halves: uint8
    [n, 256] -> [n, 128].
    """
    own = (q & 15).view(len(q), -1, 2, run)
    return (own[:, :, 0] | (own[:, :, 1] << 4)).reshape(len(q), -1)


def pack_k(head: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """Q4_K."""
    return torch.cat([*head, pairs(q, 32)], dim=1)


def pack_k_five(head: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """Q5_K: bit k of byte j is the fifth of weight 32 k + j."""
    fifth = (q >> 4).view(len(q), 8, 32)
    places = torch.arange(8, dtype=torch.uint8)[:, None]
    return torch.cat([*head, (fifth << places).sum(1, dtype=torch.uint8), pairs(q, 32)], dim=1)


def fit_six(kind: GridType, blocks: Tensor, importance: Tensor, tries: Sequence[float]) -> Grid:
    """Q6_K: a signed byte for the step of each of 16 groups."""
    groups, heavy = blocks.view(-1, kind.group), importance.reshape(-1, kind.group)
    steps = best_steps(groups, heavy, kind, tries).view(len(blocks), -1)
    largest = steps.gather(1, steps.abs().argmax(1, keepdim=True))
    unit = as_half(largest / -128)
    wide = unit.float()
    whole = (steps * torch.where(wide == 0, 0, 1 / wide)).round_().clamp_(-128, 127)
    small = whole.to(torch.int8).view(torch.uint8)
    step = wide * whole
    return Grid(step, torch.zeros_like(step), (small, bytes_of(unit)))


def read_six(raw: Tensor) -> Grid:
    """Q6_K."""
    step = half(raw, 208) * raw[:, 192:208].contiguous().view(torch.int8).float()
    return Grid(step, torch.zeros_like(step), (raw[:, 192:208], raw[:, 208:210]))


def pack_six(head: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """Q6_K: low nibbles, then two high bits each, then steps and unit."""
    high = (q >> 4).view(len(q), -1, 4, 32)
    places = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    two = (high << places).sum(2, dtype=torch.uint8).view(len(q), -1)
    return torch.cat([pairs(q, 64), two, *head], dim=1)


PLAIN = partial(GridType, fit=fit_plain, read=read_plain)
AFFINE = partial(GridType, fit=fit_affine, read=read_affine, affine=True)
K_QUANT = partial(GridType, fit=fit_k, read=read_k, affine=True)
GRIDS: Mapping[str, GridType] = {
    grid.name: grid
    for grid in (
        PLAIN("Q4_0", GROUP, -8, 7, pack=pack_four),
        PLAIN("Q5_0", GROUP, -16, 15, pack=pack_five),
        PLAIN("Q8_0", GROUP, -127, 127, pack=pack_eight),
        AFFINE("Q4_1", GROUP, 0, 15, pack=pack_four),
        AFFINE("Q5_1", GROUP, 0, 31, pack=pack_five),
        K_QUANT("Q4_K", SUPER // 8, 0, 15, pack=pack_k),
        K_QUANT("Q5_K", SUPER // 8, 0, 31, pack=pack_k_five),
        GridType("Q6_K", SUPER // 16, -32, 31, fit_six, read_six, pack_six),
    )
}
