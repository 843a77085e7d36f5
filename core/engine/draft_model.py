"""Guessing an answer's next tokens with a smaller model of the same vocabulary.

Knows a second backend with a cache of its own, and which answers it goes on with. Knows nothing of
what the large model makes of a guess: that is the scheduler's, which keeps a guess only if it is
the very token that its place would have got anyway. So no guess changes a text or a distribution.
Always: a guess is drawn from the small model's logits by the answer's own settings and with the
very random number that its place is drawn with later. Where the two models agree, so do the tokens;
greedily it is the small model's likeliest. A random number is looked at and not used up.
Always: no text of a request ends the guessing. A token that the small model has not, and no text
is cut into, is read as another one; where it fails, the answers of that step get no more guesses.
By rule none for: answers with an adapter, which the small model has not, or in a grammar; more than
MOST_ANSWERS at once, whose rows cost what guesses would save; short answers to long prompts; steps
in which somebody's prompt is read.
Source: Leviathan et al. 2023, speculative decoding, of which this is the case of drafts drawn with
the target's own randomness; Daliri, Musco and Suresh 2024, "Coupling without communication and
drafter-invariant speculative decoding".
"""

import time
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .. import log
from ..config import EngineConfig
from ..errors import ConfigError
from ..models.tokenizer.vocabulary import UNUSED, Vocabulary
from ..models.transformers_model import ServedModel
from ..models.weights import Weights
from .backends.backend import Backend
from .backends.select import select
from .block_pool import BLOCK_TOKENS, BlockPool
from .request import GenerationRequest
from .sampling.sampler import sample
from .sampling.speculation import SpeculationCost
from .sampling.state import LogitRow
from .scheduler import Batch, Span
from .sequence import Sequence

logger = log.get("engine")
MOST_ANSWERS = 4
MOST_UNREAD = 8  # tokens that are read for each that the answer may still have
CHUNK = 512  # tokens of an answer that are caught up with in a step, all answers together


@dataclass(slots=True, eq=False)
class Shadow:
    """What the small model has read of one answer, and guessed."""

    sequence: Sequence  # of its own, with its own blocks
    known: int = 0  # tokens of it that are the answer's, not guesses


class DraftModel:
    """A smaller model that runs ahead of a few answers, on the engine's thread."""

    def __init__(
        self,
        backend: Backend,
        context: int,
        vocab_size: int,
        own_size: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            backend: with blocks for MOST_ANSWERS contexts.
            context: tokens that it reads, guesses included.
            vocab_size: of the large model; tokens beyond it are never guessed.
            own_size: of the small one.
        """
        self.backend = backend
        self._context, self._clock = context, clock
        self._vocab_size, self._own_size = vocab_size, own_size
        self._pool = BlockPool(MOST_ANSWERS * -(-context // BLOCK_TOKENS))
        self._shadows: dict[Sequence, Shadow] = {}
        self._given_up: set[Sequence] = set()  # those for which it failed, until they end
        self.bytes = self._pool.total * backend.block_bytes  # of memory, its weights included

    @classmethod
    def load(
        cls,
        draft: ServedModel,
        target: ServedModel,
        config: EngineConfig,
        context: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> "DraftModel":
        """Pack the small model's weights.

        Args:
            context: of the engine.

        Raises:
            ConfigError: its vocabulary is another one, or nothing here runs it with a paged cache.
        """
        check_same(draft.tokenizer.vocabulary, target.tokenizer.vocabulary)
        plain = replace(config, kv_type="bf16", precision="fast", kv_bytes=1 << 62)
        choice = select(draft, plain)
        context = min(context, draft.context_length)
        backend = choice.build(MOST_ANSWERS * -(-context // BLOCK_TOKENS), context)
        if not backend.paged:
            raise ConfigError(
                "engine.draft_model is run by transformers alone, which would be slower than no "
                'guesses; take a model that the compiled kernels run, or set it to ""'
            )
        logger.info("a smaller model guesses ahead, for up to %d answers at once", MOST_ANSWERS)
        made = cls(backend, context, target.vocab_size, draft.vocab_size, clock=clock)
        if isinstance(draft, Weights):
            blocks = {id(one): one.memory.size for one in draft.tensors.values()}
            made.bytes += sum(blocks.values())
        return made

    def guess(
        self, answering: abc.Sequence[Sequence], count: int, most: int, cost: SpeculationCost
    ) -> None:
        """Leave guesses with those answers for which they pay.

        Args:
            answering: that may have some, each lacking its last token.
            count: of all answers in this step.
            most: guesses for each, at most.
            cost: of rows of the large model, and of steps of the small one.
        """
        if count > MOST_ANSWERS:
            return
        wanted = {
            sequence: length
            for sequence in answering
            if self._may_have(sequence)
            and (length := sequence.trust.length(self._room(sequence, most), cost.of_guess(count)))
        }
        for other in [one for one in self._shadows if one not in wanted]:
            if len(self._shadows.keys() | wanted.keys()) > MOST_ANSWERS:
                self._release(other)
        drafts: dict[Sequence, list[int]] = {
            sequence: [] for sequence in wanted if self._caught_up(sequence)
        }
        while open_ := [one for one, own in drafts.items() if len(own) < wanted[one]]:
            begun = self._clock()
            spans = [self._span(self._shadows[sequence].sequence) for sequence in open_]
            tokens = self._next(spans, open_, drafts)
            if sum(span.count for span in spans) <= 2 * len(spans):
                cost.learn_draft(count, self._clock() - begun)
            for sequence, token in zip(open_, tokens, strict=True):
                if token is None:
                    wanted[sequence] = len(drafts[sequence])
                    continue
                drafts[sequence].append(token)
                self._shadows[sequence].sequence.tokens.append(token)
        for sequence, own in drafts.items():
            sequence.guesses = tuple(own)

    def give_up(self, sequences: abc.Sequence[Sequence]) -> None:
        """It failed over one of these: none of them gets further guesses, others may."""
        for other in list(self._shadows):
            self._release(other)
        self._given_up.update(sequences)

    def forget(self, sequence: Sequence) -> None:
        """An answer has ended."""
        self._given_up.discard(sequence)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Of its blocks, which others need."""
        shadow = self._shadows.pop(sequence, None)
        if shadow is not None:
            self._pool.release(shadow.sequence.block_table)

    def _may_have(self, sequence: Sequence) -> bool:
        """Whether guesses of a small model are of use to an answer, by rule."""
        shadow = self._shadows.get(sequence)
        unread = len(sequence.tokens) - (shadow.sequence.num_computed_tokens if shadow else 0)
        if sequence.adapter is not None or sequence in self._given_up:
            return False
        return unread <= MOST_UNREAD * sequence.sampling.left

    def _room(self, sequence: Sequence, most: int) -> int:
        return min(most, self._context - len(sequence.tokens) - 1, sequence.sampling.left - 1)

    def _caught_up(self, sequence: Sequence) -> bool:
        """Bring what was read up to the answer's tokens; False while more is to be read than a
        step may.
        """
        shadow = self._shadows.get(sequence)
        if shadow is None:
            own = Sequence(GenerationRequest(prompt=tuple(sequence.tokens)))
            shadow = self._shadows[sequence] = Shadow(own)
        own, right = shadow.sequence, shadow.known
        both = min(len(own.tokens), len(sequence.tokens))
        while right < both and own.tokens[right] == sequence.tokens[right]:
            right += 1
        # the last token has to be read again: its logits are wanted
        own.num_computed_tokens = min(own.num_computed_tokens, right, len(sequence.tokens) - 1)
        own.tokens[right:] = (min(one, self._own_size - 1) for one in sequence.tokens[right:])
        shadow.known = len(sequence.tokens)
        if own.remaining <= CHUNK // MOST_ANSWERS:
            return True
        self._forward([self._span(own, CHUNK // MOST_ANSWERS)])
        return False

    def _span(self, own: Sequence, most: int | None = None) -> Span:
        """What is to be read of one answer; its last row's logits, unless `most` cuts it."""
        count = own.remaining if most is None else most
        needed = self._pool.needed(own.num_computed_tokens + count) - len(own.block_table)
        if needed > 0:
            own.block_table += self._pool.allocate(needed)
        return Span(own, own.num_computed_tokens, count, sampled=int(most is None))

    def _next(
        self,
        spans: abc.Sequence[Span],
        sequences: abc.Sequence[Sequence],
        drafts: dict[Sequence, list[int]],
    ) -> list[int | None]:
        """The token that each answer would get of the small model's logits."""
        logits = self._forward(spans)  # [R, V of the small model]
        if logits.shape[1] != self._vocab_size:
            whole = np.full((len(logits), self._vocab_size), -np.inf, np.float32)
            shared = min(logits.shape[1], self._vocab_size)
            whole[:, :shared] = logits[:, :shared]
            logits = whole
        ahead = [tuple(drafts[sequence]) for sequence in sequences]
        return sample(
            logits,
            [
                LogitRow(sequence.sampling, own, len(own))
                for sequence, own in zip(sequences, ahead, strict=True)
            ],
        )

    def _forward(self, spans: abc.Sequence[Span]) -> np.ndarray:
        logits = np.asarray(self.backend.forward(Batch(tuple(spans))))
        for span in spans:
            span.sequence.num_computed_tokens += span.count
        return logits


def check_same(ours: Vocabulary, theirs: Vocabulary) -> None:
    """What no text is cut into may differ: files of one family are padded to different lengths.

    Raises:
        ConfigError: the small model's vocabulary is another one than the large one's.
    """
    if ours.spelling != theirs.spelling:
        raise another(f"its tokens are spelled as {ours.spelling}, the model's {theirs.spelling}")
    for at in range(max(len(ours.tokens), len(theirs.tokens))):
        first, second = used(ours, at), used(theirs, at)
        if first != second:
            raise another(f"its token {at} is {first!r:.40}, the model's is {second!r:.40}")


def used(vocabulary: Vocabulary, token: int) -> str | None:
    """The token as it is spelled; None: no text is cut into it."""
    there = token < len(vocabulary.tokens) and vocabulary.token_types[token] != UNUSED
    return vocabulary.tokens[token] if there else None


def another(found: str) -> ConfigError:
    """The refusal of a vocabulary."""
    return ConfigError(
        f"engine.draft_model has another vocabulary: {found}; take a smaller model of the same "
        f'makers, or set it to ""'
    )
