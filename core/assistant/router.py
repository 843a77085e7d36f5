"""Which adapter a request is for, if any: the one whose examples lie nearest to it.

Knows unit vectors of requests, and centroids. Knows nothing of models, adapters' weights or HTTP.
Always: a request that lies nearer to general talk than to any adapter's examples is the plain
model's; the same requests give the same choice. An adapter's centroids are made of examples that
this node holds, lie in its home and are never sent.

The margin and the number of centroids were chosen on made-up households that no test sees
(`quietchoir bench assistant` measures them on others).
Source: Jang et al. 2023, "Exploring the Benefits of Training Expert Language Models over
Instruction Tuning", arXiv 2302.03202: an expert is chosen by the embedding of its training
examples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .. import config, paths
from ..errors import DataError, ModelNotFoundError
from ..models.hub import catalog

Vectors = npt.NDArray[np.float32]  # [N, D], of length one
Embed = Callable[[Sequence[str]], Vectors]
FILE = "route.safetensors"  # in an adapter's folder
EMBEDDING = "minilm-l6-v2"  # of the catalog
PLAIN = ""  # in an adapter's place: the plain model
GENERAL = "general-route"  # the folder of what is nobody's, in the node's home
CENTROIDS = 16
STEPS = 20  # of k-means
MOST_TEXTS = 256  # of an adapter's examples that are embedded: 16 a centroid
# How much nearer to general talk a request must lie to be nobody's. Below 0 more commands reach the
# adapter, and more talk; the adapter may have been taught to leave talk alone.
MARGIN = 0.0
# What the request before was, this one is, unless it is otherwise by more than this.
HYSTERESIS = 0.05


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """Who answers, and by how much it is nearer than the next."""

    adapter: str | None  # None: the plain model
    lead: float  # in cosine


class Router:
    """Chooses among adapters by the requests themselves.

    Args:
        general: centroids of requests that are nobody's, [K, D]: the plain model's side.
    """

    def __init__(self, embed: Embed, general: Vectors) -> None:
        self.embed = embed
        self.general = general

    def choose(self, requests: Sequence[str], routes: Mapping[str, Vectors]) -> RouteChoice:
        """The adapter for the last of a conversation's `requests`.

        Args:
            requests: what was asked, the last two count; the one before holds its choice.
            routes: each adapter's centroids.
        """
        last = requests[-2:]
        near = self.nearness(self.embed(last), routes)
        choice = RouteChoice(None, 0.0)
        for place in range(len(last)):
            scores = {name: float(row[place]) for name, row in near.items()}
            if place:
                scores[choice.adapter or PLAIN] += HYSTERESIS
            best, second = sorted(scores, key=lambda name: -scores[name])[:2]
            choice = RouteChoice(best or None, scores[best] - scores[second])
        return choice

    def nearness(self, vectors: Vectors, routes: Mapping[str, Vectors]) -> Mapping[str, Vectors]:
        """Each side's nearest centroid to each request, in cosine [N]; `PLAIN` is nobody's."""
        sides = {name: (vectors @ route.T).max(1) for name, route in routes.items()}
        return {**sides, PLAIN: (vectors @ self.general.T).max(1) + MARGIN}


def centroids(vectors: Vectors, count: int = CENTROIDS) -> Vectors:
    """At most `count` directions that the vectors gather around: k-means on the sphere, begun at
    vectors evenly spread over their order; [K, D].

    Source: Dhillon and Modha 2001, "Concept Decompositions for Large Sparse Text Data".
    """
    found = vectors[np.linspace(0, len(vectors) - 1, min(count, len(vectors))).astype(int)]
    for _ in range(STEPS):
        nearest = (vectors @ found.T).argmax(1)
        sums = np.stack([vectors[nearest == place].sum(0) for place in range(len(found))])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        found = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), found)
    return np.asarray(found, np.float32)


def save_route(folder: Path, requests: Sequence[str], embed: Embed) -> None:
    """Remember what an adapter, or the plain model, is for.

    Hazard: of few requests a centroid is nearly the embedding of one, from which words of it can be
    guessed: it stays on this node, and is made anew when one of them is forgotten.

    Raises:
        QuietchoirError: the disk refused.
    """
    spread = np.linspace(0, len(requests) - 1, min(MOST_TEXTS, len(requests))).astype(int)
    route = centroids(embed([requests[place] for place in dict.fromkeys(spread.tolist())]))
    paths.write_atomically(folder / FILE, save({"centroids": route}), mode=0o600)


def note_route(folder: Path, requests: Sequence[str]) -> None:
    """As `save_route`, with this node's embedding model; without one, or without requests, nothing
    is remembered, what was is dropped, and the adapter answers whatever it is active for.

    Raises:
        QuietchoirError: the disk refused, or the model is damaged.
    """
    (folder / FILE).unlink(missing_ok=True)
    try:
        model = catalog.find(config.load().embedding.model)
    except ModelNotFoundError:
        return
    if requests:
        from ..engine.embedder import SentenceEmbedder

        save_route(folder, requests, SentenceEmbedder.load(model).embed)


def read_route(folder: Path, width: int) -> Vectors | None:
    """Centroids [K, width]; None: nothing is known of what it is for.

    Raises:
        DataError: the file is damaged, or of another embedding model.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            found = np.asarray(file.get_tensor("centroids"), np.float32)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it") from error
    if found.ndim != 2 or found.shape[1] != width or not np.isfinite(found).all():
        raise DataError(
            f"{path}: holds {found.shape}, expected rows of {width}: it is of another embedding "
            f"model; delete it"
        )
    return found
