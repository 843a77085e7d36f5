"""The suite `search`: what a private question costs, among 1,000, 10,000 and 100,000 passages.

Knows Python's and the system's documentation as they lie on a Debian machine (pages, and texts
packed or not; no change logs), and the questions of two FAQs (`retrieval`). Passages are cut as the
product cuts them; of 100,000 each is cut to 48 words (34 on average) once more, since embedding is
what takes time. Vectors are kept in the node's home by their text and the model, so that a run that
was stopped embeds what is left, also after the kernels were built anew; the product's own index is
built of them in every run.
Always: every question is asked under encryption and in clear, and recall is of the ten best in
clear; every passage that is fetched is compared with the text; TenSEAL's own matrix product, on the
same vectors, takes its turn in the same run. A size that fails is named, and the others are
measured.

One thread does all the work that is counted, and its own processor time is what counts: a library
of linear algebra spins in other threads for a tenth of a second after each product. `question_s`
alone is on the wall, over HTTP on
loopback, with as many workers as cores. TenSEAL's product holds 3712 passages of 384 dimensions in
its slots and computes wrongly beyond without saying so: a larger library is counted as that many
products, of which one is measured.
The table is scanned cold: before each time that counts, other memory is read, more than a cache
holds.
Not covered: a line with a latency; other clients at the same time; 100,000 passages of 160 words.
"""

import asyncio
import gzip
import html
import itertools
import multiprocessing
import re
import socket
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import aiohttp
import numpy as np
import numpy.typing as npt

from ...core.engine.embedder import SentenceEmbedder
from ...core.errors import QuietchoirError
from ...core.hardware.discovery import core_count
from ...core.models.hub import catalog
from ...core.paths import home, private_folder
from ...core.worker import Worker
from ...crypto.identity.keys import Identity
from ...crypto.pir import kernel, lwe
from ...crypto.pir import search as pir
from ...private_search import index
from ...private_search.budget import QueryBudget
from ...private_search.client import PROBE_COSINE, LibraryAddress, SearchCost, SearchSession
from ...private_search.commands import MAX_QUERIES
from ...private_search.host import LibraryService, serve
from ...private_search.index import Index, Passage
from .figures import Figure, Keep, nobody
from .retrieval import DOCS, questions
from .stopwatch import Sample, clock, put

WHAT = "private questions among passages of Python's and the system's documentation"
Result = TypeVar("Result")
# What `--only` may name, with about how long it takes on two quiet cores; embedding once.
PARTS = {
    "1k": "1,000 passages of at most 160 words; what answers give away (1 minute)",
    "10k": "10,000 of them (3 minutes, and 3 to embed them)",
    "100k": "100,000 of at most 48 words, whole and near the question (6 minutes, and 8)",
}
BEST = 10  # recall is of so many
# Two scores are a tie where they differ by less than so many deviations of what a difference of two
# noisy ones is off by: neighbours so close change places by chance.
TIE = 4 * 2**0.5
CHECKED = 16  # vectors of an earlier run that are made again, to see that they are the same
SHOWN = 2  # places of a score that an asker is shown: finer digits carry noise
MM_BITS = (40, 26, 40)
MM_DEGREE = 8192
TEXTS = re.compile(r"(README.*|NEWS.*|.*\.(txt|md|rst))(\.gz)?")  # names of files that are read
HIDDEN = re.compile(r"<(script|style|head|nav)\b.*?</\1>", re.S | re.I)


@dataclass(frozen=True, slots=True)
class LibrarySize:
    """One library, and how often it is asked."""

    passages: int
    words: int  # of a passage, at most
    asked: int = 200
    fetched: int = 10
    whole: int = 5  # questions over HTTP
    clustered: bool | None = None  # None: as the product does


SIZES = {
    "1k": LibrarySize(1_000, index.PASSAGE_WORDS),
    "10k": LibrarySize(10_000, index.PASSAGE_WORDS),
    "100k": LibrarySize(100_000, 48),
}
QUICK = {
    name: LibrarySize(count, 24, asked=2, fetched=1, whole=1, clustered=count > 40)
    for name, count in (("1k", 20), ("10k", 40), ("100k", 300))
}


class InProcess(Worker):
    """A worker whose service lives here, so that this process's clock counts it."""

    def start(self) -> None:
        """Construct it, if it is not there."""
        if not hasattr(self, "_service_here"):
            self._service_here = self._service(*self._arguments)

    def call(self, method: str, *blobs: bytes, deadline_s: float = 60.0) -> list[bytes]:
        """As a worker."""
        del deadline_s
        self.start()
        return [bytes(part) for part in getattr(self._service_here, method)(*blobs)]


class InThread(Executor):
    """Runs what it is given where it is called, so that this thread's clock counts it."""

    def __init__(self, *_: object) -> None:
        """As a pool of threads."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Run it, and hold what came of it."""
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments, **named))
        except BaseException as error:
            done.set_exception(error)
        return done


def alone() -> ExitStack:
    """Within the block host and asker are made so that all they do is done in the calling
    thread.
    """
    both = ExitStack()
    both.enter_context(mock.patch.object(pir, "Worker", InProcess))
    both.enter_context(mock.patch.object(pir, "ThreadPoolExecutor", InThread))
    return both


@dataclass(frozen=True, slots=True)
class Recall:
    """What one question found, beside what the same finds in clear."""

    share: float  # of the ten best
    rounded: float  # of what was found, as good as the tenth best by the digits that are shown
    tied: float  # of what was found, as good as the tenth best, or a tie with it
    lost_by: float  # cosine that the tenth best has over the worst that was found

    @staticmethod
    def of(
        clear: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], noise: float
    ) -> "Recall":
        """Of scores in clear, and those that were opened: off by a deviation of `noise`."""
        right, found = best_of(clear), best_of(scores)
        tenth, own = float(clear[right].min()), clear[found]
        rounded = np.round(own, SHOWN) >= round(tenth, SHOWN)
        return Recall(
            len(set(right) & set(found)) / len(right),
            float(rounded.mean()),
            float((own >= tenth - TIE * noise).mean()),
            tenth - float(own.min()),
        )

    @staticmethod
    def figures(recalls: Sequence["Recall"]) -> dict[str, float]:
        """Means over all questions, and the largest loss."""
        return {
            "recall_at_10": statistics.fmean(each.share for each in recalls),
            "recall_rounded": statistics.fmean(each.rounded for each in recalls),
            "recall_tied": statistics.fmean(each.tied for each in recalls),
            "lost_by": max(each.lost_by for each in recalls),
        }


class KeptEmbedder:
    """An embedder that never embeds a text twice, and the processor seconds that it took.

    Vectors are of one model, whichever build of its kernels made them: builds differ by less than
    two askers of a library may. Some are made again, and all are forgotten where they are others.
    """

    def __init__(self, embedder: SentenceEmbedder) -> None:
        self.embedder, self.seconds, self.embedded = embedder, 0.0, 0
        model = sha256(embedder.identity.encode()).hexdigest()[:16]
        path = private_folder(home() / "bench") / f"search-{model}.vectors"
        self._vectors = index.VectorFile(path, embedder.width)

    def fill(self, texts: Sequence[str], tell: Callable[[str], None]) -> None:
        """Embed those of these that are new; on the disk after every few."""
        known = [text for text in texts if digest(text) in self._vectors.found]
        again = known[:: max(1, len(known) // CHECKED)]
        if again:
            cosines = (self.embed(again) * self.embedder.embed(again)).sum(axis=1)
            if not cosines.min() >= PROBE_COSINE:
                tell(f"  vectors of an earlier run are others ({cosines.min():.4f}): made anew")
                self._vectors.keep(())
        missing = [text for text in dict.fromkeys(texts) if digest(text) not in self._vectors.found]
        self.seconds, self.embedded = 0.0, len(missing)
        for start in range(0, len(missing), index.AT_ONCE):
            if start % (100 * index.AT_ONCE) == 0:
                tell(f"  {start} of {len(missing)} passages embedded, {self.seconds:.0f} s")
            part = missing[start : start + index.AT_ONCE]
            vectors, seconds = timed(partial(self.embedder.embed, part))
            self._vectors.add([digest(text) for text in part], vectors)
            self.seconds += seconds

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """As the embedder."""
        found = self._vectors.found
        new = [text for text in texts if digest(text) not in found]
        fresh = dict(zip(new, self.embedder.embed(new), strict=True))
        return np.stack([fresh[one] if one in fresh else found[digest(one)] for one in texts])


def digest(text: str) -> bytes:
    """Names a text among vectors."""
    return sha256(text.encode()).digest()[: index.DIGEST_BYTES]


def measure(
    *, quick: bool, tell: Callable[[str], None], keep: Keep = nobody, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Build, ask, fetch, and time.

    Raises:
        ConfigError: the documentation or the embedding model is not on this machine; says how to
        get it.
        QuietchoirError: a size could not be measured whole; the others were.
    """
    embedder = SentenceEmbedder.load(catalog.find("minilm-l6-v2"))
    asked = [question for name in ("python", "debian") for question, _ in questions(name)]
    sizes = QUICK if quick else SIZES
    sizes = {name: size for name, size in sizes.items() if name in (only or PARTS)}
    report: dict[str, Any] = {
        "what": WHAT,
        "seed": "none: nothing is drawn but keys and noise",
        "clock": "processor seconds of one thread; question_s is on the wall",
        "parts": list(sizes),
        "repeats": {"questions": len(asked)},
        "spread": {},
        "exact": True,
        "ended": {},
    }
    memory = np.ones(1 << (20 if quick else 25), np.uint64)
    report["memory_gb_s"] = memory.nbytes / best(memory.sum) / 1e9
    report["kernel"] = kernel.paths() > 0
    kept = KeptEmbedder(embedder)
    for name, size in sizes.items():
        try:
            with tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as room:
                measure_size(report, name, size, kept, asked, memory, Path(room), tell, keep)
        except Exception as error:  # whatever it is: the other sizes are measured
            report["ended"][name] = f"{type(error).__name__}: {error}"
            tell(f"{name} ended: {traceback.format_exc()}")
        keep(report)
    if report["ended"]:
        raise QuietchoirError(
            "; ".join(f"{name} ended: {words}" for name, words in report["ended"].items())
        )
    if "100k" in report:
        report["pir"] = report["100k"]["pir"]
    return report


def measure_size(
    report: dict[str, Any],
    name: str,
    size: LibrarySize,
    kept: KeptEmbedder,
    asked: Sequence[str],
    memory: npt.NDArray[np.uint64],
    room: Path,
    tell: Callable[[str], None],
    keep: Keep,
) -> None:
    """All of one size's figures; kept after each step."""
    passages = list(itertools.islice(documentation(size.words), size.passages))
    tell(f"{name}: vectors of {len(passages)} passages")
    kept.fill([passage.text for passage in passages], tell)
    tell(f"{name}: index of them")
    built, seconds = timed(partial(index.build, passages, kept, room, clustered=size.clustered))
    vectors = kept.embedder.embed(asked[: size.asked])
    report[name] = {
        "passages": built.passages,
        "words": size.words,
        "words_mean": statistics.fmean(len(passage.text.split()) for passage in passages),
        "index_s": seconds,
        "embedded": kept.embedded,
        "embed_s": kept.seconds,
    }
    keep(report)
    tell(f"{name}: {len(vectors)} questions")
    ask_all(report, name, built, built.ordered(passages), vectors, size)
    report[name]["pir"] |= scanned(built, memory, report["memory_gb_s"])
    keep(report)
    if built.clusters is not None:
        tell(f"{name}: the same near themselves")
        ask_near(report, name, built, vectors)
        keep(report)
    tell(f"{name}: {size.whole} questions over HTTP")
    ways = [name] if built.clusters is None else [name, f"{name}.clustered"]
    for way in ways:
        asyncio.run(whole_questions(report, way, built, kept.embedder, asked[: size.whole]))
        keep(report)
    tell(f"{name}: TenSEAL's product")
    mm_s = tenseal_seconds(built, vectors[0])
    report[name]["ratio_mm"] = 1000 * mm_s / report[name]["server_ms"]
    keep(report)
    if name == "10k":
        tell("10k: the same without flooding")
        report[name]["recall_bare"] = bare_recall(built, vectors)
    if name == "1k":
        tell("1k: as many questions as dimensions")
        report["stolen"] = stolen(built)


def figures(report: Mapping[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    aims = {"10k": (100.0, 200.0, 20.0, 1.0), "100k": (800.0, None, None, None), "1k": (None,) * 4}
    for name in report["parts"]:
        server, kb, ratio, question = aims[name]
        among = f"among {report[name]['passages']} passages"
        yield Figure(f"{name}.server_ms", "ms", f"{among}: host, scores", at_most=server)
        yield Figure(f"{name}.plain_ms", "ms", "the same in clear")
        yield Figure(f"{name}.ratio_mm", "", "TenSEAL's mm, times ours", at_least=ratio)
        yield Figure(f"{name}.client_ms", "ms", "asker, scores: encrypt and open")
        yield Figure(f"{name}.up_kb", "kB", "question up")
        yield Figure(f"{name}.down_kb", "kB", "scores down")
        yield Figure(f"{name}.kb", "kB", "both", at_most=kb)
        yield Figure(f"{name}.key_kb", "kB", "keys, once a session")
        yield Figure(f"{name}.recall_at_10", "", "of the ten best in clear", at_least=1)
        yield from tie_figures(name)
        if name == "10k":
            yield Figure(f"{name}.recall_bare", "", "the same, answers not flooded with noise")
        yield Figure(f"{name}.pir.server_ms", "ms", "host, one passage")
        yield Figure(f"{name}.pir.scan_ms", "ms", "of it, the table")
        yield Figure(f"{name}.pir.blas_ms", "ms", "the same by BLAS")
        yield Figure(f"{name}.pir.client_ms", "ms", "asker, one passage")
        yield Figure(f"{name}.pir.kb", "kB", "one passage, both ways")
        yield Figure(f"{name}.pir.hint_mb", "MB", "hint downloaded")
        yield Figure(f"{name}.pir.hint_kept_mb", "MB", "hint that the host keeps")
        yield Figure(f"{name}.break_even", "", "questions after which a download is cheaper")
        yield Figure(f"{name}.start_s", "s", "host's matrices encoded, one thread")
        yield Figure(f"{name}.embedded", "", "passages embedded now; the rest by a run before")
        yield Figure(f"{name}.embed_s", "s", "of these, all together")
        yield Figure(f"{name}.index_s", "s", "index built of them")
        yield Figure(f"{name}.peak_mb", "MB", "workers' memory, all together")
        yield Figure(f"{name}.question_s", "s", "a whole question on the wall", at_most=question)
        if "clustered" in report[name]:
            yield from near_figures(f"{name}.clustered")
    if "1k" in report["parts"]:
        yield Figure("stolen.error", "", "embeddings, off by: a question a dimension, no budget")
        yield Figure("stolen.granted_error", "", "the same from what a budget grants at most")
        yield Figure("stolen.granted_cosine", "", "cosine of such an embedding with the passage's")
        yield Figure("stolen.default_cosine", "", "the same from what a budget grants unless told")
    yield Figure("memory_gb_s", "GB/s", "memory, read by one thread")
    if "100k" in report["parts"]:
        yield Figure("pir.gb_per_s", "GB/s", "table scanned")
        yield Figure("pir.bandwidth_fraction", "", "of the memory's speed", at_least=0.6)


def tie_figures(name: str, at_least: float | None = 1) -> Iterator[Figure]:
    """Rows of what neighbours that lie close make of the ten best."""
    yield Figure(
        f"{name}.recall_tied",
        "",
        f"as good as these, or a tie: {TIE / 2**0.5:.0f} deviations of a difference",
        at_least=at_least,
    )
    yield Figure(f"{name}.recall_rounded", "", "as good as these by the shown digits")
    yield Figure(f"{name}.lost_by", "", "cosine by which the worst found is below the tenth")


def near_figures(name: str) -> Iterator[Figure]:
    """Rows of questions near themselves."""
    yield Figure(f"{name}.server_ms", "ms", "host, scores near a question", at_most=200)
    yield Figure(f"{name}.scan_ms", "ms", "of it, the table")
    yield Figure(f"{name}.client_ms", "ms", "asker: mask, encrypt and open")
    yield Figure(f"{name}.up_kb", "kB", "question up")
    yield Figure(f"{name}.down_kb", "kB", "scores down")
    yield Figure(f"{name}.kb", "kB", "both")
    yield Figure(f"{name}.map_kb", "kB", "map of the clusters, once a session")
    yield Figure(f"{name}.map_cosine", "", "largest of a mean that the map tells with a passage")
    yield Figure(f"{name}.recall_at_10", "", "of the ten best in clear", at_least=0.95)
    yield Figure(f"{name}.recall_opened", "", "of these, in the part that was scored")
    yield from tie_figures(name, at_least=None)
    yield Figure(f"{name}.opened", "", "of the library scored, whichever part it was")
    yield Figure(f"{name}.peak_mb", "MB", "workers' memory, all together")
    yield Figure(f"{name}.question_s", "s", "a whole question on the wall")


def ask_all(
    report: dict[str, Any],
    name: str,
    built: Index,
    passages: Sequence[Passage],
    vectors: npt.NDArray[np.float32],
    size: LibrarySize,
) -> None:
    """Every question, in this process: times, sizes, recall; and some passages."""
    found = report[name]
    rows = built.rows()
    with alone():
        server = pir.PirServer(built.embeddings, built.table)
        _, found["start_s"] = own_time(server.start)
        client = pir.PirClient(server.shape)
    times: dict[str, list[float]] = {
        each: []
        for each in ("server_ms", "client_ms", "plain_ms", "pir.server_ms", "pir.client_ms")
    }
    keys, recalls = client.keys(), []
    server.check_keys(keys)
    for number, vector in enumerate(vectors):
        question, asker = own_time(partial(client.question, vector))
        answer, host = own_time(partial(server.score, keys, question))
        scores, opening = own_time(partial(client.scores, answer))
        clear, plain = timed(partial(np.matmul, rows, vector))
        times["server_ms"].append(host)
        times["client_ms"].append(asker + opening)
        times["plain_ms"].append(plain)
        recalls.append(Recall.of(clear, scores, pir.SCORE_NOISE))
        if number < size.fetched:
            wanted = int(scores.argmax())
            prepared, asker = own_time(partial(client.prepare, 1))
            choice = prepared[0].of(server.shape.layout.column_of(wanted))
            column, host = own_time(partial(server.read, keys, choice))
            text, opening = own_time(partial(client.passage, column, wanted))
            times["pir.server_ms"].append(host)
            times["pir.client_ms"].append(asker + opening)
            report["exact"] &= text == passages[wanted].encode()
    for key, seconds in times.items():
        put(report, f"{name}.{key}", Sample(tuple(seconds)), 1000)
    shape = server.shape
    cost = SearchCost.of(shape, built.text_bytes, 1)
    up, down = sum(shape.question_parts), sum(shape.answer_parts)
    fetched = sum(shape.choice_parts) + sum(shape.column_parts)
    found |= {
        "queries": len(vectors),
        **Recall.figures(recalls),
        "up_kb": up / 1e3,
        "down_kb": down / 1e3,
        "kb": (up + down) / 1e3,
        "key_kb": sum(pir.KEY_PART_BYTES) / 1e3,
        "break_even": cost.break_even,
    }
    found["pir"] |= {
        "kb": fetched / 1e3,
        "hint_mb": 0.0,
        "hint_kept_mb": 4 * shape.layout.rows * lwe.DIMENSION / 1e6,
    }
    server.close()


def ask_near(
    report: dict[str, Any], name: str, built: Index, vectors: npt.NDArray[np.float32]
) -> None:
    """Every question near itself: the clusters of which the host sees nothing."""
    rows, clusters = built.rows(), built.clusters
    assert clusters is not None
    with alone():
        server = pir.PirServer(built.embeddings, built.table, clusters=clusters)
        server.start()
        client = pir.PirClient(server.shape)
    keys, recalls, opened, reached = client.keys(), [], [], []
    times: dict[str, list[float]] = {"server_ms": [], "client_ms": [], "scan_ms": []}
    words = lwe.mask(clusters.map.layout.columns, clusters.map.layout.group_columns).words
    for vector in vectors:
        (question, near), asker = own_time(partial(client.near, vector, clusters.map))
        answer, host = own_time(partial(server.near, keys, question))
        scores, opening = own_time(partial(client.near_scores, answer, near))
        times["server_ms"].append(host)
        times["client_ms"].append(asker + opening)
        clear, scored = rows @ vector, scores > -1.5
        recalls.append(Recall.of(clear, scores, pir.NEAR_NOISE))
        opened.append(float(scored.mean()))
        reached.append(float(scored[best_of(clear)].mean()))
    times["scan_ms"].append(best(lambda: clusters.scan(words, pir.SCORE_NOISE)))
    server.close()
    for key, seconds in times.items():
        put(report, f"{name}.clustered.{key}", Sample(tuple(seconds)), 1000)
    shape = server.shape
    up, down = sum(shape.near_parts), sum(shape.near_answer_parts)
    report[name]["clustered"] |= {
        **Recall.figures(recalls),
        "recall_opened": statistics.fmean(reached),
        "opened": statistics.fmean(opened),
        "up_kb": up / 1e3,
        "down_kb": down / 1e3,
        "kb": (up + down) / 1e3,
        "map_kb": shape.clusters.map_bytes / 1e3,
        "map_cosine": told_of_one(clusters.map.means, rows),
    }


def told_of_one(means: npt.NDArray[np.int8], rows: npt.NDArray[np.float32]) -> float:
    """How near a mean that the map tells comes to a single passage: the largest cosine."""
    flat = means.reshape(-1, rows.shape[1]).astype(np.float32)
    flat /= np.maximum(1, np.linalg.norm(flat, axis=1, keepdims=True))
    return max(float((part @ rows.T).max()) for part in np.array_split(flat, 16))


def bare_recall(built: Index, vectors: npt.NDArray[np.float32]) -> float:
    """Recall where answers leave without noise: what is lost then, the cipher's rounding lost."""
    rows = built.rows()
    with alone():
        server = pir.PirServer(built.embeddings, built.table, noisy=False)
        client = pir.PirClient(server.shape)
    keys = client.keys()
    found = []
    for vector in vectors:
        scores = client.scores(server.score(keys, client.question(vector)))
        found.append(Recall.of(rows @ vector, scores, 0.0).share)
    server.close()
    return statistics.fmean(found)


def scanned(built: Index, memory: npt.NDArray[np.uint64], memory_gb_s: float) -> dict[str, float]:
    """How fast the table is read for one query, by our kernel and by BLAS."""
    table = np.load(built.table.table) if isinstance(built.table.table, Path) else built.table.table
    words = lwe.mask(built.table.layout.columns).words
    scan, blas = (
        best(partial(each, table, words), before=memory.sum) for each in (lwe.scan, lwe.exact_scan)
    )
    speed = table.nbytes / scan / 1e9
    return {
        "table_mb": table.nbytes / 1e6,
        "scan_ms": 1000 * scan,
        "blas_ms": 1000 * blas,
        "gb_per_s": speed,
        "bandwidth_fraction": speed / memory_gb_s,
    }


def stolen(built: Index) -> dict[str, float]:
    """What an asker of chosen questions makes of the answers: relative error of the embeddings,
    from as many as there are dimensions, and from as many as a budget may grant; and how near they
    are then (median cosine). It asks along the directions in which other passages, the first half
    of them, differ most: questions of length 1, like any others.
    """
    rows = built.rows()
    known, rows_of_others = np.array_split(rows, 2)
    mean = known.mean(axis=0)
    directions = np.linalg.svd(known - mean, full_matrices=True)[2]
    with alone():
        server = pir.PirServer(built.embeddings, built.table)
        client = pir.PirClient(server.shape)
    keys, dimension = client.keys(), rows.shape[1]
    columns = [
        client.scores(server.score(keys, client.question(one)))
        for one in directions.astype(np.float32)
    ]
    server.close()
    whole, granted = np.stack(columns, axis=1), server.shape.largest_budget
    size = float(np.linalg.norm(rows_of_others))

    def guessed(count: int) -> tuple[float, float]:
        """Relative error, and median cosine, of so many answers; what was not asked is the mean."""
        asked = directions[:count]
        made = whole[len(known) :, :count] @ asked + mean - asked.T @ (asked @ mean)
        cosine = (made * rows_of_others).sum(axis=1) / np.linalg.norm(made, axis=1)
        return float(np.linalg.norm(made - rows_of_others)) / size, float(np.median(cosine))

    granted_error, granted_cosine = guessed(granted)
    return {
        "questions": dimension,
        "error": guessed(dimension)[0],
        "granted": granted,
        "granted_error": granted_error,
        "granted_cosine": granted_cosine,
        "default_cosine": guessed(MAX_QUERIES)[1],
    }


def tenseal_seconds(built: Index, vector: npt.NDArray[np.float32]) -> float:
    """TenSEAL's own product over the whole library, from one over as much as its slots hold."""
    import tenseal

    rows = built.rows()
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, MM_DEGREE, coeff_mod_bit_sizes=list(MM_BITS)
    )
    context.global_scale = 2.0 ** MM_BITS[1]
    context.generate_galois_keys()
    held = MM_DEGREE // 2 - rows.shape[1]
    part = rows[:held].T.astype(float).tolist()
    question = tenseal.ckks_vector(context, vector.astype(float).tolist())
    _, seconds = timed(partial(question.mm, part))
    return float(seconds * -(-len(rows) // held))


async def whole_questions(
    report: dict[str, Any],
    name: str,
    built: Index,
    embedder: SentenceEmbedder,
    asked: Sequence[str],
) -> None:
    """From a question in words to its passage, over HTTP, with worker processes.

    Args:
        name: where the report puts it; of clusters, questions are asked near themselves.
    """
    near = name.endswith(".clustered")
    host, asker = Identity.generate(), Identity.generate()
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as door:
        budget = QueryBudget(Path(folder) / "budget.json", limit=len(asked))
        service = LibraryService(built, host, budget, workers=core_count())
        ready = asyncio.Event()
        serving = asyncio.create_task(serve(service, door, ready=ready.set))
        try:
            await ready.wait()
            url = f"http://127.0.0.1:{door.getsockname()[1]}"
            async with aiohttp.ClientSession() as http:
                session = SearchSession(LibraryAddress(url, host.public), asker, http)
                await session.open(embedder, near=near)
                seconds = []
                for question in asked:
                    before = time.perf_counter()
                    sealed = await session.ask(embedder.embed([question])[0])
                    report["exact"] &= len(sealed.open()) == 1
                    seconds.append(time.perf_counter() - before)
                session.close()
            put(report, f"{name}.question_s", Sample(tuple(seconds)))
            place = report
            for part in name.split("."):
                place = place[part]
            place["peak_mb"] = sum(
                peak_mb(child.pid or 0) for child in multiprocessing.active_children()
            )
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def documentation(words: int) -> Iterator[Passage]:
    """Passages of at most so many words, of Python's pages first, each text once."""
    seen: set[str] = set()
    for page in pages():
        source = index.short_name(page.relative_to(DOCS))
        for piece in index.split(text_of(page)):
            each = piece.split()
            parts = (
                [piece]
                if len(each) <= words
                else [" ".join(each[start : start + words]) for start in range(0, len(each), words)]
            )
            for part in parts:
                if len(part) > 40 and part not in seen:
                    seen.add(part)
                    yield Passage(source, part)


def pages() -> list[Path]:
    """HTML pages, then texts, Python's first; no links."""
    found = [
        path for path in DOCS.rglob("*") if path.suffix == ".html" or TEXTS.fullmatch(path.name)
    ]
    found = [path for path in found if not (path.is_symlink() or path.parent.is_symlink())]
    return sorted(
        filter(Path.is_file, found),
        key=lambda path: (path.suffix != ".html", "python" not in str(path), path),
    )


def text_of(page: Path) -> str:
    """What is written on it, as far as it is UTF-8."""
    raw = page.read_bytes()
    text = (gzip.decompress(raw) if page.suffix == ".gz" else raw).decode("utf-8", "replace")
    if page.suffix == ".html":
        text = html.unescape(re.sub(r"<[^>]*>", "", HIDDEN.sub("", text))).replace("¶", "")
    return re.sub(r"[ \t]+", " ", text)


def best_of(scores: npt.NDArray[np.float32]) -> list[int]:
    """Numbers of the best."""
    return [int(each) for each in np.argsort(-scores, kind="stable")[:BEST]]


def timed(work: Callable[[], Result], seconds: Callable[[], float] = clock) -> tuple[Result, float]:
    """What came of it, and processor seconds, of all threads."""
    before = seconds()
    result = work()
    return result, seconds() - before


def own_time(work: Callable[[], Result]) -> tuple[Result, float]:
    """The same, of this thread alone."""
    return timed(work, time.thread_time)


def best(
    work: Callable[[], object], times: int = 5, before: Callable[[], object] = lambda: None
) -> float:
    """Processor seconds of the fastest of a few, each after `before`, which does not count."""
    return max(1e-9, min((before(), timed(work)[1])[1] for _ in range(times)))


def peak_mb(process: int) -> float:
    """Most memory that a process ever held; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else 0.0
