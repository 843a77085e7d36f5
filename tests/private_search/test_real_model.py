"""The real embedding model through the real encryption: the private answer is the plain one."""

import numpy as np

from quietchoir.core.engine.embedder import SentenceEmbedder
from quietchoir.crypto.pir.search import SCORE_ERROR, SCORE_NOISE, PirClient
from quietchoir.tests.fakes.search import TEXTS, pir_server

QUESTIONS = (
    ("What time is public transport to the docks?", 3),
    ("How do I grow vegetables?", 1),
    ("Which musical instrument is described?", 2),
    ("Is the road over the Alps open in winter?", 4),
)


def test_real_questions_find_under_encryption_what_they_find_in_clear(embedder_path):
    embedder = SentenceEmbedder.load(embedder_path)
    rows = embedder.embed(list(TEXTS))
    server = pir_server(rows, [text.encode() for text in TEXTS])
    questioner = PirClient(server.shape)
    try:
        keys = questioner.keys()
        for question, right in QUESTIONS:
            vector = embedder.embed([question])[0]
            scores = questioner.scores(server.score(keys, questioner.question(vector)))
            assert np.abs(scores - rows @ vector).max() < SCORE_ERROR + 6 * SCORE_NOISE
            assert scores.argmax() == (rows @ vector).argmax() == right
        column = server.shape.layout.column_of(3)
        answer = server.read(keys, questioner.prepare(1)[0].of(column))
        assert questioner.passage(answer, 3).decode() == TEXTS[3]
    finally:
        server.close()
        questioner.close()
