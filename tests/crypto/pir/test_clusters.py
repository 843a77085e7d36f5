"""Scores near a question: right where clusters were opened, and hidden which ones were."""

from dataclasses import replace

import numpy as np
import pytest

from quietchoir.core.errors import ProtocolError
from quietchoir.crypto.pir import clusters as clusters_module
from quietchoir.crypto.pir import lwe
from quietchoir.crypto.pir.clusters import (
    CLUSTERS,
    DROPPED_BITS,
    FULL,
    GROUPS,
    SLAB_ROWS,
    ClusterLayout,
    ClusterMap,
    arrange,
    table_of,
)
from quietchoir.crypto.pir.search import SCORE_NOISE, PassageTable, PirClient, PirServer
from quietchoir.tests.fakes.search import unit_rows

DIMENSION, PASSAGES = 32, 1500


def gathered(count: int, dimension: int) -> np.ndarray:
    """Rows around forty directions, as texts are around topics."""
    random = np.random.default_rng(5)
    topics = unit_rows(40, dimension, seed=6)[random.integers(0, 40, count)]
    rows = topics + 0.5 * unit_rows(count, dimension, seed=7)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    found = gathered(PASSAGES, DIMENSION)
    held = arrange(found)
    order = np.argsort(held, kind="stable")
    return found[order], held[order]


@pytest.fixture(scope="module")
def clusters(rows):
    return table_of(*rows)


@pytest.fixture(scope="module")
def keeper(rows, clusters):
    texts = PassageTable.of([b"x"] * PASSAGES)
    one = PirServer(rows[0], texts, clusters=clusters)
    yield one
    one.close()


@pytest.fixture(scope="module")
def questioner(keeper):
    one = PirClient(keeper.shape)
    yield one
    one.close()


@pytest.mark.parametrize("passages", [260, 1500, 20_000, 100_000, 262_144])
def test_clusters_hold_a_library_with_room_to_spare_in_whole_products(passages):
    layout = ClusterLayout(passages, 384)
    assert layout.clusters * layout.depth >= 1.1 * passages
    # nothing that a product would cost beyond what it holds
    assert SLAB_ROWS - layout.rows % SLAB_ROWS < GROUPS
    if passages >= 100_000:
        assert layout.rows < passages / 7


def test_every_passage_has_a_place_and_neighbours_lie_in_different_groups(rows):
    embeddings, held = rows
    layout = ClusterLayout(*embeddings.shape)
    assert np.bincount(held).max() <= layout.depth and held.max() < layout.clusters
    assert np.array_equal(arrange(gathered(PASSAGES, DIMENSION)), arrange(gathered(PASSAGES, 32)))
    group, same = held // CLUSTERS, []
    for row in embeddings[::50]:
        near = np.argsort(-(embeddings @ row), kind="stable")[:30]
        two = list(dict.fromkeys(held[near]))[:2]  # the clusters of what is nearest
        same.append(two[0] // CLUSTERS == two[-1] // CLUSTERS and len(two) == 2)
    assert len(group) == PASSAGES and np.mean(same) < 0.035  # by chance a 26th


def test_where_too_many_want_a_cluster_the_nearest_get_it():
    """Everything alike: clusters fill up, and nothing is lost."""
    alike = np.tile(unit_rows(1, 8), (300, 1))
    held = arrange(alike)
    layout = ClusterLayout(300, 8)
    assert np.bincount(held, minlength=layout.clusters).max() <= layout.depth
    table = table_of(alike, np.sort(held))
    assert table.map.counts.sum() == 300


def test_a_passage_stands_once_so_a_vector_for_each_group_asks_it_along_one_direction(
    clusters, rows
):
    known, passage = clusters.map, 700
    layout, numbers = known.layout, np.rint(known.scale * rows[0]).astype(np.int8)
    places = clusters.table.reshape(GROUPS, layout.depth, CLUSTERS, DIMENSION)
    filled = places[np.abs(places).max(axis=3) > 0]
    assert sorted(map(bytes, filled)) == sorted(map(bytes, numbers))
    doubled = clusters.table.copy()
    home = int(rows[1][passage]) // CLUSTERS
    other, row, cluster = np.argwhere(np.abs(places).max(axis=3) == 0)[-1]
    assert other != home
    doubled.reshape(places.shape)[other, row, cluster] = numbers[passage]
    vectors = unit_rows(2, DIMENSION, seed=11).astype(float)
    directions = vectors[(np.arange(GROUPS) != home).astype(int)]  # one for the passage's group
    chosen = np.full(GROUPS, cluster)
    chosen[home] = rows[1][passage] % CLUSTERS
    bare = lwe.Mask(np.zeros(lwe.DIMENSION, np.int8), np.zeros(layout.columns, np.uint32))
    query = known.query(bare, directions, chosen)
    told = {}
    for name, table in (("once", clusters.table), ("twice", doubled)):
        words = replace(clusters, table=table).scan(query, 0.0).view(np.int16).astype(float)
        told[name] = words.reshape(GROUPS, -1) * (1 << DROPPED_BITS) / FULL
    one, two = vectors @ numbers[passage] / known.scale
    own = passage - (np.cumsum(known.counts) - known.counts)[rows[1][passage]]
    for answers in told.values():
        assert answers[home, own] == pytest.approx(one, abs=1e-3)
    assert told["once"][other, row] == 0
    assert told["twice"][other, row] == pytest.approx(two, abs=1e-3) != 0  # the unprotected arm


def test_what_is_opened_has_its_cosines_and_the_best_are_found(keeper, questioner, clusters, rows):
    keys, embeddings = questioner.keys(), rows[0]
    found, errors = [], []
    for index in (0, 700, 1499):
        question = embeddings[index] + 0.2 * unit_rows(1, DIMENSION, seed=index)[0]
        parts, near = questioner.near(question, clusters.map)
        scores = questioner.near_scores(keeper.near(keys, parts), near)
        clear = embeddings @ (question / np.linalg.norm(question))
        opened = scores > -1.5
        # a tenth of a library; here more: clusters of too few passages were given up
        assert 0.03 < opened.mean() < 0.6 and scores.argmax() == clear.argmax()
        best = set(np.argsort(-clear)[:10])
        found.append(len(best & set(np.argsort(-scores)[:10])) / 10)
        scale = clusters.map.scale
        stored = np.rint(scale * embeddings) / scale @ (question / np.linalg.norm(question))
        errors.append((scores - stored)[opened])
    assert np.mean(found) >= 0.8
    # stated: four times the flooding, beside what the table's 8 bits round
    assert 2 * SCORE_NOISE < np.std(np.concatenate(errors)) < 5.5 * SCORE_NOISE


def test_the_keeper_sees_the_same_of_two_questions_and_without_a_mask_it_sees_the_clusters(
    questioner, clusters, rows
):
    first, second = (questioner.near(rows[0][at], clusters.map) for at in (0, 1400))
    assert [len(part) for part in first[0]] == [len(part) for part in second[0]]
    assert not np.array_equal(first[1].clusters, second[1].clusters)
    direction = rows[0][0].astype(float)
    width = clusters.map.layout.dimension

    def loudest(words):
        """The place in each group whose words stand out, as a keeper would look for it."""
        parts = np.abs(words.view(np.int32).astype(float)).reshape(GROUPS, CLUSTERS, width)
        return parts.sum(axis=2).argmax(axis=1)

    bare = lwe.Mask(
        np.zeros(lwe.DIMENSION, np.int8), np.zeros(width * GROUPS * CLUSTERS, np.uint32)
    )
    chosen = clusters.map.nearest(direction)
    # the unprotected arm
    assert np.array_equal(loudest(clusters.map.query(bare, direction, chosen)), chosen)
    guessed = [
        (loudest(np.frombuffer(parts[0], np.uint32)) == near.clusters).mean()
        for parts, near in (first, second, questioner.near(direction, clusters.map))
    ]
    assert np.mean(guessed) < 0.35  # by chance a tenth, of 78 groups


def test_two_questions_read_the_same_parts_of_the_table_in_the_same_order(clusters, monkeypatch):
    """All groups, each whole, with a part of the query that has one size."""
    told = []
    scan = lwe.scan

    def watched(table, query):
        told.append((table.__array_interface__["data"][0], table.shape, query.shape))
        return scan(table, query)

    monkeypatch.setattr(lwe, "scan", watched)
    layout = clusters.map.layout
    for _ in range(2):
        clusters.scan(lwe.mask(layout.columns, layout.group_columns).words, SCORE_NOISE)
    assert told[:GROUPS] == told[GROUPS:] and len(set(told)) == GROUPS


def told_whole(known: ClusterMap, passages: np.ndarray) -> int:
    """How many of these passages' embeddings a map's reader finds in it, alone or by taking a mean
    off another.
    """
    means = known.means.reshape(-1, passages.shape[1]).astype(np.float32)
    means = np.unique(means[np.abs(means).max(axis=1) > 0], axis=0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    one, other = np.triu_indices(len(means), 1)
    near = (means[one] * means[other]).sum(axis=1) > 0.9  # a mean with one more, and without
    one, other = np.concatenate([one, other])[:, np.newaxis], np.concatenate([other, one])
    near = np.concatenate([near, near])
    apart = means[one[near, 0]] - means[other[near]]
    guesses = [means, apart / np.maximum(1e-9, np.linalg.norm(apart, axis=1, keepdims=True))]
    return int((np.concatenate(guesses) @ passages.T > 0.99).any(axis=0).sum())


def test_a_map_tells_no_mean_of_fewer_than_twelve_passages(monkeypatch):
    """Passages far from all others, and one that stands in the library a dozen times."""
    alone, often = unit_rows(20, DIMENSION, seed=9), unit_rows(1, DIMENSION, seed=10)
    rows = np.concatenate([gathered(1200, DIMENSION), alone, np.tile(often, (15, 1))])
    rows = rows.astype(np.float32)
    seen = np.concatenate([alone, often])

    def map_of() -> ClusterMap:
        held = arrange(rows)
        order = np.argsort(held, kind="stable")
        with monkeypatch.context() as without:  # which a map does not need
            without.setattr(lwe, "hint", lambda *_: np.zeros((1, 1), np.int32))
            return table_of(rows[order], held[order]).map

    mended = map_of()
    assert told_whole(mended, seen) == 0
    assert ((mended.counts == 0) | (mended.counts >= clusters_module.FEWEST)).all()
    assert np.abs(mended.means).max(axis=(1, 2))[mended.counts > 0].min() > 0  # all can be found
    monkeypatch.setattr(clusters_module, "FEWEST", 1)  # the unprotected arm
    assert told_whole(map_of(), seen) > 10


def test_a_map_is_read_whole_or_refused(clusters):
    raw, layout = clusters.map.encode(), clusters.map.layout
    again = ClusterMap.decode(raw, layout)
    assert again.encode() == raw and len(raw) == layout.map_bytes
    for spoiled in (
        raw[:-1],
        bytes(len(raw)),
        replace(clusters.map, scale=5).encode(),
        replace(clusters.map, counts=np.roll(clusters.map.counts, 1) + 1).encode(),
    ):
        with pytest.raises(ProtocolError, match="map of"):
            ClusterMap.decode(spoiled, layout)
    with pytest.raises(ProtocolError, match="too few"):
        ClusterLayout(GROUPS * CLUSTERS - 1, 8)


def test_an_answer_to_another_key_and_other_sizes_are_refused(
    keeper, questioner, clusters, rows, monkeypatch
):
    parts, near = questioner.near(rows[0][0], clusters.map)
    for wrong in ([], parts[:1], [parts[0][:-4], parts[1]]):
        with pytest.raises(ProtocolError, match="expected"):
            keeper.near(questioner.keys(), wrong)
    stranger = PirClient(keeper.shape)
    try:
        answer = keeper.near(stranger.keys(), parts)
        worked, scores = [], ClusterMap.scores

        def watched(*given):
            worked.append(given)
            return scores(*given)

        monkeypatch.setattr(ClusterMap, "scores", watched)
        with pytest.raises(ProtocolError, match="no mask off"):
            questioner.near_scores(answer, near)
        assert len(worked) == 1  # as of an answer that opens: the host sees when we go on
    finally:
        stranger.close()
