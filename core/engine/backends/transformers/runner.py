"""One step through a model that transformers computes.

Knows which conversation stands where, and what this network was found to do rightly. Knows nothing
of queues, sampling or text.
Always: a row's logits are those of the whole text before it. Whatever a network does otherwise in
pieces than in one pass (a prompt that goes on, rows side by side, a cache at all) is tried when the
model is loaded, and is not done with a network that fails.

There are no pages here (`states.py` says why), so a block of the pool stands for memory alone:
nobody finds blocks by their tokens. What is shared instead is whole states: a conversation goes on
from the longest state that holds what it begins with, its own of the last answer before all.
"""

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .... import log
from ....errors import CacheError
from ....models.transformers_model import TransformersModel
from ...block_pool import BLOCK_TOKENS
from ...scheduler import Batch, Span
from ...sequence import Sequence
from .network import TransformersNetwork
from .states import State, joinable, joined, taken

logger = log.get("engine")
MOST_KEPT = 64  # states of conversations that have ended
SHORT = 16  # tokens: a shared beginning that is not worth a copy
NOT_SAVED = (
    "a model that transformers computes keeps one state for each conversation, which is not saved; "
    "let it compute anew"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a network does in pieces as it does in one pass."""

    cached: bool = False  # one token after a cache
    chunks: bool = False  # several tokens after a cache
    rows: bool = False  # one token each for several conversations side by side

    def __str__(self) -> str:
        if not self.cached:
            return "without a cache: each token costs a pass over all before it"
        said = ["with a cache"]
        said += ["prompts in pieces"] if self.chunks else ["prompts in one piece"]
        said += ["several answers a step" if self.rows else "one answer after another"]
        return ", ".join(said)


class TransformersRunner:
    """A `Backend` over a network of transformers, on the CPU."""

    deterministic = False  # rows side by side and alone take different products
    owns_threads = False
    paged = False
    windows = None
    states = None

    def __init__(
        self, model: TransformersModel, *, kept_bytes: int = 64 << 20, share: bool = True
    ) -> None:
        """Load the network and try it: seconds, and its memory.

        Args:
            kept_bytes: states of conversations that have ended, in all.
            share: whether one conversation may go on from another's state.

        Raises:
            ModelFileError: see `TransformersNetwork`.
        """
        self.network = TransformersNetwork(model)
        self.kept_bytes, self.share = kept_bytes, share
        self.abilities = tried(self.network, model.vocab_size)
        self.block_bytes = block_bytes(self.network, self.abilities)
        self.nothing = torch.empty(0, model.vocab_size)  # logits of no row
        self.running: dict[Sequence, State] = {}
        self.kept: list[State] = []  # the latest last
        self.group: JoinedStates | None = None
        logger.info("transformers runs this %s model %s", model.family, self.abilities)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """See `Backend.forward`; no span has drafts."""
        try:
            return self._forward(batch)
        except BaseException:  # a cache may hold half of a step
            self.group = None
            for span in batch.spans:
                self.running.pop(span.sequence, None)
            raise

    def read_cache(self, blocks: abc.Sequence[int]) -> bytes:  # noqa: ARG002
        """Nobody can: see `paged`."""
        raise CacheError(NOT_SAVED)

    def write_cache(self, blocks: abc.Sequence[int], data: bytes) -> None:  # noqa: ARG002
        """Nobody can: see `paged`."""
        raise CacheError(NOT_SAVED)

    def clear_cache(self, blocks: abc.Sequence[int]) -> None:
        """Nothing is in blocks; states that are not finite are dropped by `forward`."""

    def _forward(self, batch: Batch) -> Tensor:
        self._let_go()
        side_by_side = self._answers(batch.spans)
        self._regroup([span.sequence for span in side_by_side])
        rows = dict(zip(map(id, side_by_side), self._step_group(), strict=True))
        for span in batch.spans:
            if id(span) not in rows:
                with self.network.adapted(span.sequence.adapter):
                    rows[id(span)] = self._step_alone(span)
            if not bool(torch.isfinite(rows[id(span)]).all()):
                self._forget(span.sequence)
        return torch.cat([rows[id(span)] for span in batch.spans])

    def _answers(self, spans: abc.Sequence[Span]) -> list[Span]:
        """Spans that can take their step side by side: one token each, after all others."""
        if not self.abilities.rows:
            return []
        found = [
            span
            for span in spans
            if span.sampled == span.count == 1
            and span.sequence in self.running
            and len(self.running[span.sequence].tokens) == span.start > 0
        ]
        # whose adapter is the same: one changes the whole step
        found = [span for span in found if digest(span) == digest(found[0])]
        return found if len(found) > 1 else []

    def _regroup(self, sequences: list[Sequence]) -> None:
        """Let exactly these stand side by side."""
        if self.group is not None and self.group.sequences != sequences:
            self.group.leave(self.running)
            self.group = None
        if self.group is None and sequences:
            self.group = JoinedStates(sequences, self.running)

    def _step_group(self) -> list[Tensor]:
        """Logits [1, V] of each conversation of the group."""
        if self.group is None:
            return []
        with self.network.adapted(self.group.sequences[0].adapter):
            return list(self.group.step(self.network, self.running))

    def _step_alone(self, span: Span) -> Tensor:
        """Logits [span.sampled, V] of one span."""
        known, wanted = span.sequence.tokens[: span.start] + span.tokens, span.sampled
        if not self.abilities.cached and wanted:
            return self.network.step(torch.tensor([known]), None, wanted=wanted)[0]
        # without chunks a whole prompt goes through with its last token
        if not wanted and not self.abilities.chunks:
            return self.nothing
        state = self._state(span.sequence, known, wanted)
        rest = known[len(state.tokens) :]
        if not rest:  # inside a prompt: it went on from a state that holds this
            return self.nothing
        if self.abilities.chunks or not state.tokens:
            return advance(self.network, state, rest, wanted)
        found = [advance(self.network, state, [token], 1) for token in rest]
        return torch.cat(found[len(found) - wanted :])

    def _state(self, sequence: Sequence, known: list[int], wanted: int) -> State:
        """The state from which a conversation goes on to `known`, whose last `wanted` tokens it
        does not hold.
        """
        state = self.running.get(sequence) or self._begin(sequence)
        # A state may be ahead of a prompt's pieces, or hold drafts that were wrong.
        ahead = not wanted and state.tokens[: len(known)] == known
        right = min(common(state.tokens, known), len(known) - wanted)
        if not ahead and not state.cut(right):
            state = self._empty(sequence)
        if not self.abilities.chunks and len(known) - len(state.tokens) > max(SHORT, wanted):
            state = self._empty(sequence)
        self.running[sequence] = state
        return state

    def _begin(self, sequence: Sequence) -> State:
        """A copy of the longest state that holds what a conversation begins with; else an empty
        one.
        """
        fresh = self._empty(sequence)
        if not self.share or sequence.request.sampling_params.repeatable:
            return fresh
        best, most, asked = fresh, SHORT - 1, sequence.tokens[:-1]
        for state in (*self.kept, *self.running.values()):
            if state.adapter != fresh.adapter:
                continue
            alike = common(state.tokens, asked)
            if alike > most and (alike == len(state.tokens) or state.cuttable):
                best, most = state, alike
        if best is fresh:
            return fresh
        found = self._copied(best)
        return found if found.cut(most) else fresh

    def _empty(self, sequence: Sequence) -> State:
        return State(self.network.new_cache(), adapter=sequence.adapter_digest)

    def _copied(self, state: State) -> State:
        """A state's copy, also of one that stands in the group."""
        if self.group is not None and state.cache is self.group.cache:
            own = [self.running[sequence] for sequence in self.group.sequences].index(state)
            return taken(state.cache, own, list(state.tokens), state.adapter)
        return state.copied()

    def _let_go(self) -> None:
        """Keep the states of conversations that have ended or given way, while there is room."""
        gone = [sequence for sequence in self.running if not sequence.block_table]
        if self.group is not None and any(one in self.group.sequences for one in gone):
            self._regroup([])
        for sequence in gone:
            state = self.running.pop(sequence)
            if self.share and state.tokens:
                # what it went on from is in it
                self.kept = [
                    one
                    for one in self.kept
                    if one.adapter != state.adapter
                    or common(one.tokens, state.tokens) < len(one.tokens)
                ]
                self.kept.append(state)
        room = self.kept_bytes
        for place in range(len(self.kept) - 1, -1, -1):
            room -= self.kept[place].bytes
            if (room < 0 and place < len(self.kept) - 1) or len(self.kept) - place > MOST_KEPT:
                del self.kept[: place + 1]
                return

    def _forget(self, sequence: Sequence) -> None:
        """Nobody goes on from what is not finite."""
        if self.group is not None and sequence in self.group.sequences:
            self._regroup([])
        self.running.pop(sequence, None)


class JoinedStates:
    """Conversations side by side in one cache, shorter ones with nothing before them."""

    def __init__(self, sequences: list[Sequence], running: dict[Sequence, State]) -> None:
        """Take their states out of `running`; `leave` brings them back."""
        states = [running[sequence] for sequence in sequences]
        self.sequences = sequences
        self.cache = joined(states)
        for state in states:
            state.cache = self.cache  # in which it has a row; its own memory is free

    def step(self, network: TransformersNetwork, running: dict[Sequence, State]) -> Tensor:
        """Logits [B, 1, V] after each one's last token."""
        states = [running[sequence] for sequence in self.sequences]
        tokens = torch.tensor([[sequence.tokens[-1]] for sequence in self.sequences])  # [B, 1]
        found = network.step(tokens, self.cache, *places([len(one.tokens) for one in states]))
        for state, token in zip(states, tokens.flatten().tolist(), strict=True):
            state.tokens.append(token)
        return found

    def leave(self, running: dict[Sequence, State]) -> None:
        """Each one's row becomes a state of its own again."""
        for row, sequence in enumerate(self.sequences):
            if (state := running.get(sequence)) is not None:
                running[sequence] = taken(self.cache, row, state.tokens, state.adapter)


def digest(span: Span) -> str:
    """Of a span's adapter."""
    return span.sequence.adapter_digest


def places(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Positions [B, 1] and mask [B, longest + 1] of one token after so many."""
    longest = max(lengths)
    before = torch.tensor(lengths)[:, None]  # [B, 1]
    mask = (torch.arange(longest + 1) >= longest - before).long()
    return before, mask


def advance(
    network: TransformersNetwork, state: State, tokens: list[int], wanted: int = 1
) -> Tensor:
    """Logits [wanted, V] after the last of some more tokens of one conversation."""
    start = len(state.tokens)
    positions = torch.arange(start, start + len(tokens))[None]
    found = network.step(torch.tensor([tokens]), state.cache, positions, wanted=max(wanted, 1))
    state.tokens += tokens
    return found[0, :wanted]


def common(one: list[int], other: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return place
    return min(len(one), len(other))


TRIED = (19, 12)  # tokens of two texts


@torch.inference_mode()
def tried(network: TransformersNetwork, vocabulary: int) -> Abilities:
    """What a network does in pieces as in one pass, found out on two short texts."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(vocabulary, (count,), generator=generator).tolist() for count in TRIED]
    expected = [network.step(torch.tensor([text]), None)[0] for text in texts]
    attempts: dict[str, Callable[[], list[Tensor]]] = {
        "cached": lambda: [one_by_one(network, texts[0])],
        "chunks": lambda: [in_pieces(network, texts[0])],
        "rows": lambda: side_by_side(network, texts),
    }
    found = Abilities()
    for name, attempt in attempts.items() if network.cache_name else ():
        try:
            right = all(map(partial(alike, network), attempt(), expected))
        # a network that cannot do it may say so in any way
        except Exception as error:
            logger.info("this network does not go %s: %s", name, error)
            right = False
        if not right and name == "cached":
            break
        found = replace(found, **{name: right})
    return found


def alike(network: TransformersNetwork, one: Tensor, other: Tensor) -> bool:
    """The same logits but for rounding."""
    far = (one - other).abs().max() / other.abs().max().clamp_min(1e-30)
    return bool(far < (1e-3 if network.model.dtype is torch.float32 else 5e-2))


def one_by_one(network: TransformersNetwork, text: list[int]) -> Tensor:
    """A prompt, then token after token."""
    state = State(network.new_cache())
    advance(network, state, text[:9])
    for token in text[9:-1]:
        advance(network, state, [token])
    return advance(network, state, text[-1:])


def in_pieces(network: TransformersNetwork, text: list[int]) -> Tensor:
    """A prompt in three pieces."""
    state = State(network.new_cache())
    for start, stop in ((0, 7), (7, 12)):
        advance(network, state, text[start:stop])
    return advance(network, state, text[12:])


def side_by_side(network: TransformersNetwork, texts: list[list[int]]) -> list[Tensor]:
    """Both prompts alone, then three steps together and apart again."""
    states = []
    for text in texts:
        states.append(State(network.new_cache()))
        advance(network, states[-1], text[:-3])
    if not all(joinable(state.cache) for state in states):
        raise CacheError("its caches hold layers of a kind of their own")
    for place in (-3, -2):
        cache = joined(states)
        tokens = torch.tensor([[text[place]] for text in texts])
        network.step(tokens, cache, *places([len(state.tokens) for state in states]))
        states = [
            taken(cache, row, [*state.tokens, texts[row][place]])
            for row, state in enumerate(states)
        ]
    cache = joined(states)
    tokens = torch.tensor([[text[-1]] for text in texts])
    return list(network.step(tokens, cache, *places([len(state.tokens) for state in states])))


@torch.inference_mode()
def block_bytes(network: TransformersNetwork, abilities: Abilities) -> int:
    """Bytes that 16 tokens more take of a state; what it takes at any length is spread over eight
    times as many.
    """
    if not abilities.cached:
        return 1 << 12  # tokens and little else
    sizes = []
    for count in (BLOCK_TOKENS, 2 * BLOCK_TOKENS):
        state = State(network.new_cache())
        advance(network, state, [0] * count)
        sizes.append(state.bytes)
    growth = sizes[1] - sizes[0]
    return max(growth + (sizes[0] - growth) // 8, 1 << 12)
