"""Foreign grammars into matchers, tried first where they can do no harm.

Knows llguidance, a worker process, stacks. Knows nothing of logits or requests.
Always: no byte of a grammar reaches the library in this process before a worker has compiled that
very grammar, with the same vocabulary and limits, on an eighth of the stack, and has computed masks
with it on a quarter of theirs.

Why masks are computed in this process all the same: a mask costs 0.04 ms, a question to another
process more than that. The library compiles by recursion over the grammar and computes masks
without: on 2 MB of stack, chains twenty times as long as the longest that compiled were walked
through without harm (`tests/core/engine/sampling/test_grammar_compiler.py`). A step's work and
memory have limits of the library's own, and its panics come back as errors.

Hazard: a fault of the library that shows only in a state which the worker's walk did not reach
would still end the node.
"""

import hashlib
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from ...errors import OverloadedError, RequestError
from ...models.tokenizer.tokenizer import Tokenizer
from ...models.tokenizer.vocabulary import CONTROL
from ...worker import WorkerLimits, WorkerPool
from . import grammar_limits
from .params import Constraint

T = TypeVar("T")

# A lexer state takes up to 2 kB, so one grammar holds at most 40 MB of them. An ambiguous grammar
# took 17 ms for a step of 1,000 items, an ordinary schema takes 0.04 ms.
LIMITS: dict[str, Any] = {
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "step_max_items": 2_000,
    "verbose_errors": False,
}
# One line, as `toolcall.render` writes it: a grammar that lets blanks repeat is an invitation to
# write blanks for ever.
LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# of the thread that compiles in the node; touched only as deep as a grammar goes
STACK_BYTES = 32 << 20
TRIAL_STACK_BYTES = 4 << 20  # of the worker's
# of the worker's threads that compute masks; the node's have the library's 2 MB or more
TRIAL_MASK_STACK_BYTES = 512 << 10
TRIAL_TOKENS = 16  # walked through in the worker
MASK_S = 0.5  # processor time of one mask; everybody's answers wait for it
TERMS = WorkerLimits(
    name="grammar compiler", memory_bytes=4 << 30, lost=RequestError, absent=OverloadedError
)
DEADLINE_S = 20.0  # for one grammar, the wait for the worker included
REMEMBERED = 1_024  # grammars that a worker has survived
KEPT = 32  # grammars that stay compiled; the tools of a node make one, whatever is asked
REASON_CHARACTERS = 400
_stacks = threading.Lock()  # guards the size that the next thread gets


class Compiler:
    """Compiles for one vocabulary; safe to use from several threads. Its worker starts with the
    first grammar (a second).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        # the library's view of the vocabulary, made when it is first needed: 0.2 s
        self._words: Any = None
        self._worker: WorkerPool | None = None
        self._survived: OrderedDict[bytes, None] = OrderedDict()
        self._turns: WeakValueDictionary[bytes, Any] = WeakValueDictionary()  # locks
        # matchers at their beginning, of what was asked for last
        self._built: OrderedDict[bytes, Any] = OrderedDict()

    def compile(self, constraint: Constraint) -> Any:
        """The library's matcher at the grammar's beginning.

        Raises:
            RequestError: not a grammar, one that uses what is not supported, or one that is too
                large, too slow, or ended the worker; nothing else was touched.
            OverloadedError: no worker came free in time.
        """
        grammar_limits.check(constraint)
        name = digest_of(constraint)
        with self._lock:
            turn = self._turns.setdefault(name, threading.Lock())
        with turn:  # of several that ask for one grammar at once, the first has it compiled
            with self._lock:
                if (built := self._built.get(name)) is not None:
                    self._built.move_to_end(name)
                    return built.deep_copy()
            return self._compile(constraint, name)

    def _compile(self, constraint: Constraint, name: bytes) -> Any:
        """Raises: RequestError, OverloadedError: as `compile`."""
        self._try(constraint, name)
        with self._lock:
            if self._words is None:
                self._words = words(spelling(self._tokenizer), self._tokenizer.encode)
        try:
            matcher = on_stack(STACK_BYTES, lambda: build(self._words, constraint))
        except Exception as error:
            raise RequestError(
                f"the {constraint.kind} cannot be compiled: {error}"[:REASON_CHARACTERS]
            ) from None
        with self._lock:
            self._built[name] = matcher.deep_copy()
            if len(self._built) > KEPT:
                self._built.popitem(last=False)
        return matcher

    def close(self) -> None:
        """End the worker; the next grammar starts another."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _try(self, constraint: Constraint, name: bytes) -> None:
        """Have the worker compile it and walk through it; a grammar that it survived before is
        not tried again.
        """
        with self._lock:
            if name in self._survived:
                self._survived.move_to_end(name)
                return
            if self._worker is None:
                self._worker = WorkerPool(Trial, spelling(self._tokenizer), limits=TERMS)
            worker = self._worker
        [reason] = worker.call(
            "survive", constraint.kind.encode(), constraint.text.encode(), deadline_s=DEADLINE_S
        )
        if reason:
            raise RequestError(
                f"the {constraint.kind} cannot be compiled: {reason.decode('utf-8', 'replace')}"
            )
        with self._lock:
            self._survived[name] = None
            while len(self._survived) > REMEMBERED:
                self._survived.popitem(last=False)


def digest_of(constraint: Constraint) -> bytes:
    """What a grammar is known by.

    Raises:
        RequestError: half of a surrogate pair.
    """
    try:
        text = constraint.text.encode()
    except UnicodeEncodeError:
        raise RequestError(
            f"the {constraint.kind} holds half of a surrogate pair, which is no text; leave it out"
        ) from None
    return hashlib.sha256(constraint.kind.encode() + b"\0" + text).digest()


class Trial:
    """What the worker does: everything that the node will do with a grammar, on smaller stacks
    and measured.
    """

    def __init__(self, spelling: "Spelling") -> None:
        import llguidance

        # read when the library starts its first thread
        os.environ["RUST_MIN_STACK"] = str(TRIAL_MASK_STACK_BYTES)
        self._words = words(spelling, greedy(spelling[0]))
        self._size = len(spelling[0])
        self._executor = llguidance.LLExecutor(2)

    def survive(self, kind: bytes, text: bytes) -> list[bytes]:
        """Why the grammar is refused; empty if it is not."""
        constraint = Constraint(kind.decode(), text.decode())  # type: ignore[arg-type]  # our own parent's word
        try:
            on_stack(TRIAL_STACK_BYTES, lambda: self._walk(build(self._words, constraint)))
        except Exception as error:
            return [f"{error}"[:REASON_CHARACTERS].encode("utf-8", "replace")]
        return [b""]

    def _walk(self, matcher: Any) -> None:
        """Masks, guesses and forced tokens along one path; two matchers at once, so that the
        library's threads work too.

        Raises:
            RequestError: a mask takes too long, or the grammar gives up at its beginning.
        """
        twin, choose = matcher.deep_copy(), random.Random(len(self._words.tokenize_str("a")))
        # [4, tokens / 32], a bit for each token
        masks = np.zeros((4, -(-self._size // 32)), np.uint32)
        shape = (masks.ctypes.data, masks.shape[1] * 4, len(masks))
        for place in range(TRIAL_TOKENS):
            begun_s = time.thread_time()
            matcher.compute_bitmask()
            if (spent_s := time.thread_time() - begun_s) > MASK_S:
                raise RequestError(
                    f"it takes {spent_s:.1f} s for one token, {MASK_S:g} s are "
                    f"allowed; make it simpler"
                )
            self._executor.unsafe_compute_mask_ptr([(matcher, 0), (twin, 1)], *shape)
            allowed = np.flatnonzero(
                np.unpackbits(masks[0].view(np.uint8), bitorder="little", count=self._size)
            )
            if matcher.is_error() and place == 0:
                raise RequestError(matcher.get_error())
            if matcher.is_error() or matcher.is_stopped() or not len(allowed):
                return
            token = int(choose.choice(allowed))
            self._executor.unsafe_compute_mask_ptr_with_draft_token(
                [(matcher, 0, [token]), (twin, 2, [token])], *shape
            )
            matcher.validate_tokens([token, token])
            matcher.compute_ff_tokens()
            matcher.consume_token(token)
            twin.consume_token(token)


def build(words: Any, constraint: Constraint) -> Any:
    """Source, then matcher.

    Raises:
        RequestError: the library refuses it.
        ValueError: it is not even the source of a grammar.
    """
    import llguidance

    limits = llguidance.LLParserLimits(**LIMITS)
    matcher = llguidance.LLMatcher(words, _source(constraint), log_level=0, limits=limits)
    if matcher.is_error():
        raise RequestError(matcher.get_error())
    return matcher


def _source(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    match constraint.kind:
        case "json":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=LAYOUT)
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(constraint.text, overrides=LAYOUT)
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        case "lark":
            return LLMatcher.grammar_from_lark(constraint.text)


def on_stack(size: int, work: Callable[[], T]) -> T:
    """Do `work` on a thread whose stack has `size` bytes.

    Raises:
        RequestError: the library panicked; whatever else `work` raises.
    """
    outcome: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # a panic of Rust is no Exception
            failed.append(error)

    with _stacks:
        before = threading.stack_size(size)
        try:
            thread = threading.Thread(target=run, name="quietchoir-grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        if isinstance(failed[0], Exception):
            raise failed[0]
        raise RequestError(f"the library failed inside ({failed[0]})")
    return outcome[0]


# each token's bytes; special tokens; those that end an answer
Spelling = tuple[Sequence[bytes], Sequence[int], Sequence[int]]


def spelling(tokenizer: Tokenizer) -> Spelling:
    """A vocabulary as plain values, which travel to the worker."""
    vocabulary = tokenizer.vocabulary
    # A token without bytes could never be told from nothing: its own name stands for it, marked as
    # special.
    tokens = [
        piece or f"<|{number}|>".encode() for number, piece in enumerate(vocabulary.bytes_of())
    ]
    special = [number for number, kind in enumerate(vocabulary.token_types) if kind == CONTROL]
    return tokens, special, sorted(tokenizer.stop_tokens)


def words(spelling: Spelling, encode: Callable[[str], Sequence[int]]) -> Any:
    """The vocabulary as the library reads it."""
    import llguidance

    pieces, special, stops = spelling

    class WrappedVocabulary:
        eos_token_id = stops[0]
        bos_token_id = None
        special_token_ids = special
        tokens = pieces

        def __call__(self, text: bytes) -> list[int]:
            return list(encode(text.decode("utf-8", "replace")))

    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(WrappedVocabulary()), n_vocab=len(pieces), eos_token=list(stops)
    )


def greedy(tokens: Sequence[bytes]) -> Callable[[str], list[int]]:
    """Always the longest token that fits: no tokenizer, but any cut will do where only the
    grammar is on trial.
    """
    numbers = {token: number for number, token in enumerate(tokens)}
    longest = max(map(len, tokens))

    def encode(text: str) -> list[int]:
        rest, found = text.encode("utf-8", "replace"), []
        while rest:
            size = next(
                (size for size in range(min(longest, len(rest)), 0, -1) if rest[:size] in numbers),
                0,
            )
            if size:
                found.append(numbers[rest[:size]])
            rest = rest[size or 1 :]
        return found

    return encode
