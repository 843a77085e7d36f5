"""Searching and reading a library without saying what for.

Both halves of it, without any network: the asker turns an embedded question into ciphertext and
opens scores; the keeper multiplies. Reading a passage is the same multiplication: the passages are
the columns of a matrix of bytes, the choice is an encrypted vector with a single one, so that the
keeper does not learn which passage was read either. Knows shapes, noise and what the numbers mean.
Knows nothing of SEAL, identities, budgets or HTTP.
Always: every question has the same size and takes the same steps, every choice too.
"""

import os
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...core.errors import CryptoError, DataError, ProtocolError, WorkerError
from ...core.worker import Worker, WorkerPool
from ..he.ckks import ROTATIONS, Asker, Multiplier
from ..he.parameters import SEARCH

Scores = npt.NDArray[np.float32]

# standard deviation on a cosine; neighbours closer than this may change places
SCORE_NOISE = 2.0**-9
PASSAGE_NOISE = 2.0**-12  # on a byte scaled to [-0.5, 0.5): 8 deviations to the next byte
# largest error of the arithmetic alone, noise not counted; measured 2.5e-4 at 1000 passages
SCORE_ERROR = 5e-4
PASSAGE_HEAD = 6  # length (2 bytes) and CRC-32 (4 bytes)
PASSAGE_BYTES = SEARCH.slots - PASSAGE_HEAD  # 2042: a passage and the name of its file
MAX_PASSAGES = 2 * SEARCH.slots  # 32 KB of the keeper's memory for each
KEY_PART_BYTES = (SEARCH.rotation_keys_bytes(len(ROTATIONS)), SEARCH.public_key_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What both halves must agree on. Counts of ciphertexts follow from it, never from a message.

    Raises:
        ProtocolError: a library that this table of parameters cannot hold.
    """

    dimension: int  # of an embedding
    passages: int

    def __post_init__(self) -> None:
        if not 1 <= self.dimension <= SEARCH.slots or not 1 <= self.passages <= MAX_PASSAGES:
            raise ProtocolError(
                f"a library of {self.passages} passages in {self.dimension} dimensions, "
                f"at most {MAX_PASSAGES} in {SEARCH.slots}; split the folder"
            )

    @property
    def choice_parts(self) -> int:
        """Ciphertexts of one choice, and of one answer with scores: one for every 2048 passages."""
        return -(-self.passages // SEARCH.slots)

    @property
    def largest_budget(self) -> int:
        """Most questions that one account may be granted.

        As many answers as dimensions give the embeddings away by linear algebra, and an asker who
        departs from the protocol can put a second question into the imaginary parts. So: less than
        half the dimension.

        Not covered: one who also asks louder than 1 lifts its answer out of the noise. The modulus
        caps that at about 37 bits for each passage and question, so 64 questions can hold a coarse
        embedding (6 bits a dimension). Against such an asker the budget is a brake, not a bound.
        """
        return (self.dimension - 1) // 2


def passage_column(text: bytes) -> npt.NDArray[np.uint8]:
    """Length, checksum, text and random filling: one column, [2048] bytes.

    Raises:
        DataError: longer than `PASSAGE_BYTES`.
    """
    if len(text) > PASSAGE_BYTES:
        raise DataError(f"a passage of {len(text)} bytes, at most {PASSAGE_BYTES}; split it")
    head = len(text).to_bytes(2, "big") + zlib.crc32(text).to_bytes(4, "big")
    return np.frombuffer(head + text + os.urandom(PASSAGE_BYTES - len(text)), np.uint8)


def passage_matrices(passages: Sequence[bytes]) -> list[npt.NDArray[np.float32]]:
    """Columns of numbers in [-0.5, 0.5), 2048 passages to a matrix [2048, <= 2048]."""
    columns = np.stack([passage_column(text) for text in passages], axis=1).astype(np.float32)
    centred: npt.NDArray[np.float32] = (columns + np.float32(0.5)) / np.float32(256) - np.float32(
        0.5
    )
    return [
        centred[:, start : start + SEARCH.slots] for start in range(0, len(passages), SEARCH.slots)
    ]


def passage_text(column: npt.NDArray[np.float64]) -> bytes:
    """The passage out of its decrypted column.

    Raises:
        ProtocolError: length or checksum do not fit; the keeper answered something else.
    """
    values = np.clip(np.floor((column + 0.5) * 256), 0, 255).astype(np.uint8).tobytes()
    length, check = int.from_bytes(values[:2], "big"), int.from_bytes(values[2:PASSAGE_HEAD], "big")
    text = values[PASSAGE_HEAD : PASSAGE_HEAD + length]
    if length > PASSAGE_BYTES or zlib.crc32(text) != check:
        raise ProtocolError(
            "the answer is not a passage of this library; its host was not told, and asking again "
            "would tell it"
        )
    return text


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


def _exactly(parts: Sequence[bytes], count: int, size: int) -> None:
    if len(parts) != count or any(len(part) != size for part in parts):
        raise ProtocolError(
            f"ciphertexts of {[len(part) for part in parts]} bytes, expected {count} of {size}; "
            f"update both sides"
        )


class PirServer:
    """The host's half: embeddings and passages in clear, questions and choices never.

    Args:
        embeddings: [passages, dimension], rows of length 1.
        noisy: False leaves answers bare. Hazard: only for tests that show what bare answers give
        away.

    Raises:
        ProtocolError: more passages or dimensions than the table holds.
        DataError: a passage that is too long.
    """

    def __init__(
        self,
        embeddings: npt.NDArray[np.float32],
        passages: Sequence[bytes],
        *,
        workers: int = 1,
        noisy: bool = True,
    ) -> None:
        self.shape = Shape(dimension=embeddings.shape[1], passages=len(passages))
        if len(embeddings) != len(passages):
            raise CryptoError(
                f"{len(embeddings)} embeddings for {len(passages)} passages; embed them again"
            )
        matrices = {
            "scores": ([embeddings], SCORE_NOISE if noisy else 0.0),
            "passage": (passage_matrices(passages), PASSAGE_NOISE if noisy else 0.0),
        }
        self.workers = WorkerPool(Multiplier, SEARCH.name, matrices, size=workers)

    def start(self) -> None:
        """Encode the matrices now.

        Raises:
            WorkerError: it took too long or did not fit the memory.
        """
        self.workers.start()

    def check_sizes(self, keys: Sequence[bytes]) -> None:
        """Raise ProtocolError unless `keys` have the sizes of public keys."""
        if tuple(map(len, keys)) != KEY_PART_BYTES:
            found = [len(key) for key in keys]
            raise ProtocolError(
                f"keys of {found} bytes, expected {list(KEY_PART_BYTES)}; update both sides"
            )

    def check_keys(self, keys: Sequence[bytes]) -> None:
        """Let SEAL read an asker's public keys once.

        Raises:
            ProtocolError: wrong sizes or refused by SEAL.
            WorkerError: they crashed the worker.
        """
        self.check_sizes(keys)
        self.workers.call("check", *keys)

    def check_question(self, parts: Sequence[bytes]) -> None:
        """Raise ProtocolError unless `parts` has the size of a question."""
        _exactly(parts, 1, SEARCH.seeded_bytes)

    def check_choice(self, parts: Sequence[bytes]) -> None:
        """Raise ProtocolError unless `parts` has the size of a choice."""
        _exactly(parts, self.shape.choice_parts, SEARCH.seeded_bytes)

    def score(self, keys: Sequence[bytes], question: Sequence[bytes]) -> list[bytes]:
        """Encrypted scores of all passages, for the key that `keys` belong to.

        Raises:
            ProtocolError: bytes of another size or that SEAL refuses.
            WorkerError: the bytes crashed the worker, or it was too slow.
        """
        self.check_question(question)
        return self.workers.call("product", b"scores", *keys, *question)

    def read(self, keys: Sequence[bytes], choice: Sequence[bytes]) -> list[bytes]:
        """One encrypted passage; which one, only the asker knows.

        Raises:
            ProtocolError, WorkerError: as `score`.
        """
        self.check_choice(choice)
        return self.workers.call("product", b"passage", *keys, *choice)

    def close(self) -> None:
        """End the workers."""
        self.workers.close()


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
        direction = unit(vector)
        if direction.shape != (self.shape.dimension,):
            raise CryptoError(
                f"a question of shape {direction.shape}, expected "
                f"({self.shape.dimension},); embed it again"
            )
        return self._worker.call("encrypt", direction.tobytes())

    def scores(self, answer: Sequence[bytes]) -> Scores:
        """Open scores, [passages]: cosines with an error of `SCORE_ERROR` and noise of deviation
        `SCORE_NOISE`.

        Raises:
            ProtocolError: not an answer to this question.
            WorkerError: the host's bytes crashed our worker; the key is gone, begin a new session.
        """
        _exactly(answer, self.shape.choice_parts, SEARCH.ciphertext_bytes)
        parts = self._worker.call("decrypt", *answer)
        # it read the host's bytes: not trusted more than they
        _exactly(parts, self.shape.choice_parts, 8 * SEARCH.slots)
        values = np.concatenate([np.frombuffer(part, np.float64) for part in parts])[
            : self.shape.passages
        ]
        if not np.isfinite(values).all() or np.abs(values).max() > 1 + 16 * SCORE_NOISE:
            raise ProtocolError(
                "the answer opens to numbers that are no cosines: its host, or the line, is broken "
                "or hostile. The host "
                "was not told; asking again would tell it, so ask its owner first"
            )
        return values.astype(np.float32)

    def choose(self, answer: Sequence[bytes], count: int) -> Opened:
        """The next `count` choices after an answer with scores; never raises for what the answer is
        or opens to.

        Decoys are encrypted before the answer is touched, and leave instead of choices where it is
        of no use: also an answer that ends our worker, and the key with it, changes nothing that
        the host sees. The work is the same as well: where the scores are of no use, as many choices
        are sorted out and encrypted, by chance, and thrown away. Encrypting them takes ten
        milliseconds, which a host can tell.
        """
        count = min(count, self.shape.passages)
        chance = tuple(secrets.SystemRandom().sample(range(self.shape.passages), count))
        decoys = tuple(self.choice(index) for index in chance)
        fault: CryptoError | WorkerError | None = None
        try:
            scores = self.scores(answer)
        except WorkerError as error:  # by its bytes, which the host knows: no secret
            return Opened(decoys, chance, None, error)
        except CryptoError as error:
            fault, scores = error, np.random.default_rng().random(self.shape.passages, np.float32)
        best = tuple(int(index) for index in np.argsort(-scores, kind="stable")[:count])
        try:
            choices = tuple(self.choice(index) for index in best)
        except (CryptoError, WorkerError) as error:
            fault = fault or error
        return (
            Opened(decoys, chance, None, fault)
            if fault is not None
            else Opened(choices, best, scores, None)
        )

    def choice(self, index: int) -> list[bytes]:
        """Encrypt the choice of passage `index`.

        Raises:
            CryptoError: no such passage.
        """
        if not 0 <= index < self.shape.passages:
            raise CryptoError(f"passage {index} does not exist, there are {self.shape.passages}")
        whole = np.zeros(self.shape.passages)
        whole[index] = 1.0
        blocks = np.split(whole, range(SEARCH.slots, self.shape.passages, SEARCH.slots))
        return self._worker.call("encrypt", *(block.tobytes() for block in blocks))

    def passage(self, answer: Sequence[bytes]) -> bytes:
        """Open the passage that was chosen.

        Raises:
            ProtocolError, WorkerError: as `scores`.
        """
        _exactly(answer, 1, SEARCH.ciphertext_bytes)
        column = self._worker.call("decrypt", *answer)
        _exactly(column, 1, 8 * SEARCH.slots)
        return passage_text(np.frombuffer(column[0], np.float64))

    def close(self) -> None:
        """End the worker, and with it the key."""
        self._worker.close()
