"""A library's host tries to learn about a question from what the asker does next. It sees the
same, whatever it answers.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from quietchoir.core.errors import (
    BudgetError,
    CryptoError,
    MessageError,
    ProtocolError,
    QuietchoirError,
    WorkerError,
)
from quietchoir.crypto.he.ckks import Asker, Multiplier, PlainMatrix
from quietchoir.crypto.he.parameters import SEARCH
from quietchoir.crypto.identity.keys import Identity
from quietchoir.crypto.pir import lwe
from quietchoir.crypto.pir.search import (
    HINT_FACTOR,
    HINT_UNIT,
    PASSAGE_NOISE,
    SCORE_NOISE,
    SECRET_FACTOR,
    PassageTable,
    PirClient,
    PirServer,
    largest,
)
from quietchoir.private_search import host
from quietchoir.private_search.budget import QueryBudget
from quietchoir.private_search.client import LibraryAddress, ask
from quietchoir.private_search.index import Passage
from quietchoir.private_search.messages import (
    ReplyKind,
    RequestKind,
    SearchReply,
    decode_request,
    refuse,
)
from quietchoir.tests.fakes.search import TEXTS, FakeEmbedder, fake_index, pir_server

HOST, ASKER = Identity.generate(), Identity.generate()
ABOUT, OTHER = (
    ("A cello has four strings, tuned in fifths."),
    "Snow closes the mountain pass in November.",
)
PASSAGES = 2
Answers = Callable[[list[bytes]], Sequence[bytes]]


class Hostile(host.LibraryService):
    """A host that keeps its keys and changes what it answers, and writes down what it sees."""

    def __init__(self, folder) -> None:
        super().__init__(fake_index(), HOST, QueryBudget(folder / "b.json", limit=11))
        self.seen: list[tuple[str, tuple[int, ...]]] = []
        self.scores: Answers = list
        self.passage: Answers = list

    def answer(self, raw: bytes) -> tuple[int, bytes]:
        request = decode_request(raw, self.manifest.library)
        self.seen.append((request.kind.name, tuple(map(len, request.parts))))
        return super().answer(raw)

    def _answer(self, request):
        parts = super()._answer(request)
        change = {RequestKind.QUESTION: self.scores, RequestKind.CHOICE: self.passage}.get(
            request.kind, list
        )
        return list(change(parts))


@pytest.fixture(scope="module")
def one_service(tmp_path_factory):
    service = Hostile(tmp_path_factory.mktemp("hostile"))
    yield service
    service.close()


@pytest.fixture
def service(one_service, tmp_path, monkeypatch):
    monkeypatch.setattr(one_service, "_budget", QueryBudget(tmp_path / "b.json", limit=11))
    monkeypatch.setattr(one_service, "server", one_service.server)
    one_service.scores = one_service.passage = list
    one_service.seen.clear()
    return one_service


async def asked(
    service: host.LibraryService, question: str = ABOUT, embedder: FakeEmbedder | None = None
) -> Exception | None:
    """Ask over HTTP for `PASSAGES` passages; the error that the asker got, if any."""
    runner = web.AppRunner(host.application(service), access_log=None)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener).start()
        address = LibraryAddress.parse(
            f"http://127.0.0.1:{listener.getsockname()[1]}/#{HOST.public.raw.hex()}"
        )
        try:
            await ask(address, question, embedder or FakeEmbedder(), ASKER, passages=PASSAGES)
        except QuietchoirError as error:
            return error
        finally:
            await runner.cleanup()
    return None


HONEST = ["KEYS", "QUESTION", "CHOICE", "CHOICE"]


def kinds(service: Hostile) -> list[str]:
    return [kind for kind, _ in service.seen]


def loud(topic: str) -> PirServer:
    """Embeddings so long in one direction that the score leaves its range if the question is
    about `topic`.
    """
    direction = FakeEmbedder().embed([topic])[0]
    rows = np.array(fake_index().embeddings)
    rows[0] = 30 * direction
    return pir_server(rows, [Passage("notes.md", text).encode() for text in TEXTS])


async def test_scores_beyond_their_range_stop_nobody(service, monkeypatch):
    """The instance: a score that only a question about one topic lifts over 1."""
    server = loud(ABOUT)
    monkeypatch.setattr(service, "server", server)
    try:
        assert naive(server, ABOUT) == ["QUESTION"] and naive(server, quiet_for(server)) == [
            "QUESTION",
            "CHOICE",
        ]  # one bit
        errors, seen = [], []
        for question in (ABOUT, quiet_for(server)):
            service.seen.clear()
            errors.append(await asked(service, question))
            seen.append(list(service.seen))
        assert seen[0] == seen[1] and [kind for kind, _ in seen[0]] == HONEST
        assert isinstance(errors[0], ProtocolError) and "no cosines" in str(errors[0])
        assert errors[1] is None  # and yet the asker of the topic is told, afterwards
    finally:
        server.close()


def quiet_for(server: PirServer) -> str:
    """A question that the loud row hardly hears."""
    embedder = FakeEmbedder()
    words = [
        "kettle",
        "harbour",
        "pass",
        "stick",
        "sun",
        "bus",
        "water",
        "seven",
        "night",
        "tomatoes",
        "whistles",
        "snow",
    ]
    loudest = embedder.embed([ABOUT])[0]
    return min(words, key=lambda word: abs(float(embedder.embed([word])[0] @ loudest)))


def naive(server: PirServer, question: str) -> list[str]:
    """The unprotected arm: an asker that believes its scores before it goes on."""
    sent, questioner = [], PirClient(server.shape)
    try:
        keys = questioner.keys()
        sent.append("QUESTION")
        answer = server.score(keys, questioner.question(FakeEmbedder().embed([question])[0]))
        with contextlib.suppress(ProtocolError):
            questioner.scores(answer)
            sent.append("CHOICE")
    finally:
        questioner.close()
    return sent


SPOILED: dict[str, Answers] = {
    "noise in a ciphertext's place": lambda parts: [os.urandom(len(part)) for part in parts],
    "zeros": lambda parts: [bytes(len(part)) for part in parts],
    "numbers in another order": lambda parts: [part[::-1] for part in parts],
    "a flipped bit in every number": lambda parts: [
        bytes(each ^ (64 * (at % 4 == 3)) for at, each in enumerate(part)) for part in parts
    ],
    "no part": lambda _: [],
    "a part too many": lambda parts: [*parts, b"x"],
    "a short part": lambda parts: [part[:-1] for part in parts],
    "an empty part": lambda _: [b""],
}


@pytest.mark.parametrize("spoil", SPOILED)
async def test_an_answer_of_no_use_is_followed_by_the_same_messages(service, spoil):
    service.scores = SPOILED[spoil]
    error = await asked(service)
    assert isinstance(error, CryptoError)
    assert kinds(service) == HONEST
    seen = list(service.seen)
    service.seen.clear()
    service.scores = list
    assert await asked(service) is None
    assert service.seen == seen


@pytest.mark.parametrize("spoil", SPOILED)
async def test_a_first_passage_of_no_use_does_not_keep_the_second_choice_back(service, spoil):
    replies = iter([SPOILED[spoil], list])
    service.passage = lambda parts: next(replies)(parts)
    assert isinstance(await asked(service), CryptoError)
    assert kinds(service) == HONEST


async def test_an_answer_that_ends_the_askers_worker_is_followed_by_decoys(service, monkeypatch):
    def crash(self: PirClient, answer: Sequence[bytes]):
        self._worker.close()
        raise WorkerError("ended with code -11")

    monkeypatch.setattr(PirClient, "scores", crash)
    assert isinstance(await asked(service), WorkerError)
    assert kinds(service) == HONEST
    sizes = {sizes for kind, sizes in service.seen if kind == "CHOICE"}
    assert sizes == {service.manifest.shape.choice_parts}


@pytest.mark.parametrize(
    "vector",
    [np.zeros(24, np.float32), np.full(24, np.nan, np.float32), np.full(24, np.inf, np.float32)],
)
async def test_a_question_that_cannot_be_asked_begins_no_session(service, vector):
    class Odd(FakeEmbedder):
        def embed(self, texts):
            return np.stack(
                [vector if text == ABOUT else super(Odd, self).embed([text])[0] for text in texts]
            )

    assert isinstance(await asked(service, embedder=Odd()), CryptoError)
    assert service.seen == []


async def test_a_refusal_is_the_hosts_own_and_may_end_the_session(service, monkeypatch):
    """What everybody sees may decide: neither a refusal nor a stranger's reply depends on the
    question.
    """
    before = host.LibraryService.answer

    def refusing(self, raw):
        kind = decode_request(raw, self.manifest.library).kind
        self.seen.append((kind.name, ()))
        if kind is RequestKind.QUESTION:
            return refuse(raw, BudgetError("enough"), HOST)
        return before(self, raw)

    monkeypatch.setattr(Hostile, "answer", refusing)
    assert isinstance(await asked(service), BudgetError)
    assert kinds(service) == ["KEYS", "QUESTION"]
    monkeypatch.setattr(
        Hostile,
        "answer",
        lambda self, raw: (
            200,
            SearchReply(ReplyKind.ANSWER, sha256(b"another").digest(), ()).encode(HOST),
        ),
    )
    assert isinstance(await asked(service), MessageError)


class Recorder:
    """Writes down which operation of SEAL's evaluator is called on which of the host's numbers."""

    def __init__(self, evaluator: Any, own: Sequence[Any], told: list[tuple[Any, ...]]) -> None:
        self._evaluator, self._told = evaluator, told
        self._own = {id(plain): number for number, plain in enumerate(own)}

    def __getattr__(self, name: str) -> Any:
        work = getattr(self._evaluator, name)

        def call(*arguments: Any) -> Any:
            seen = [self._own[id(each)] for each in arguments if id(each) in self._own]
            self._told.append((name, *seen))
            return work(*arguments)

        return call


class Watched(np.ndarray):
    """A table that writes down which part of it is read."""

    told: list[tuple[Any, ...]]

    def __getitem__(self, key: Any) -> Any:
        self.told.append((str(key),))
        return np.asarray(super().__getitem__(key))


class Steps:
    """Numbers that write down what is asked of them, not what it brought."""

    def __init__(self, numbers: Any) -> None:
        self._numbers, self.told = np.array(numbers), list[str]()

    def copy(self) -> "Steps":
        return self

    def argmax(self) -> int:
        self.told.append("the largest of all")
        return int(self._numbers.argmax())

    def __setitem__(self, at: int, value: float) -> None:
        self.told.append("one is taken out")
        self._numbers[at] = value


class Compared(float):
    """A number that counts how often it is compared."""

    count = 0

    def __lt__(self, other):
        Compared.count += 1
        return float(self) < float(other)


def host_view(question: str, passage: int) -> tuple[list[tuple[Any, ...]], list[int]]:
    """Everything that a host's arithmetic does for one question and one choice, step by step, and
    the sizes of what came and went.
    """
    rows = FakeEmbedder().embed(list(TEXTS))
    texts = PassageTable.of([text.encode() for text in TEXTS])
    told: list[tuple[Any, ...]] = []
    matrices = {
        "scores": PlainMatrix(rows, SCORE_NOISE),
        "hint": PlainMatrix(texts.hint, PASSAGE_NOISE, HINT_FACTOR / HINT_UNIT, paired=True),
    }
    multiplier, asker = Multiplier(SEARCH.name, matrices), Asker(SEARCH.name)
    own = [
        plain
        for _, slabs in multiplier._slabs.values()
        for slab in slabs
        for block in slab
        for plain in block
    ]
    multiplier._evaluator = Recorder(multiplier._evaluator, own, told)
    keys = asker.public_keys()
    vector = FakeEmbedder().embed([question])[0].astype(np.float64)
    asked = asker.encrypt(vector.tobytes())[0]
    answer = multiplier.product(b"scores", *keys, asked)
    layout = texts.layout
    mask = lwe.mask(layout.columns)
    secret = asker.encrypt((SECRET_FACTOR * mask.secret.astype(np.float64)).tobytes())[0]
    product = multiplier.product(b"hint", *keys, secret)
    assert isinstance(texts.table, np.ndarray)
    watched = texts.table.view(Watched)
    watched.told = told
    query = mask.query(layout.column_of(passage))
    column = lwe.exact_scan(watched, query)
    # what is compiled has no branch but on sizes, and reads the table from end to end
    assert np.array_equal(lwe.scan(texts.table, query), column)
    masked = np.frombuffer(asker.decrypt(*product)[0], np.float64)[: layout.rows]
    unmasked = lwe.symbols(column, masked * (HINT_UNIT / HINT_FACTOR / SECRET_FACTOR))
    assert layout.read(unmasked, passage) == TEXTS[passage].encode()
    return told, [len(asked), len(answer[0]), len(secret), len(product[0]), column.nbytes]


def test_two_questions_are_the_same_steps_over_the_same_numbers_in_the_same_order() -> None:
    """What the host could count, time or trace: every operation, and each part of its own data that
    it touches. The unprotected arm reads a column in clear, and its trace is the passage's number.
    """
    (first, sizes), (second, again) = host_view(ABOUT, 2), host_view(OTHER, 4)
    assert first == second and sizes == again
    # those with the host's own numbers; the masks are products too
    products = [step for step in first if step[0] == "multiply_plain" and len(step) > 1]
    assert len(products) > 1000 and len({step[1] for step in products}) == len(products)
    traces = []
    for passage in (2, 4):
        whole = PassageTable.of([text.encode() for text in TEXTS]).table
        assert isinstance(whole, np.ndarray)
        table = whole.view(Watched)
        table.told = []
        table[:, passage]
        traces.append(table.told)
    assert traces[0] != traces[1]


@pytest.mark.parametrize("count", [1, 7])
def test_the_best_are_found_by_the_same_steps_whatever_the_order_of_the_scores(count: int) -> None:
    """The host sets the scores. What a sort compares depends on them; what `largest` reads does
    not.
    """
    random = np.random.default_rng(1)
    rising, mixed = np.arange(900.0), random.permutation(np.arange(900.0))
    for scores in (rising, mixed, random.integers(0, 3, 900), np.zeros(900)):
        exact = scores.astype(np.float32)
        best = largest(exact, count)
        assert best == tuple(np.argsort(-exact, kind="stable")[:count])  # the first of equal ones
    traces, compared = [], []
    for scores in (rising, mixed):
        watched: Any = Steps(scores)
        largest(watched, count)
        traces.append(watched.told)
        # the unprotected arm
        keys = [Compared(float(each)) for each in scores]
        Compared.count = 0
        sorted(keys)
        compared.append(Compared.count)
    assert traces[0] == traces[1] and len(traces[0]) == 2 * count
    assert compared[0] < compared[1] / 5


def test_an_answer_of_no_use_costs_no_draw_that_another_does_not(monkeypatch) -> None:
    """What is chosen by chance is drawn before the answer is opened, needed or not."""
    server = pir_server(FakeEmbedder().embed(list(TEXTS)), [text.encode() for text in TEXTS])
    questioner, told = PirClient(server.shape), list[str]()
    draw = np.random.default_rng

    def drawn(seed: int) -> np.random.Generator:
        told.append("draw")
        return draw(seed)

    monkeypatch.setattr(np.random, "default_rng", drawn)
    best = np.arange(len(TEXTS), dtype=np.float32)

    def opens(answer):
        told.append("open")
        if answer:
            raise ProtocolError("no")
        return best

    monkeypatch.setattr(questioner, "scores", opens)
    try:
        prepared = questioner.prepare(1)
        good, bad = questioner.choose([], prepared), questioner.choose([b"x"], prepared)
        assert told == ["draw", "open"] * 2
        assert good.picked == (len(TEXTS) - 1,) and good.fault is None and bad.fault is not None
    finally:
        questioner.close()
        server.close()


def test_choices_are_as_many_as_asked_for_and_never_more_than_there_are_passages():
    server = pir_server(FakeEmbedder().embed(list(TEXTS)), [text.encode() for text in TEXTS])
    questioner = PirClient(server.shape)
    try:
        for count in (1, 3, 99):
            opened = questioner.choose([b"nothing"], questioner.prepare(count))
            assert len(opened.choices) == len(set(opened.picked)) == min(count, len(TEXTS))
            assert opened.fault is not None and opened.scores is None
    finally:
        questioner.close()
        server.close()
