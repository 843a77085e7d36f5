"""Examples as token ids, and several of them as one flat list of rows, without padding and with
their common start computed once.

Knows the tokenizer and its chat template, lengths, positions and who may look at whom. Knows
nothing of weights.
Always: an answer ends with the end-of-turn token, so a model that is right also stops; row r of an
example sees the common start and the example's own earlier rows, nothing else, exactly as if each
example ran alone.

Layout of the N rows: `shared` rows of the common start, then each example's own rows, one example
after the other; then rows that nobody reads, up to one of a few sizes (`few_sizes`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from ..errors import DataError
from ..models.attention import SOFTMAX_ALONE, ScoreRule, masked_attention, window_mask
from ..models.tokenizer.tokenizer import Tokenizer
from .examples import Example

# On CPU torch's fused attention takes ten times as long to go back through as four plain products
# (16 x 60 rows, bfloat16: 18.0 ms against 1.6 ms a layer); for long rows its small memory counts
# more.
PLAIN_LENGTH = 192
# Rows of a padded batch, B x L, that go through the layers together: one long text among short ones
# would have them all padded to its length.
PLACES = 1 << 13
SIZES = 3  # log2 of how many sizes there are between a power of two and the next


def few_sizes(count: int) -> int:
    """The next of a few sizes, eight to an octave and multiples of 8: at most an eighth more.

    A product in bfloat16 is compiled for its shape and kept for the whole run (oneDNN's primitive
    cache), so that a new number of rows in each step takes more and more memory, and the time to
    compile.
    """
    step = 1 << max(SIZES, (max(1, count) - 1).bit_length() - 1 - SIZES)
    return -(-max(1, count) // step) * step


def few_rows(wanted: Tensor) -> Tensor:
    """The rows that are wanted, bool [N], and as many others as make it one of a few sizes; int64.
    Those wanted come first.
    """
    count = min(few_sizes(int(wanted.sum())), len(wanted))
    return wanted.to(torch.uint8).argsort(descending=True, stable=True)[:count]


@dataclass(frozen=True, slots=True)
class TokenExample:
    """One conversation. Input rows are all tokens but the last, which is only ever a target."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Input rows: the last token of the answer is not read by anything."""
        return len(self.prompt) + len(self.answer) - 1


def tokenize(
    examples: Sequence[Example], tokenizer: Tokenizer, *, longest: int
) -> list[TokenExample]:
    """Turn conversations into tokens, in their order.

    Args:
        longest: most tokens of one conversation, the model's context.

    Raises:
        DataError: no examples, a conversation that is too long, or a chat template that does not
        end an answer.
    """
    if not examples:
        raise DataError("there are no examples; train on at least one conversation")
    found = []
    for number, example in enumerate(examples, start=1):
        prompt = tokenizer.encode_chat(example.messages[:-1])
        whole = tokenizer.encode_chat(example.messages, add_generation_prompt=False)
        answer = until_stop(whole[len(prompt) :], tokenizer.stop_tokens)
        if whole[: len(prompt)] != prompt or not answer:
            raise DataError(
                f"example {number}: the model's chat template does not end an answer with a stop "
                f"token; choose another model"
            )
        if len(prompt) + len(answer) > longest:
            raise DataError(
                f"example {number} has {len(prompt) + len(answer)} tokens, the model takes "
                f"{longest}; shorten or remove it"
            )
        found.append(TokenExample(tuple(prompt), tuple(answer)))
    return found


def until_stop(tokens: Sequence[int], stops: frozenset[int]) -> list[int]:
    """Tokens up to and with the first stop token; empty if there is none."""
    for index, token in enumerate(tokens):
        if token in stops:
            return list(tokens[: index + 1])
    return []


def shared_start(examples: Sequence[TokenExample]) -> int:
    """How many tokens all prompts begin with alike, at most all but the last of the shortest
    prompt.

    The system message is the same everywhere, so its rows need computing once for all examples.
    """
    first, *others = [example.prompt[:-1] for example in examples]
    shared = len(first) if others else 0
    for prompt in others:
        alike = takewhile(
            lambda pair: pair[0] == pair[1], zip(first[:shared], prompt, strict=False)
        )
        shared = sum(1 for _ in alike)
    return shared


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Where everything stands in the flat rows of one batch."""

    positions: Tensor  # int64 [N], from 0 in each example
    place: Tensor  # int64 [B * L]: which row stands at (example, position) of a right-padded batch
    home: Tensor  # int64 [N]: the inverse, the place of each row
    count: int  # B
    longest: int  # L
    # int64 [>= M]: rows whose next token is part of an answer; behind them the last row, which
    # nobody reads, up to one of a few sizes
    answer_rows: Tensor
    targets: Tensor  # int64 [M]: those next tokens
    owner: Tensor  # int64 [M]: which example each belongs to
    windows: tuple[int, ...] = ()  # the architecture's: how far rows of each layer see
    # rows of the common start, then of each example its own
    lengths: tuple[int, ...] = ()

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule = SOFTMAX_ALONE
    ) -> Tensor:
        """Causal attention inside each example: q [N, H, hd], k and v [N, KV, hd] -> [N, H, hd].

        Right padding needs no mask of its own: a causal row never sees what stands behind it.
        """
        mask = window_mask(self.longest, self.windows[layer] if self.windows else 0)
        if mask is not None or self.longest > PLAIN_LENGTH or not rule.plain:
            mixed = masked_attention(self.spread(q), self.spread(k), self.spread(v), mask, rule)
        else:
            mixed = plain_attention(self.spread(q), self.spread(k), self.spread(v))
        return (
            mixed.transpose(1, 2)
            .reshape(self.count * self.longest, *q.shape[1:])
            .index_select(0, self.home)
        )

    def recent(self, layer: int, rows: Tensor, count: int) -> Tensor:  # noqa: ARG002
        """As `attention.RowMemory.recent`, inside each example."""
        back = torch.arange(count - 1, -1, -1)
        there = self.positions[:, None] >= back
        seen = self.place[torch.where(there, self.home[:, None] - back, self.home[:, None])]
        return rows[seen] * there[..., None]

    def sequences(self, layer: int) -> Iterator[tuple[slice, dict[str, Tensor]]]:  # noqa: ARG002
        """As `attention.RowMemory.sequences`: the common start, whose memory each example's own
        rows go on from.
        """
        start, common = self.lengths[0], dict[str, Tensor]()
        if start:
            yield slice(start), common
        for length in self.lengths[1:]:
            yield slice(start, start + length), dict(common)
            start += length

    def answers(self, rows: Tensor) -> Tensor:
        """Rows of the answers [M, D] out of those of all tokens [N, D]."""
        return rows[self.answer_rows[: len(self.targets)]]

    def spread(self, rows: Tensor) -> Tensor:
        """[N, heads, hd] -> [B, heads, L, hd]."""
        padded = rows.index_select(0, self.place).view(self.count, self.longest, *rows.shape[1:])
        return padded.transpose(1, 2)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, q [B, H, L, hd], k and v [B, KV, L, hd] -> [B, H, L, hd], in four operations; its
    scores take B x H x L x L.
    """
    count, heads, length, size = q.shape
    groups = k.shape[1]
    later = torch.full((length, length), -torch.inf, dtype=q.dtype).triu_(1)
    # heads that share keys side by side
    wide = (q * size**-0.5).reshape(count, groups, heads // groups * length, size)
    scores = (wide @ k.transpose(2, 3)).view(count, groups, heads // groups, length, length) + later
    mixed: Tensor = scores.softmax(-1).view(count, groups, -1, length) @ v
    return mixed.view(count, heads, length, size)


def plan(
    examples: Sequence[TokenExample], shared: int, windows: tuple[int, ...] = ()
) -> PackedBatch:
    """Lay out `examples` whose first `shared` tokens are alike, for a model whose layers have
    these windows.
    """
    longest = few_sizes(max(example.rows for example in examples))
    # padding looks at row 0; nobody looks at padding
    place = torch.zeros(len(examples), longest, dtype=torch.int64)
    place[:, :shared] = torch.arange(shared)
    # the common start lives in example 0
    positions, home = [torch.arange(shared)], [torch.arange(shared)]
    answer_rows, targets, owner = [], [], []
    start = shared  # first own row of the next example
    for index, example in enumerate(examples):
        own = torch.arange(shared, example.rows)
        place[index, shared : example.rows] = start + own - shared
        positions.append(own)
        home.append(index * longest + own)
        answer_rows.append(start - shared + torch.arange(len(example.prompt) - 1, example.rows))
        targets.append(torch.tensor(example.answer))
        owner.append(torch.full((len(example.answer),), index))
        start += example.rows - shared
    answers = sum(map(len, targets))
    unread = few_sizes(start + 1) - start  # at least one
    nowhere = torch.zeros(unread, dtype=torch.int64)
    positions.append(nowhere)
    home.append(nowhere)
    answer_rows.append(torch.full((few_sizes(answers) - answers,), start + unread - 1))
    return PackedBatch(
        positions=torch.cat(positions),
        place=place.view(-1),
        home=torch.cat(home),
        count=len(examples),
        longest=longest,
        answer_rows=torch.cat(answer_rows),
        targets=torch.cat(targets),
        owner=torch.cat(owner),
        windows=windows,
        lengths=(shared, *(example.rows - shared for example in examples)),
    )


def fitting(rows: Sequence[int], most: int = PLACES) -> list[list[int]]:
    """Places of `rows` in groups whose padded rows are at most `most`, or one example: all of them
    in their order if they fit, else by length.

    Args:
        rows: of each example.
    """
    if len(rows) * max(rows, default=0) <= most:
        return [list(range(len(rows)))]
    found: list[list[int]] = [[]]
    for place in sorted(range(len(rows)), key=rows.__getitem__):
        if found[-1] and (len(found[-1]) + 1) * rows[place] > most:
            found.append([])
        found[-1].append(place)
    return found


def input_tokens(examples: Sequence[TokenExample], shared: int) -> Tensor:
    """Token ids of the rows of `plan(examples, shared)`, int64 [N]."""
    flat = list(examples[0].prompt[:shared])
    for example in examples:
        flat += (example.prompt + example.answer)[shared : example.rows]
    return torch.tensor(flat + [0] * (few_sizes(len(flat) + 1) - len(flat)))
