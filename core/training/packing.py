"""Examples as token ids, and several of them as one flat list of rows, without padding and with
their common start computed once.

Knows the tokenizer and its chat template, lengths, positions and who may look at whom. Knows
nothing of weights.
Always: an answer ends with the end-of-turn token, so a model that is right also stops; row r of an
example sees the common start and the example's own earlier rows, nothing else, exactly as if each
example ran alone.

Layout of the N rows: `shared` rows of the common start, then each example's own rows, one example
after the other.
"""

from collections.abc import Sequence
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
    answer_rows: Tensor  # int64 [M]: rows whose next token is part of an answer
    targets: Tensor  # int64 [M]: those next tokens
    owner: Tensor  # int64 [M]: which example each belongs to
    windows: tuple[int, ...] = ()  # the architecture's: how far rows of each layer see

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
    longest = max(example.rows for example in examples)
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
    )


def input_tokens(examples: Sequence[TokenExample], shared: int) -> Tensor:
    """Token ids of the rows of `plan(examples, shared)`, int64 [N]."""
    flat = list(examples[0].prompt[:shared])
    for example in examples:
        flat += (example.prompt + example.answer)[shared : example.rows]
    return torch.tensor(flat)
