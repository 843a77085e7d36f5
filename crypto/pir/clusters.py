"""Scores of the passages near a question alone, without telling the keeper where that is.

Passages lie in clusters of one depth, and clusters in groups. An asker opens one cluster of every
group: it sends a learning-with-errors query over all of them, with its embedding added in the
place of the nearest cluster of each group. The keeper multiplies each group's embeddings with that
group's part, and its hint with the encrypted secret, as for a passage (`lwe`): each group's sum is
the scores of one cluster, and which one, only the asker knows. The keeper's work is its whole table
once, whatever is asked (Tiptoe's idea, with one cluster a group instead of one in all).

Knows vectors, places and numbers modulo 2^32. Knows nothing of texts, of SEAL, or of who asks.
Always: as many clusters are opened as there are groups, and every group's part is of one size. A
mean that is told is of at least `FEWEST` different passages, and of none that another is of. A
passage stands in one place: a second one would be asked along a direction of its own, and budgets
count questions (`search.Shape.largest_budget`).

Source: Henzinger, Dauterman, Corrigan-Gibbs, Zeldovich, "Private Web Search with Tiptoe", eprint
2023/1438, section 4.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...core.errors import ProtocolError
from ..he.ckks import gaussian
from . import lwe

Vectors = npt.NDArray[np.float32]

GROUPS = 26  # clusters that a question opens, one a group
MEANS = 8  # directions at most that stand for a cluster, so that the nearest one is found
FEWEST = 12  # different passages of which a mean is told; of fewer it would tell these
CLUSTERS = 10  # of a group: a question is scored against about a tenth of the library
SLACK = 1.15  # room of all clusters together, beside what they hold
SLAB_ROWS = 4096  # of the hint, which the keeper multiplies at once: depths fill them
# A cosine of 1, of the 2^31 that a centred word holds: noise of 2^22 stays inside.
FULL = 15 / 16 * 2.0**31
LARGEST = 127  # number of the table
FINEST = 512  # numbers for an entry of 1: those of embeddings are of at most a quarter
DROPPED_BITS = 16  # of a score's word, below its noise
SAMPLE, ITERATIONS = 20_000, 8  # of k-means
# Questions that passages stand for where clusters are dealt: this far off, and each near so many
# clusters, of which the first count most.
ASKED, AWAY, NEAREST = 4000, 0.05, 20
CHUNK = 8192  # passages compared with all centroids at a time
COUNT_BYTES = 4


@dataclass(frozen=True, slots=True)
class ClusterLayout:
    """Where passages stand in the clusters. Follows from two numbers, so that both sides know it.

    Raises:
        ProtocolError: fewer passages than clusters.
    """

    passages: int
    dimension: int

    def __post_init__(self) -> None:
        if self.passages < self.clusters:
            raise ProtocolError(
                f"{self.passages} passages are too few for {self.clusters} clusters; serve them "
                f"without"
            )

    @property
    def clusters(self) -> int:
        """Of all groups together; those of a group stand together."""
        return GROUPS * CLUSTERS

    @property
    def depth(self) -> int:
        """Passages that a cluster has room for."""
        slabs = -(-int(SLACK * self.passages / CLUSTERS) // SLAB_ROWS)
        return max(1, slabs) * SLAB_ROWS // GROUPS

    @property
    def rows(self) -> int:
        """Scores of one question: a cluster's depth for each group."""
        return GROUPS * self.depth

    @property
    def group_columns(self) -> int:
        """Words of one group's part of a query."""
        return CLUSTERS * self.dimension

    @property
    def columns(self) -> int:
        """Words of a query."""
        return self.clusters * self.dimension

    @property
    def map_bytes(self) -> int:
        """Size of what an asker must know beforehand."""
        return COUNT_BYTES * (1 + self.clusters) + MEANS * self.columns


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """What an asker must know of the clusters: a part of a library that all who may ask are told.

    It tells directions of means, each of `FEWEST` different embeddings or more, in 8 bits, and how
    many passages a cluster has.

    Hazard: a dozen passages that say nearly the same are told by their mean; and who compares the
    maps of two editions sees means move, hence something of a passage that came or went.
    """

    layout: ClusterLayout
    scale: int  # of the table's numbers: so many for an entry of 1
    counts: npt.NDArray[np.int64]  # passages of each cluster; numbered in this order
    means: npt.NDArray[np.int8]  # [clusters, MEANS, dimension]; fewer are repeated

    def encode(self) -> bytes:
        """`map_bytes` of them."""
        head = np.concatenate([[self.scale], self.counts]).astype("<u4").tobytes()
        return head + self.means.tobytes()

    @staticmethod
    def decode(raw: bytes, layout: ClusterLayout) -> "ClusterMap":
        """Undo `encode`.

        Raises:
            ProtocolError: no map of such a library.
        """
        if len(raw) != layout.map_bytes:
            raise ProtocolError(
                f"a map of {len(raw)} bytes, expected {layout.map_bytes}; update both sides"
            )
        cut = COUNT_BYTES * (1 + layout.clusters)
        head = np.frombuffer(raw[:cut], "<u4").astype(np.int64)
        scale, counts = int(head[0]), head[1:]
        means = np.frombuffer(raw[cut:], np.int8).reshape(layout.clusters, MEANS, -1)
        if (
            not LARGEST <= scale <= FINEST
            or counts.sum() != layout.passages
            or counts.max() > layout.depth
        ):
            raise ProtocolError("a map of clusters that do not add up; ask its host's owner")
        return ClusterMap(layout, scale, counts, means)

    def nearest(self, direction: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The cluster of each group that is nearest, [GROUPS], by their numbers in the group."""
        near = (self.means.astype(np.float64) @ direction).max(axis=1)
        near[self.counts == 0] = -np.inf  # nothing is there
        best: npt.NDArray[np.int64] = near.reshape(GROUPS, CLUSTERS).argmax(axis=1)
        return best

    def query(
        self, mask: lwe.Mask, direction: npt.NDArray[np.float64], chosen: npt.NDArray[np.int64]
    ) -> lwe.Words:
        """The words that open these clusters for an embedded question of length 1.

        Hazard: a mask serves one query.
        """
        added = np.rint(FULL / self.scale * direction).astype(np.int64).astype(np.uint32)
        asked = mask.words.copy().reshape(GROUPS, CLUSTERS, self.layout.dimension)
        asked[np.arange(GROUPS), chosen] += added  # wraps
        return asked.reshape(-1)

    def scores(
        self,
        answer: npt.NDArray[np.uint16],
        masked: npt.NDArray[np.float64],
        chosen: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """Scores of all passages, [passages], below -1 where one was not opened. The same work
        whichever clusters were.

        Args:
            answer: [rows].
            masked: hint x secret, nearly, [rows].
        """
        words = answer.astype(np.float64) * (1 << DROPPED_BITS) - masked
        values = (words + 2.0**31) % 2.0**32 - 2.0**31
        depth, clusters = self.layout.depth, np.arange(GROUPS) * CLUSTERS + chosen
        first = np.cumsum(self.counts) - self.counts
        row = np.arange(depth)
        numbers = first[clusters][:, None] + row
        numbers[row >= self.counts[clusters][:, None]] = self.layout.passages  # nobody's
        found = np.full(self.layout.passages + 1, -2.0, np.float32)
        found[numbers] = (values / FULL).astype(np.float32).reshape(GROUPS, depth)
        return found[:-1]


@dataclass(frozen=True, slots=True)
class ClusterTable:
    """What a keeper scores near a question with, in memory or mapped."""

    map: ClusterMap
    table: npt.NDArray[np.int8]  # [GROUPS, depth, group_columns]
    hint: npt.NDArray[np.int32] | Path  # [rows, lwe.DIMENSION]; a path of an .npy file

    def scan(self, query: lwe.Words, deviation: float) -> npt.NDArray[np.uint16]:
        """Each group's table x its part of the query, [rows], with noise on every word.

        Args:
            deviation: of a cosine.
        """
        parts = query.reshape(GROUPS, -1)
        words = np.concatenate(
            [lwe.scan(group, part) for group, part in zip(self.table, parts, strict=True)]
        )
        noise = np.rint(gaussian(len(words), deviation * FULL)).astype(np.int64)
        half = 1 << (DROPPED_BITS - 1)
        noisy = (words.astype(np.int64) + noise + half) >> DROPPED_BITS
        return noisy.astype(np.uint16)  # wraps


def arrange(embeddings: Vectors, seed: int = 0) -> npt.NDArray[np.int64]:
    """The cluster of each passage.

    Args:
        embeddings: [passages, dimension], rows of length 1.
        seed: of k-means: the same passages give the same clusters.

    Raises:
        ProtocolError: fewer passages than clusters.
    """
    layout = ClusterLayout(*embeddings.shape)
    random = np.random.default_rng(seed)
    sample = embeddings[random.permutation(len(embeddings))[:SAMPLE]]
    centroids = sample[: layout.clusters].copy()
    for _ in range(ITERATIONS):
        centroids = _means(sample, (sample @ centroids.T).argmax(axis=1), centroids)
    held = _peopled(embeddings, centroids, layout.depth)
    numbers = np.empty(layout.clusters, np.int64)
    away = AWAY * random.standard_normal((ASKED, layout.dimension)).astype(np.float32)
    asked = embeddings[random.integers(0, len(embeddings), ASKED)] + away
    spread = _spread(embeddings, held, layout.clusters)
    numbers[_dealt((spread @ asked.T).max(axis=1).T)] = np.arange(layout.clusters)
    return numbers[held]


def table_of(embeddings: Vectors, clusters: npt.NDArray[np.int64]) -> ClusterTable:
    """The table and its hint. Args: clusters: of each passage, rising."""
    layout = ClusterLayout(*embeddings.shape)
    scale = min(FINEST, int(LARGEST / float(np.abs(embeddings).max())))
    counts = np.bincount(clusters, minlength=layout.clusters)
    row = np.arange(layout.passages) - (np.cumsum(counts) - counts)[clusters]
    whole = np.zeros((GROUPS, layout.depth, CLUSTERS, layout.dimension), np.int8)
    whole[clusters // CLUSTERS, row, clusters % CLUSTERS] = np.rint(scale * embeddings)
    table = whole.reshape(GROUPS, layout.depth, -1)
    size = layout.group_columns
    hints = [lwe.hint(part, at * size) for at, part in enumerate(table)]
    means = _spread(embeddings, clusters, layout.clusters)
    small = np.rint(LARGEST / max(1e-9, float(np.abs(means).max())) * means).astype(np.int8)
    return ClusterTable(ClusterMap(layout, scale, counts, small), table, np.concatenate(hints))


def _means(vectors: Vectors, held: npt.NDArray[np.int64], before: Vectors) -> Vectors:
    """Mean directions; of a cluster without any, the one before."""
    found = before.copy()
    for cluster in range(len(before)):
        mine = vectors[held == cluster]
        if len(mine) and (length := np.linalg.norm(mean := mine.mean(axis=0))) > 0:
            found[cluster] = mean / length
    return found


def _spread(vectors: Vectors, held: npt.NDArray[np.int64], clusters: int) -> Vectors:
    """Directions that stand for each cluster, [clusters, MEANS, dimension]; zeros for one of fewer
    than `FEWEST` different passages.
    """
    found = np.zeros((clusters, MEANS, vectors.shape[1]), np.float32)
    kinds = _kinds(vectors)
    for cluster in np.unique(held):
        mine = held == cluster
        if len(means := _part_means(vectors[mine], kinds[mine])):
            found[cluster] = np.resize(means, found[cluster].shape)
    return found


def _part_means(vectors: Vectors, kinds: npt.NDArray[np.int64]) -> Vectors:
    """Directions of the parts of one cluster, [at most MEANS, dimension], none of a part with fewer
    than `FEWEST` different passages.

    Parts have nothing in common: two means, one with a passage and one without it, would tell it.
    """
    means = np.resize(vectors[:: max(1, len(vectors) // MEANS)], (MEANS, vectors.shape[1]))
    for _ in range(ITERATIONS):
        means = _means(vectors, (vectors @ means.T).argmax(axis=1), means)
    while len(means):
        part = (vectors @ means.T).argmax(axis=1)
        counts = _different(part, kinds, len(means))
        if counts.min() >= FEWEST:
            return _means(vectors, part, np.zeros_like(means))
        means = np.delete(means, counts.argmin(), axis=0)
    return means


def _kinds(vectors: Vectors) -> npt.NDArray[np.int64]:
    """A number for each row, of equal rows the same."""
    found: dict[bytes, int] = {}
    return np.array([found.setdefault(row.tobytes(), len(found)) for row in vectors])


def _different(
    held: npt.NDArray[np.int64], kinds: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """How many different rows each part holds, [count]."""
    most = int(kinds.max()) + 1
    return np.bincount(np.unique(held * most + kinds) // most, minlength=count)


def _peopled(vectors: Vectors, centroids: Vectors, depth: int) -> npt.NDArray[np.int64]:
    """The cluster of each passage, as `_fitted`; those of fewer than `FEWEST` different ones are
    given up, as long as there is room for all, and stay empty.
    """
    kinds, kept = _kinds(vectors), np.arange(len(centroids))
    while True:
        held = _fitted(vectors, centroids[kept], depth)
        counts = _different(held, kinds, len(kept))
        order = np.argsort(counts, kind="stable")  # the emptiest first
        spare = len(kept) + (-len(vectors) // depth)
        few = order[counts[order] < FEWEST][: min(spare, max(1, len(kept) // 2))]
        if not len(few):
            return kept[held]
        kept = np.delete(kept, few)


def _fitted(vectors: Vectors, centroids: Vectors, depth: int) -> npt.NDArray[np.int64]:
    """The nearest cluster of each that has room: where too many want one, the nearest get it."""
    held = np.full(len(vectors), -1)
    room = np.full(len(centroids), depth)
    while len(left := np.flatnonzero(held < 0)):
        closed = np.where(room > 0, 0.0, -np.inf).astype(np.float32)
        wanted, near = np.empty(len(left), np.int64), np.empty(len(left), np.float32)
        for start in range(0, len(left), CHUNK):
            part = left[start : start + CHUNK]
            scores = vectors[part] @ centroids.T + closed
            wanted[start : start + CHUNK] = scores.argmax(axis=1)
            near[start : start + CHUNK] = scores.max(axis=1)
        for cluster in np.unique(wanted):
            who = np.flatnonzero(wanted == cluster)
            who = who[np.argsort(-near[who], kind="stable")[: room[cluster]]]
            held[left[who]] = cluster
            room[cluster] -= len(who)
    return held


def _dealt(near: Vectors) -> npt.NDArray[np.int64]:
    """Clusters in the order of groups, those that one question would open in different ones.

    The most wanted are dealt first, each to the group with room whose members are least wanted
    together with it.

    Args:
        near: of questions and clusters, [questions, clusters].
    """
    count = min(NEAREST, near.shape[1])
    wanted = np.zeros_like(near)
    first = np.argsort(-near, axis=1)[:, :count]
    wanted[np.arange(len(near))[:, None], first] = (1 + np.arange(count)) ** -0.5
    together = wanted.T @ wanted
    groups: list[list[int]] = [[] for _ in range(GROUPS)]
    for cluster in np.argsort(-together.sum(axis=1), kind="stable"):
        row = together[cluster]
        free = [group for group in groups if len(group) < CLUSTERS]
        best = min(free, key=lambda group: float(row[group].sum()))
        best.append(int(cluster))
    return np.array([cluster for group in groups for cluster in group])
