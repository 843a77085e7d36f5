"""Searching and reading a library without saying what for.

Both halves of it, without any network: the asker turns an embedded question into ciphertext and
opens scores; the keeper multiplies (`he/ckks`). A passage is read out of a table (`table`) by a
query that hides its column (`lwe`). Knows shapes, noise and what the numbers mean. Knows nothing of
SEAL, identities, budgets or HTTP.
Always: every question has the same size and takes the same steps, every choice too.
"""

import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import CryptoError, ProtocolError, WorkerError
from ...core.worker import Worker
from ..he.ckks import (
    ROTATIONS,
    Asker,
    Multiplier,
    PlainMatrix,
    blocks_of,
    shard_of,
    slabs_of,
    split,
)
from ..he.parameters import SEARCH
from . import lwe
from .clusters import ClusterLayout, ClusterMap, ClusterTable
from .table import HEAD_BYTES, MAX_CHUNK_BYTES, TableLayout, chunk_bytes, pack

Scores = npt.NDArray[np.float32]

# standard deviation on a cosine; neighbours closer than this may change places
SCORE_NOISE = 2.0**-11
# the same of a question near itself: what CKKS makes of the hint's product comes to it
NEAR_NOISE = 2.0**-9
# largest error of the arithmetic alone, noise not counted; measured 1.0e-4 at 4096 passages and six
# keys, a deviation of 2^-15.3
SCORE_ERROR = 2.5e-4
# The hint times a ternary secret: words of 2^31 by a secret of norm 26, a deviation of 15 x 2^31.
# A thirty-second of it leaves the modulus of the cipher room for 8.5 deviations; how the two
# factors share it was measured: the hint's rounding and the cipher's noise are alike there.
HINT_FACTOR, SECRET_FACTOR = 2.0**0.25, 2.0**-5.25
HINT_UNIT = 2.0**31
MASK_UNIT: float = HINT_UNIT / HINT_FACTOR / SECRET_FACTOR
MOST_PRODUCT = 8  # of a hint with a secret, as it is opened
# On a product of hint and secret so scaled: 2^20 of a word, and 2^25 would change a symbol. It
# stands below the cipher's own noise: what an asker may learn of the table is bounded by the
# budget alone.
PASSAGE_NOISE = 2.0**-16
MAX_PASSAGES = 1 << 18  # 4 KB of the keepers' memory for each, at 384 dimensions
KEY_PART_BYTES = (SEARCH.rotation_keys_bytes(len(ROTATIONS)), SEARCH.public_key_bytes)
LARGEST_LABEL = 3.0  # a score of a label; the cipher holds numbers below 4
CALL_S = 60.0  # for a product, waiting for the worker included
WAITING = 4  # requests that wait for one worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What both halves must agree on. Every size on the wire follows from it, never from a message.

    Raises:
        ProtocolError: a library that this table of parameters cannot hold.
    """

    dimension: int  # of an embedding
    passages: int
    chunk_bytes: int  # of every passage in the table
    labels: int = 0  # of a classifier; 0 where there is none
    clustered: bool = False  # what is near a question can be scored alone

    def __post_init__(self) -> None:
        if (
            not 1 <= self.dimension <= SEARCH.slots
            or not 0 <= self.labels <= SEARCH.slots
            or not 1 <= self.passages <= MAX_PASSAGES
            or not HEAD_BYTES <= self.chunk_bytes <= MAX_CHUNK_BYTES
        ):
            raise ProtocolError(
                f"a library of {self.passages} passages of {self.chunk_bytes} bytes in "
                f"{self.dimension} dimensions, at most {MAX_PASSAGES} of {MAX_CHUNK_BYTES} in "
                f"{SEARCH.slots}; split the folder"
            )
        if self.clustered:
            _ = self.clusters  # which refuses fewer passages than clusters

    @property
    def clusters(self) -> ClusterLayout:
        """Where the passages stand near each other."""
        return ClusterLayout(self.passages, self.dimension)

    @property
    def layout(self) -> TableLayout:
        """Where the passages stand in their table."""
        return TableLayout(self.passages, self.chunk_bytes)

    @property
    def question_parts(self) -> tuple[int, ...]:
        """Bytes of a question: a ciphertext for each block of the embedding."""
        return len(blocks_of(self.dimension, SEARCH.slots)) * (SEARCH.seeded_bytes,)

    @property
    def answer_parts(self) -> tuple[int, ...]:
        """Bytes of an answer with scores: 32 KB for every 4096 passages, in one piece."""
        return (slabs_of(self.passages, SEARCH) * SEARCH.answer_bytes,)

    @property
    def label_parts(self) -> tuple[int, ...]:
        """Bytes of an answer with a score for each label."""
        return (slabs_of(self.labels, SEARCH) * SEARCH.answer_bytes,)

    @property
    def near_parts(self) -> tuple[int, ...]:
        """Bytes of a question near itself: the query, and its secret encrypted."""
        return 4 * self.clusters.columns, SEARCH.seeded_bytes

    @property
    def near_answer_parts(self) -> tuple[int, ...]:
        """Bytes of its answer: as it was scanned, and what takes its mask off."""
        rows = self.clusters.rows
        return 2 * rows, slabs_of(rows, SEARCH) * SEARCH.answer_bytes

    @property
    def choice_parts(self) -> tuple[int, ...]:
        """Bytes of one choice: the query, and its secret encrypted."""
        return 4 * self.layout.columns, SEARCH.seeded_bytes

    @property
    def column_parts(self) -> tuple[int, ...]:
        """Bytes of one answer with a column: as it was scanned, and what takes its mask off."""
        rows = self.layout.rows
        return 4 * rows, slabs_of(rows, SEARCH) * SEARCH.answer_bytes

    @property
    def largest_budget(self) -> int:
        """Most questions that one account may be granted.

        As many answers as dimensions give the embeddings away by linear algebra. So: less than
        half the dimension.

        Hazard: embeddings lie near fewer directions than they have dimensions, and others' texts
        tell which. Questions along these, of length 1, are like any others: of documentation
        (MiniLM) 64 tell every passage's embedding at a cosine of 0.79 in the median (0.86 with the
        map of clusters), 191 at 0.96 (0.97), and then a passage that one has is recognised.

        A question near itself is one of them: it asks the same embeddings, fewer at a time. An
        asker may put another vector into each group, and into each cluster of one; but a passage
        stands in one place, so it is asked along one direction a question, and at most this many in
        all. (The hint answers a second number a row, of a combination of the row's passages that
        nobody chooses; `private_search/README.md` says what is not covered of that.)

        Not covered: one who also asks louder than 1 lifts its answer out of the noise. The modulus
        caps that at 17.4 bits for each passage and question, whatever keys it made up (a test
        measures it), so 64 questions can hold a coarse embedding (2.9 bits a dimension of 384).
        Against such an asker the budget is a brake, not a bound.
        """
        return (self.dimension - 1) // 2


def takes_a_mask_off(product: npt.NDArray[np.float64]) -> None:
    """Raise ProtocolError unless these can be a hint's product with a secret."""
    if not np.isfinite(product).all() or np.abs(product).max() > MOST_PRODUCT:
        raise ProtocolError("the answer opens to numbers that take no mask off")


def unit(vector: Scores) -> npt.NDArray[np.float64]:
    """An embedded question, brought to length 1.

    Raises:
        CryptoError: not a number in it, or nothing but zeros.

    Hazard: call it before the first message of a session; a session that breaks off here tells of
    the question.
    """
    exact = np.asarray(vector, np.float64)
    length = float(np.linalg.norm(exact))
    if not np.isfinite(length) or length == 0:
        raise CryptoError(
            "a question whose embedding is not finite, or zero; put it in other words"
        )
    direction: npt.NDArray[np.float64] = exact / length
    return direction


def exactly(parts: Sequence[bytes], sizes: Sequence[int]) -> None:
    """Raise ProtocolError unless `parts` have these sizes."""
    if [len(part) for part in parts] != list(sizes):
        raise ProtocolError(
            f"parts of {[len(part) for part in parts]} bytes, expected {list(sizes)}; update both "
            f"sides"
        )


def largest(numbers: Scores, count: int) -> tuple[int, ...]:
    """Places of the largest of finite numbers, largest first, the first of equal ones.

    Each is looked for among all: sorting takes up to a hundred times longer for some orders than
    for others, and whoever sets the scores sets their order.
    """
    left, found = numbers.copy(), []
    for _ in range(count):
        found.append(int(left.argmax()))
        left[found[-1]] = -np.inf
    return tuple(found)


@dataclass(frozen=True, slots=True)
class PassageTable:
    """What a keeper reads passages from: a table and its hint, in memory or in .npy files."""

    table: lwe.Table | Path  # [rows, columns]
    hint: npt.NDArray[np.int32] | Path  # [rows, lwe.DIMENSION]
    layout: TableLayout

    @staticmethod
    def of(passages: Sequence[bytes]) -> "PassageTable":
        """In memory, of a few passages.

        Raises:
            DataError: a passage that is too long.
        """
        chunks = [pack(passage) for passage in passages]
        layout = TableLayout(len(chunks), chunk_bytes(chunks))
        table = layout.build(chunks)
        return PassageTable(table, lwe.hint(table), layout)


class PirServer:
    """The host's half: embeddings and passages in clear, questions and choices never.

    Each of `workers` processes (or of as many as there are parts to share) holds its part of the
    encoded matrices, and all of them work on one question; the table is scanned in the calling
    thread.

    Args:
        embeddings: [passages, dimension], rows of length 1; in memory or in an .npy file.
        labels: [labels, dimension], a linear classifier's, if any; scores of at most
        `LARGEST_LABEL`.
        clusters: what is scored near a question, where the library is large enough for it.
        noisy: False leaves answers bare. Hazard: only for tests that show what bare answers give
        away.

    Raises:
        ProtocolError: more passages or dimensions than the table of parameters holds.
        CryptoError: a passage table of other passages.
    """

    def __init__(
        self,
        embeddings: npt.NDArray[np.float32] | Path,
        passages: PassageTable,
        *,
        labels: npt.NDArray[np.float32] | None = None,
        clusters: ClusterTable | None = None,
        workers: int = 1,
        noisy: bool = True,
    ) -> None:
        self.clusters, self._noise = clusters, SCORE_NOISE if noisy else 0.0
        matrices = {
            "scores": PlainMatrix(embeddings, self._noise),
            "hint": PlainMatrix(
                passages.hint, PASSAGE_NOISE if noisy else 0.0, HINT_FACTOR / HINT_UNIT, paired=True
            ),
        }
        if labels is not None:
            matrices["labels"] = PlainMatrix(labels, self._noise)
        if clusters is not None:
            matrices["near"] = PlainMatrix(
                clusters.hint, PASSAGE_NOISE if noisy else 0.0, HINT_FACTOR / HINT_UNIT, paired=True
            )
        rows, dimension = matrices["scores"].open().shape
        self.shape = Shape(
            dimension=dimension,
            passages=rows,
            chunk_bytes=passages.layout.chunk_bytes,
            labels=0 if labels is None else len(labels),
            clustered=clusters is not None,
        )
        table = passages.table
        self.table: lwe.Table = np.load(table, mmap_mode="r") if isinstance(table, Path) else table
        if passages.layout.passages != rows or self.table.shape != passages.layout.shape:
            raise CryptoError(f"{rows} embeddings for other passages; build the index again")
        # of each matrix, its number for `shard_of`, and how many slabs it has
        self._slabs = {
            name: (number, slabs_of(len(matrix.open()), SEARCH))
            for number, (name, matrix) in enumerate(matrices.items())
        }
        workers = min(workers, sum(slabs for _, slabs in self._slabs.values()))
        self.workers = [
            Worker(Multiplier, SEARCH.name, matrices, shard, workers) for shard in range(workers)
        ]
        self._turns = [threading.Lock() for _ in self.workers]
        self._threads = ThreadPoolExecutor(WAITING * workers, "library")

    def start(self) -> None:
        """Encode the matrices now, in all workers at once.

        Raises:
            WorkerError: it took too long or did not fit the memory.
        """
        list(self._threads.map(Worker.start, self.workers))

    def check_keys(self, keys: Sequence[bytes]) -> None:
        """Let SEAL read an asker's public keys once.

        Raises:
            ProtocolError: wrong sizes or refused by SEAL.
            WorkerError: they crashed the worker.
        """
        exactly(keys, KEY_PART_BYTES)
        self._call(0, "check", *keys)

    def check_question(self, parts: Sequence[bytes]) -> None:
        """Raise ProtocolError unless `parts` has the size of a question."""
        exactly(parts, self.shape.question_parts)

    def check_choice(self, parts: Sequence[bytes]) -> None:
        """Raise ProtocolError unless `parts` has the size of a choice."""
        exactly(parts, self.shape.choice_parts)

    def score(self, keys: Sequence[bytes], question: Sequence[bytes]) -> list[bytes]:
        """Encrypted scores of all passages, for the key that `keys` belong to.

        Raises:
            ProtocolError: bytes of another size or that SEAL refuses.
            WorkerError: the bytes crashed a worker, or it was too slow.
        """
        self.check_question(question)
        return [self._begin("scores", keys, question)()]

    def classify(self, keys: Sequence[bytes], question: Sequence[bytes]) -> list[bytes]:
        """Encrypted scores of all labels.

        Raises:
            ProtocolError: no classifier here; or as `score`.
            WorkerError: as `score`.
        """
        self.check_question(question)
        if not self.shape.labels:
            raise ProtocolError("this library has no classifier; its manifest names no labels")
        return [self._begin("labels", keys, question)()]

    def check_near(self, parts: Sequence[bytes]) -> None:
        """Raise ProtocolError unless `parts` has the size of a question near itself."""
        if self.clusters is None:
            raise ProtocolError("this library has no clusters; ask it whole")
        exactly(parts, self.shape.near_parts)

    def near(self, keys: Sequence[bytes], parts: Sequence[bytes]) -> list[bytes]:
        """Scores of one cluster of each group, masked, and what takes the mask off, encrypted;
        which ones, only the asker knows.

        Raises:
            ProtocolError, WorkerError: as `score`.
        """
        self.check_near(parts)
        assert self.clusters is not None
        query, secret = parts
        begun = self._begin("near", keys, [secret])
        words = np.frombuffer(query, "<u4").astype(np.uint32)
        scores = self.clusters.scan(words, self._noise).astype("<u2").tobytes()
        return [scores, begun()]

    def read(self, keys: Sequence[bytes], choice: Sequence[bytes]) -> list[bytes]:
        """One column of the table, masked, and what takes the mask off, encrypted; which one, only
        the asker knows.

        Raises:
            ProtocolError, WorkerError: as `score`.
        """
        self.check_choice(choice)
        query, secret = choice
        begun = self._begin("hint", keys, [secret])
        words = np.frombuffer(query, "<u4").astype(np.uint32)
        column = lwe.scan(self.table, words).astype("<u4").tobytes()
        return [column, begun()]

    def close(self) -> None:
        """End the workers."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self.workers:
            worker.close()

    def _begin(
        self, name: str, keys: Sequence[bytes], vectors: Sequence[bytes]
    ) -> Callable[[], bytes]:
        number, slabs = self._slabs[name]
        places = [shard_of(number, slab, len(self.workers)) for slab in range(slabs)]
        calls = {
            shard: self._threads.submit(
                self._call, shard, "product", name.encode(), *keys, *vectors
            )
            for shard in set(places)
        }

        def end() -> bytes:
            parts = {shard: iter(call.result()) for shard, call in calls.items()}
            return b"".join(next(parts[shard]) for shard in places)

        return end

    def _call(self, shard: int, *told: Any) -> list[bytes]:
        turn = self._turns[shard]
        if not turn.acquire(timeout=CALL_S):
            raise WorkerError(f"no crypto worker was free within {CALL_S:g} s; ask again later")
        try:
            return self.workers[shard].call(*told, deadline_s=CALL_S)
        finally:
            turn.release()


@dataclass(frozen=True, slots=True)
class PassageChoice:
    """What a choice is hidden under, made before there is anything to choose from."""

    mask: lwe.Mask
    secret: bytes  # the mask's, encrypted

    def of(self, column: int) -> list[bytes]:
        """The parts of the choice of `column`: one addition, whatever it is."""
        return [self.mask.query(column).astype("<u4").tobytes(), self.secret]


@dataclass(frozen=True, slots=True)
class Near:
    """What opens the answer to a question near itself.

    Hazard: which clusters were opened tells what the question is near.
    """

    map: ClusterMap
    clusters: npt.NDArray[np.int64]  # [groups]


@dataclass(frozen=True, slots=True)
class Opened:
    """What an asker sends after a question, and what it may look at once all of it was sent.

    Hazard: `fault`, `scores` and `picked` are secrets until every one of `choices` left: an asker
    that stops, or says anything else in between, tells the host a bit of its question that the host
    may have chosen (it sets the scores).
    """

    choices: tuple[list[bytes], ...]  # as many as were asked for, whatever the answer opened to
    picked: tuple[int, ...]  # passages they choose, best first; chance where there is a fault
    scores: Scores | None  # [passages]; None where there is a fault
    fault: CryptoError | WorkerError | None  # why the answer is of no use


class PirClient:
    """The asker's half: one fresh key, in a worker, for the length of a session.

    Hazard: scores and passages are for the key's owner. What it sends after opening them must not
    depend on them, other than under encryption: `choose` is the only way from an answer to what is
    sent next, and always gives it.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._worker = Worker(Asker, SEARCH.name)

    def keys(self) -> list[bytes]:
        """Public keys for the keeper."""
        return self._worker.call("public_keys")

    def question(self, vector: Scores) -> list[bytes]:
        """Encrypt an embedded question, [dimension], brought to length 1.

        Raises:
            CryptoError: another dimension, or not a number in it.
        """
        direction = self._direction(vector)
        pieces = split(direction, SEARCH.slots)
        return self._worker.call("encrypt", *(piece.tobytes() for piece in pieces))

    def near(self, vector: Scores, known: ClusterMap) -> tuple[list[bytes], Near]:
        """Encrypt an embedded question for the clusters that are nearest to it, one a group.

        Raises:
            CryptoError: another dimension, or not a number in it.
        """
        direction = self._direction(vector)
        mask = lwe.mask(known.layout.columns, known.layout.group_columns)
        chosen = known.nearest(direction)
        secret = (SECRET_FACTOR * mask.secret).astype(np.float64).tobytes()
        query = known.query(mask, direction, chosen).astype("<u4").tobytes()
        return [query, *self._worker.call("encrypt", secret)], Near(known, chosen)

    def prepare(self, count: int) -> tuple[PassageChoice, ...]:
        """Masks for `count` choices, made before the question is sent; no more than there are
        passages.
        """
        count = min(count, self.shape.passages)
        masks = [lwe.mask(self.shape.layout.columns) for _ in range(count)]
        secrets_ = [(SECRET_FACTOR * mask.secret).astype(np.float64).tobytes() for mask in masks]
        sealed = self._worker.call("encrypt", *secrets_)
        return tuple(PassageChoice(mask, part) for mask, part in zip(masks, sealed, strict=True))

    def scores(self, answer: Sequence[bytes]) -> Scores:
        """Open scores, [passages]: cosines with an error of `SCORE_ERROR` and noise of deviation
        `SCORE_NOISE`.

        Raises:
            ProtocolError: not an answer to this question.
            WorkerError: our worker ended; the key is gone, begin a new session.
        """
        exactly(answer, self.shape.answer_parts)
        return self._scores(answer[0], self.shape.passages, 1.0)

    def labels(self, answer: Sequence[bytes]) -> Scores:
        """Open the scores of labels, [labels]; error, noise and errors raised as `scores`."""
        exactly(answer, self.shape.label_parts)
        return self._scores(answer[0], self.shape.labels, LARGEST_LABEL)

    def near_scores(self, answer: Sequence[bytes], near: Near) -> Scores:
        """Open the scores of the clusters that were asked, [passages]; below -1 elsewhere. They
        deviate by `NEAR_NOISE` (a test measures it), and by what the table's 8 bits round.

        Raises:
            ProtocolError, WorkerError: as `scores`.
        """
        exactly(answer, self.shape.near_answer_parts)
        product = self._opened(answer[1])[: self.shape.clusters.rows]
        # before they are looked at: the same work for all
        masked = np.clip(np.nan_to_num(product), -MOST_PRODUCT, MOST_PRODUCT) * MASK_UNIT
        scores = near.map.scores(np.frombuffer(answer[0], "<u2"), masked, near.clusters)
        takes_a_mask_off(product)
        return scores

    def _direction(self, vector: Scores) -> npt.NDArray[np.float64]:
        direction = unit(vector)
        if direction.shape != (self.shape.dimension,):
            raise CryptoError(
                f"a question of shape {direction.shape}, expected "
                f"({self.shape.dimension},); embed it again"
            )
        return direction

    def _masked(self, part: bytes, rows: int) -> npt.NDArray[np.float64]:
        product = self._opened(part)[:rows]
        takes_a_mask_off(product)
        return product * MASK_UNIT

    def _scores(self, part: bytes, count: int, largest: float) -> Scores:
        values = self._opened(part)[:count]
        found = values.astype(np.float32)  # before they are looked at: the same work for all
        if not np.isfinite(values).all() or np.abs(values).max() > largest + 16 * SCORE_NOISE:
            raise ProtocolError(
                "the answer opens to numbers that are no cosines: its host, or the line, is broken "
                "or hostile. The host "
                "was not told; asking again would tell it, so ask its owner first"
            )
        return found

    def choose(
        self, answer: Sequence[bytes], prepared: Sequence[PassageChoice], near: Near | None = None
    ) -> Opened:
        """As many choices as were prepared, after an answer with scores; never raises for what the
        answer is or opens to.

        Where it is of no use, also where it ends our worker, passages are chosen by chance, and
        nothing of what the host sees is different: choices were masked before the answer was
        touched, and what is left to do is an addition each. The work is the same as well: numbers
        are drawn by chance before the answer is opened, whether they are needed or not, and the
        best are found by steps that do not depend on the numbers.
        """
        chance = np.random.default_rng(secrets.randbits(128)).random(
            self.shape.passages, np.float32
        )
        fault: CryptoError | WorkerError | None = None
        scores = chance
        try:
            scores = self.scores(answer) if near is None else self.near_scores(answer, near)
        except (CryptoError, WorkerError) as error:
            fault = error
        best = largest(scores, len(prepared))
        column_of = self.shape.layout.column_of
        choices = tuple(
            each.of(column_of(index)) for each, index in zip(prepared, best, strict=True)
        )
        return Opened(choices, best, None if fault else scores, fault)

    def passage(self, answer: Sequence[bytes], index: int) -> bytes:
        """Open the passage `index` out of the column that was chosen.

        Raises:
            ProtocolError, WorkerError: as `scores`.
        """
        exactly(answer, self.shape.column_parts)
        layout = self.shape.layout
        masked = self._masked(answer[1], layout.rows)
        words = np.frombuffer(answer[0], "<u4").astype(np.uint32)
        return layout.read(lwe.symbols(words, masked), index)

    def close(self) -> None:
        """End the worker, and with it the key."""
        self._worker.close()

    def _opened(self, part: bytes) -> npt.NDArray[np.float64]:
        size = SEARCH.answer_bytes
        answers = [part[start : start + size] for start in range(0, len(part), size)]
        opened = self._worker.call("decrypt", *answers)
        # it read the host's bytes: not trusted more than they
        exactly(opened, [16 * SEARCH.slots] * len(answers))
        return np.concatenate([np.frombuffer(each, np.float64) for each in opened])
