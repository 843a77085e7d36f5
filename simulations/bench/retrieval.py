"""The suite `retrieval`: are documents found that answer a question, and how fast?

Knows two sets of questions that people wrote before there was any of this: the FAQs of Python and
of Debian, as the Debian packages python3-doc and debian-faq bring them. Each answer becomes a
document without its question, among the rest of Python's documentation; the question is asked.
Always: the three ways (words alone, meaning alone, both fused) search the same index in turn; what
counts is the document, so that no way of cutting it into passages is favoured; one document is
right for a question, so that recall is the share of questions that found it.

Not covered: whether a model answers rightly from what was found; questions in other languages than
English; a tie between two right answers (a few questions of Debian's FAQ ask nearly the same).
Source: Järvelin, Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002 (nDCG).
"""

import html
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.engine.backends.native.encoder import BATCH_TOKENS, NativeEncoder
from ...core.engine.backends.native.probe import PackedMatrix
from ...core.engine.embedder import SentenceEmbedder
from ...core.errors import ConfigError
from ...core.models.embedding.architecture import EncoderArchitecture
from ...core.models.hub import catalog
from ...core.models.quant.types import QUANT_TYPES
from ...core.retrieval.chunking import DocumentChunk
from ...core.retrieval.indexing import update
from ...core.retrieval.search import DEPTH, Search, Way
from ...core.retrieval.store import CollectionStore, DocumentEntry
from ...plugins.documents import parsing
from .figures import Figure, Keep, has, look_up, nobody, put_share
from .parts import run_parts
from .stopwatch import Sample, clock, put

WHAT = "questions of two FAQs, their answers among Python's documentation"
DOCS = Path("/usr/share/doc")
DEBIAN = "debian/FAQ"
FAQ = {"python": "*.html", "debian": "*.en.html"}
NOT_HERE = (
    f"{DOCS} holds no FAQs to ask from; install Debian's packages: "
    "apt install python3-doc debian-faq"
)
WAYS: tuple[Way, ...] = ("hybrid", "words", "meaning")
AT = (5, 10)  # recall@5, nDCG@10
# What `--only` may name, with about how long it takes on two quiet cores; all is indexed before,
# in 1 min.
PARTS = {
    "ranks": "two FAQs, by words, by meaning and by both; 1 min",
    "embeddings": "passages embedded, beside transformers; 1 min",
    "many": "a question among 100,000 passages; 2 min",
}
PASSAGES = 60  # of which the first ten documents are taken
# Pages that repeat other pages' titles, questions among them.
LISTS = ("genindex", "contents", "py-modindex", "search", "index", "download")
PYTHON_QUESTION = re.compile(
    r'<section id="[^"]*">\s*(?:<span id="[^"]*"></span>)*<h3>(.*?)</h3>(.*?)</section>', re.S
)
DEBIAN_QUESTION = re.compile(
    r'<h[23] class="title"[^>]*>(.*?)</h[23]></div></div></div>(.*?)'
    r'(?=<div class="section">|<div class="navfooter">)',
    re.S,
)


@dataclass(frozen=True, slots=True)
class RetrievalScale:
    """How much is measured."""

    pages: int = 120  # of Python's documentation, beside the answers, evenly from all of it
    many: int = 100_000  # passages that speed is measured among
    asked: int = 100  # questions that speed is measured with
    embedded: int = 128  # passages that are embedded beside transformers
    repeats: int = 3


QUICK = RetrievalScale(pages=3, many=300, asked=5, embedded=32, repeats=1)


@dataclass(frozen=True, slots=True)
class FaqQuestion:
    """A question, and the one document that answers it."""

    question: str
    answer: str  # its file's name


def measure(
    *, quick: bool, tell: Callable[[str], None], keep: Keep = nobody, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Build, ask, and time; all, or the named `PARTS`.

    Raises:
        ConfigError: the documentation or the embedding model is not on this machine; says how to
        get it.
    """
    size = QUICK if quick else RetrievalScale()
    report: dict[str, Any] = {
        "what": WHAT,
        "seed": "none: nothing is drawn",
        "clock": "processor seconds, of a question those of the asking thread; passages indexed a "
        "second are on the wall",
        "repeats": {"questions": 1, "speed": size.asked},
        "spread": {},
        "exact": True,
    }
    with tempfile.TemporaryDirectory() as scratch:
        bench = RetrievalBench(Path(scratch), catalog.find("minilm-l6-v2"), size, report, tell)
        parts = {"ranks": bench.ranks, "embeddings": bench.embeddings, "many": bench.many}
        tell(f"indexing {report['pages'] + sum(report['questions'].values())} documents")
        bench.index()
        keep(report)
        try:
            run_parts(parts, only, report, tell, keep)
        finally:
            bench.store.close()
    return report


class RetrievalBench:
    """The parts, over one collection."""

    def __init__(
        self,
        scratch: Path,
        model: Path,
        size: RetrievalScale,
        report: dict[str, Any],
        tell: Callable[[str], None],
    ) -> None:
        """Raises: ConfigError: there is no documentation to ask from."""
        self.scratch, self.model, self.size = scratch, model, size
        self.report, self.tell = report, tell
        self.embedder = SentenceEmbedder.load(model)
        self.alone = SentenceEmbedder.load(model, threads=1)
        folder = scratch / "documents"
        self.sets = {name: lay_out(folder, name) for name in ("python", "debian")}
        report["pages"] = lay_out_pages(folder, size.pages)
        report["questions"] = {name: len(asked) for name, asked in self.sets.items()}
        self.store = CollectionStore(scratch / "bench.collection")
        self.store.add_source(folder)

    def index(self) -> None:
        """All of it, timed: every part asks of it."""
        index(self.store, self.embedder, self.report)

    def ranks(self) -> None:
        """Both sets, three ways."""
        search = Search(self.store)
        for name, asked in self.sets.items():
            self.tell(f"{name}: {len(asked)} questions, three ways")
            for way in WAYS:
                score(search, self.embedder, way, asked, name, self.report)

    def embeddings(self) -> None:
        """Beside transformers, a thread each."""
        self.tell(f"{self.size.embedded} passages embedded, beside transformers")
        beside_transformers(self.store, self.alone, self.model, self.size, self.report)

    def many(self) -> None:
        """Among many passages, one thread."""
        self.tell(f"speed among {self.size.many} passages")
        asked = [one.question for asked in self.sets.values() for one in asked]
        among_many(
            self.scratch / "many.collection", self.store, self.alone, self.size.many,
            asked[: self.size.asked], self.report,
        )  # fmt: skip


def figures(report: Mapping[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    for name in ("python", "debian"):
        for way in ("words", "meaning"):
            yield Figure(f"{name}.{way}.recall_5", "", f"{name}: {way}, answer among the first 5")
            yield Figure(f"{name}.{way}.ndcg_10", "", f"{name}: {way}, nDCG of the first 10")
        for at in ("recall_5", "ndcg_10"):
            alone = [f"{name}.{way}.{at}" for way in WAYS if way != "hybrid"]
            best = max((look_up(report, key) for key in alone if has(report, key)), default=None)
            yield Figure(
                f"{name}.hybrid.{at}",
                "",
                f"{name}: both fused, {at}; aim: the better one alone",
                at_least=best,
            )
    yield Figure("index.chunks_s", "1/s", "passages parsed, written and embedded", at_least=200)
    yield Figure("index.words_chunks_s", "1/s", "passages parsed and written, words alone")
    yield Figure("index.embedded_processor_s", "1/s", "passages embedded in a processor's second")
    yield Figure("embeddings.ours", "1/s", "passages embedded in a second of one thread")
    if has(report, "embeddings.products_alone"):
        yield Figure("embeddings.products_alone", "1/s", "were there nothing but products")
    yield Figure("embeddings.transformers", "1/s", "transformers, bfloat16, like lengths together")
    yield Figure("embeddings.transformers_float32", "1/s", "transformers, float32")
    yield Figure("embeddings.ratio", "", "ours, times the better of them", at_least=3)
    yield Figure("embeddings.cosine", "", "ours to float32's, the least near", at_least=0.999)
    yield Figure("many.query_ms", "ms", "a question among many passages, one thread", at_most=50)
    yield Figure("many.words_ms", "ms", "of it, by words")
    yield Figure("many.scan_ms", "ms", "of it, by comparing vectors")
    yield Figure("many.sketch_recall", "", "of the 100 nearest vectors, those that are found",
                 at_least=0.99)  # fmt: skip
    yield Figure("many.embed_ms", "ms", "of it, the question's own vector")
    yield Figure("many.read_s", "s", "vectors read from the file, once")
    yield Figure("many.file_mb", "MB", "the file")


def lay_out(folder: Path, name: str) -> list[FaqQuestion]:
    """Write each answer of a FAQ as a document of its own, without its question."""
    asked = []
    folder.mkdir(exist_ok=True)
    for number, (question, answer) in enumerate(questions(name)):
        file = folder / f"{name}-faq-{number:03}.html"
        file.write_text(f"<html><body>{answer}</body></html>", "utf-8")
        asked.append(FaqQuestion(question, file.name))
    return asked


def questions(name: str) -> Iterator[tuple[str, str]]:
    """Questions of one FAQ, as text, and their answers, as HTML."""
    pages = sorted((python_docs() / "faq" if name == "python" else DOCS / DEBIAN).glob(FAQ[name]))
    if not pages:
        raise ConfigError(NOT_HERE)
    form = PYTHON_QUESTION if name == "python" else DEBIAN_QUESTION
    for page in pages:
        for title, answer in form.findall(page.read_text("utf-8")):
            words = html.unescape(re.sub(r"<[^>]*>", "", title)).replace("¶", "")
            words = re.sub(r"^[\d.\s]+", "", " ".join(words.split()))
            # under a heading that is no question, or one whose answer is in parts below it,
            # nothing could be looked for
            if words.endswith("?") and len(re.sub(r"<[^>]*>|\s", "", answer)) > 80:
                yield words, answer


def python_docs() -> Path:
    """Where Python's documentation lies. Raises: ConfigError: it does not."""
    for folder in sorted(DOCS.glob("python3*/html/faq")):
        return folder.resolve().parent  # other packages' folders are links to it
    raise ConfigError(NOT_HERE)


def lay_out_pages(folder: Path, most: int) -> int:
    """The rest of Python's documentation; how many pages."""
    root = python_docs()
    pages = [
        page
        for page in sorted(root.rglob("*.html"))
        if page.parent.name != "faq" and not page.name.startswith(LISTS)
    ]
    pages = pages[:: max(1, len(pages) // most)][:most]
    for page in pages:
        name = "-".join(page.relative_to(root).parts)
        (folder / name).write_bytes(page.read_bytes())
    return len(pages)


def index(store: CollectionStore, embedder: SentenceEmbedder, report: dict[str, Any]) -> None:
    """Index all of it: words first, then meanings, each timed."""
    with parsing() as parser:
        before = time.perf_counter()
        done = update(store, parser)
        words_s = time.perf_counter() - before
        before, processor = time.perf_counter(), time.process_time()
        update(store, parser, embedder)
        meaning_s = time.perf_counter() - before
        processor_s = time.process_time() - processor
    chunks, vectors = store.count()
    report["exact"] &= not done.problems and chunks == vectors
    report["index"] = {
        "documents": done.read,
        "chunks": chunks,
        "characters_a_chunk": store.database.rows("SELECT avg(length(text)) FROM chunks")[0][0],
        "words_chunks_s": chunks / words_s,
        "chunks_s": chunks / (words_s + meaning_s),
        "embedded_processor_s": chunks / processor_s,
    }


def score(
    search: Search,
    embedder: SentenceEmbedder,
    way: Way,
    asked: Sequence[FaqQuestion],
    name: str,
    report: dict[str, Any],
) -> None:
    """Recall and nDCG of one way over one set."""
    ranks = [rank_of(search, embedder, way, one) for one in asked]
    put_share(report, f"{name}.{way}.recall_5", [rank <= AT[0] for rank in ranks])
    report[name][way]["ndcg_10"] = statistics.fmean(
        1 / math.log2(rank + 1) if rank <= AT[1] else 0 for rank in ranks
    )


def rank_of(search: Search, embedder: SentenceEmbedder, way: Way, asked: FaqQuestion) -> float:
    """At which place among the documents that are found its answer is; infinite: not found."""
    passages = search.find(asked.question, PASSAGES, embedder, way)
    names = list(dict.fromkeys(Path(passage.file).name for passage in passages))
    return names.index(asked.answer) + 1 if asked.answer in names else math.inf


def beside_transformers(
    store: CollectionStore,
    embedder: SentenceEmbedder,
    folder: Path,
    size: RetrievalScale,
    report: dict[str, Any],
) -> None:
    """Embed the same passages here and with transformers, in turn, one thread each."""
    from transformers import BertModel, PreTrainedTokenizerFast

    rows = store.database.rows("SELECT text FROM chunks ORDER BY id")
    texts = [text for (text,) in rows[:: max(1, len(rows) // size.embedded)]][: size.embedded]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]"
    )

    def theirs(kind: torch.dtype) -> Callable[[], np.ndarray]:
        model = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=kind).eval()
        return lambda: pooled(model, tokenizer, texts, embedder.longest)

    ways: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: embedder.embed(texts),
        "transformers": theirs(torch.bfloat16),
        "transformers_float32": theirs(torch.float32),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other on a busy machine count their waiting
    found = {name: way() for name, way in ways.items()}  # once for warmth
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(size.repeats):
        for name, way in ways.items():
            before = clock()
            way()
            seconds[name].append(clock() - before)
    torch.set_num_threads(threads)
    for name, each in seconds.items():
        put(report, f"embeddings.{name}", Sample(tuple(len(texts) / one for one in each)))
    own = report["embeddings"]
    own["ratio"] = own["ours"] / max(own["transformers"], own["transformers_float32"])
    own["cosine"] = float((found["ours"] * found["transformers_float32"]).sum(1).min())
    own["tokens"] = statistics.fmean(min(n, embedder.longest) for n in embedder.count(texts))
    if isinstance(embedder.encoder, NativeEncoder):
        seconds_a_token = products_s(embedder.encoder.architecture, size.repeats)
        put(report, "embeddings.products_alone",
            Sample(tuple(1 / (own["tokens"] * one) for one in seconds_a_token)))  # fmt: skip


def products_s(model: EncoderArchitecture, repeats: int) -> list[float]:
    """Seconds that the layers' products alone take a token, by the kernels that embed: what no way
    to pack texts can go below.
    """
    shapes = [shape for _, shape in model.matrices()]
    form, rng = QUANT_TYPES["Q8_0"], np.random.default_rng(1)
    matrices = [
        # bytes below 48 make scales that are small finite numbers
        PackedMatrix("Q8_0", shape, rng.integers(
            0, 48, (shape[0], shape[1] // form.columns * form.size), dtype=np.uint8
        ))
        for shape in shapes
    ]  # fmt: skip
    rows = [rng.standard_normal((BATCH_TOKENS, shape[1]), np.float32) for shape in shapes]
    found = []
    for _ in range(repeats + 1):  # the first one for warmth
        before = clock()
        for _ in range(model.num_layers):
            for matrix, x in zip(matrices, rows, strict=True):
                matrix.multiply(x)
        found.append((clock() - before) / BATCH_TOKENS)
    return found[1:]


def pooled(model: Any, tokenizer: Any, texts: Sequence[str], longest: int) -> np.ndarray:
    """Unit vectors by transformers, as sentence-transformers makes them: 32 texts of like lengths
    at once, padded to the longest of them.
    """
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = np.empty((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), 32):
        places = order[start : start + 32]
        batch = tokenizer(
            [texts[place] for place in places],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        real = batch["attention_mask"]
        with torch.inference_mode():
            rows = model(input_ids=batch["input_ids"], attention_mask=real).last_hidden_state
            mean = (rows.float() * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
            found[places] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return found


def among_many(
    path: Path,
    source: CollectionStore,
    embedder: SentenceEmbedder,
    many: int,
    questions: Sequence[str],
    report: dict[str, Any],
) -> None:
    """Time questions among `many` passages: those of `source`, again and again."""
    store = CollectionStore(path)
    rows = source.database.rows("SELECT heading, page, line, last_line, text FROM chunks")
    _, vectors = source.vectors()
    for start in range(0, many, len(rows)):
        part = rows[: many - start]
        chunks = [
            DocumentChunk(text, heading, page, line, last)
            for heading, page, line, last, text in part
        ]
        store.put(DocumentEntry(f"copy {start}", 0, 0, b""), chunks)
    ids = [id for (id,) in store.database.rows("SELECT id FROM chunks ORDER BY id")]
    store.embed_with(embedder.identity)
    store.put_vectors(ids, np.resize(vectors, (len(ids), vectors.shape[1])))
    search = Search(store)
    before = time.perf_counter()
    search.read()
    read_s = time.perf_counter() - before
    report["many"] = {"passages": len(ids), "read_s": read_s, "file_mb": path.stat().st_size / 1e6}
    search.find(questions[0], 8, embedder)
    parts: dict[str, Callable[[str], object]] = {
        "query_ms": lambda question: search.find(question, 8, embedder),
        "words_ms": lambda question: search.by_words(question, rare=True),
        "scan_ms": lambda question: search.by_meaning(question, embedder),
        "embed_ms": lambda question: embedder.embed([question]),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for question in questions:
        for name, part_of in parts.items():
            # the asking thread's own: linear algebra's others spin on into the next part
            before = time.thread_time()
            part_of(question)
            times[name].append(time.thread_time() - before)
    report["many"]["sketch_recall"] = statistics.fmean(
        sketch_recall(search, embedder.embed([question], "query")[0]) for question in questions
    )
    times["scan_ms"] = [
        max(0.0, both - embedded)
        for both, embedded in zip(times["scan_ms"], times["embed_ms"], strict=True)
    ]
    for name, seconds in times.items():
        put(report, f"many.{name}", Sample(tuple(seconds)), 1000)
    store.close()


def sketch_recall(search: Search, query: np.ndarray) -> float:
    """Of the vectors that are nearest to a question, those that the index finds; of copies any."""
    index = search.read()
    scores = index.vectors @ query
    last = np.sort(scores)[-DEPTH:][0]
    found = np.isin(index.ids, index.nearest(query))
    return float((scores[found] >= last).mean())
