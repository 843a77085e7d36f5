"""Which adapter a request is for, if any: a small classifier an adapter, made of its own examples.

Knows unit vectors of requests, and weights for them. Knows nothing of models, adapters' weights or
HTTP.
Always: a request that no adapter's classifier takes for its own is the plain model's; the same
requests give the same choice. A classifier is made of examples that this node holds, lies in its
home, holds for that adapter and that embedding model alone, and is never sent.

A classifier is a logistic regression over the sentence's embedding, with a second set of weights
for what is said right after a request that the adapter answered: "and the kitchen too" is a command
there and nothing elsewhere. A third set tells such requests from those that stand by themselves:
an adapter of single requests does worse at these behind others. The thresholds follow from examples
that it did not learn from, talk by whole clusters, so that what judges it is of kinds that it never
saw.

Source: Jang et al. 2023, "Exploring the Benefits of Training Expert Language Models over
Instruction Tuning", arXiv 2302.03202: an expert is chosen by the embedding of its training
examples. Larson et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope
Prediction": what is for nobody has to be learned, a distance alone does not tell it.
Not covered: talk of a kind that neither the node nor the adapter's examples know; what it is worth
is printed by `quietchoir bench silence`, on talk and tasks that nothing here was chosen on.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .. import config, paths
from ..errors import DataError, ModelNotFoundError
from ..models.hub import catalog
from ..prompt import PromptFormat
from ..toolcall import ToolCall, parse_all
from .calibration import wording

Vectors = npt.NDArray[np.float32]  # [N, D], of length one
Embed = Callable[[Sequence[str]], Vectors]
FILE = "route.safetensors"  # in an adapter's folder
TENSORS, LEANING, TOLD = ("weights", "thresholds"), "leaning", "told"
EMBEDDING = "minilm-l6-v2"  # of the catalog
LOOKED_BACK = 3  # requests of a conversation that are looked at, the last among them
MOST_EXAMPLES = 512  # of an adapter's, evenly from all
DECAY = 1e-3  # of the weights, a row: what keeps 385 of them from learning rows by heart
STEPS = 300  # of gradient descent; more change nothing
FOLDS = 5  # of which each judges what the others taught
CLUSTERS = 20  # of talk; a fold holds some of them whole
NEAR = 0.75  # cosine; general talk that lies so near to an example is the adapter's own matter
# What held-out examples must show at the threshold: at most so much of the talk passes, and at most
# so many of the adapter's own requests do not, which counts more where both cannot be had.
MOST_CALLED = 0.02
MOST_LOST = 0.02
KMEANS_STEPS = 20
# What may stand between two wishes, in the languages in which we could check it.
JOINT = re.compile(
    r"\s*,?\s+(?:(?:and|und|et|y|e|en)(?:\s+(?:then|also|after that|dann|danach|auch|puis|aussi))?"
    r"|then|as well as|dann|danach|sowie|puis)\s+",
    re.IGNORECASE,
)
MOST_JOINTS = 4  # of a sentence that are tried


@dataclass(frozen=True, slots=True)
class RouteExample:
    """One request of an adapter's examples, or of talk."""

    text: str
    wanted: bool = True  # the adapter's to answer
    follows: bool = False  # said right after one that it answered
    implied: tuple[str, ...] = ()  # what its right calls hold that nobody said, with their tool
    values: tuple[str, ...] = ()  # texts that its right calls hold


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """What an adapter is for."""

    weights: Vectors  # [2, D + 1], the bias last: of any request; added where it follows
    thresholds: Vectors  # [2], log-odds: of a request by itself; of one that follows
    implied: frozenset[str] = frozenset()  # what calls may hold that nobody said, with their tool
    joined: frozenset[str] = frozenset()  # names that hold a joint: the "salt and pepper lamp"
    # [D + 1], the bias last: of requests that lean on the one before them; empty: nobody knows
    leaning: Vectors = field(default_factory=lambda: np.empty(0, np.float32))

    def lead(self, vector: Vectors, *, follows: bool) -> float:
        """By how much, in log-odds, a request [D] is the adapter's; below zero it is not.

        Args:
            follows: the adapter answered the request before it.
        """
        return float(log_odds(self.weights, vector[None], np.array([follows]))[0]) - float(
            self.thresholds[int(follows)]
        )

    def leans(self, vector: Vectors) -> bool:
        """Whether a request [D] of the adapter's means something only after the one before it; so
        it is taken where its examples do not tell.
        """
        known = self.leaning
        return not len(known) or float(vector @ known[:-1] + known[-1]) > 0

    def wishes(self, text: str, embed: Embed) -> Sequence[str]:
        """The two wishes of one sentence, in their order, or the sentence: it is cut where both
        sides are the adapter's, the second as what follows the first, and never within a name.
        """
        names = [
            found.span()
            for name in self.joined
            for found in re.finditer(re.escape(name), text, re.IGNORECASE)
        ]
        cuts = [
            (text[: cut.start()].strip(), text[cut.end() :].strip())
            for cut in JOINT.finditer(text)
            if not any(start <= cut.start() < end for start, end in names)
        ]
        # one word is no wish that another could follow
        cuts = [cut for cut in cuts if len(cut[0].split()) > 1 and cut[1]][:MOST_JOINTS]
        if not cuts:
            return (text,)
        vectors = embed([side for cut in cuts for side in cut])
        leads = [
            min(
                self.lead(vectors[2 * place], follows=False),
                self.lead(vectors[2 * place + 1], follows=True),
            )
            for place in range(len(cuts))
        ]
        likeliest = max(range(len(cuts)), key=leads.__getitem__)
        return cuts[likeliest] if leads[likeliest] > 0 else (text,)

    def names(self, said: Sequence[str], calls: Sequence[ToolCall]) -> bool:
        """Whether what was said or called, the request last, names all that its calls hold, but for
        what right calls of those tools hold unsaid (`domain: light`): a model that has learned to
        call makes a lamp of a grandfather.
        """
        return implied_by(said, calls) <= self.implied


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """Who answers, and by how much it is its request."""

    adapter: str | None  # None: the plain model
    lead: float  # in log-odds, of the adapter that is nearest to it; below zero: the plain model's


class Router:
    """Chooses among adapters by the requests themselves.

    Args:
        identity: of the embedding model; a route of another one says nothing.
    """

    def __init__(self, embed: Embed, identity: str) -> None:
        self.embed = embed
        self.identity = identity

    @cached_property
    def width(self) -> int:
        """Columns of a route's weights for these vectors."""
        return int(self.embed(["a"]).shape[1]) + 1

    def choose(self, requests: Sequence[str], routes: Mapping[str, Route]) -> RouteChoice:
        """The adapter for the last of a conversation's `requests`.

        Args:
            requests: what was asked; who answers one decides how the next is looked at.
            routes: by adapter, one at least.
        """
        choice = RouteChoice(None, 0.0)
        for vector in self.embed(requests[-LOOKED_BACK:]):
            leads = {
                name: route.lead(vector, follows=name == choice.adapter)
                for name, route in routes.items()
            }
            nearest = max(leads, key=lambda name: leads[name])
            choice = RouteChoice(nearest if leads[nearest] > 0 else None, leads[nearest])
        return choice


def route_example(messages: Sequence[Mapping[str, str]], prompt: PromptFormat) -> RouteExample:
    """What an example teaches a router.

    Args:
        messages: its conversation, the answer last.
        prompt: how its adapter is asked; of one of tool calls, a text is what it says to requests
            that are not its own.
    """
    *past, request, answer = messages
    asked = [place for place, one in enumerate(past) if one["role"] == "user"]
    before = past[asked[-1] + 1 :] if asked else []

    def own(answer: Mapping[str, str]) -> bool:
        return not prompt.ends_with_call or bool(parse_all(answer["content"]))

    follows = any(one["role"] == "assistant" and own(one) for one in before)
    said = [one["content"] for one in (*past, request) if one["role"] != "system"]
    calls = parse_all(answer["content"])
    values = [one for call in calls for one in call.arguments.values() if isinstance(one, str)]
    implied = tuple(sorted(implied_by(said, calls)))
    return RouteExample(request["content"], own(answer), follows, implied, tuple(values))


def implied_by(said: Sequence[str], calls: Sequence[ToolCall]) -> frozenset[str]:
    """What calls hold that was not said, each with its tool."""
    return frozenset(
        f"{call.name}: {one}" for call in calls for one in wording(said, [call]).implied
    )


def fit_route(examples: Sequence[RouteExample], general: Sequence[str], embed: Embed) -> Route:
    """A classifier of an adapter's requests.

    Args:
        examples: the adapter's; one at least is wanted.
        general: talk that is nobody's, one at least.
    """
    spread = np.linspace(0, len(examples) - 1, min(MOST_EXAMPLES, len(examples))).astype(int)
    chosen = [examples[place] for place in dict.fromkeys(spread.tolist())]
    chosen += [one for one in examples if one.wanted][:1]
    vectors, talk = embed([one.text for one in chosen]), embed(general)
    wanted = np.array([one.wanted for one in chosen])
    talk = talk[(talk @ vectors[wanted].T).max(1) < NEAR] if len(talk) else talk
    alone = ~np.array([one.follows for one in chosen])
    held = folds(np.concatenate([vectors, talk]), np.append(wanted, np.zeros(len(talk), bool)))
    held, held_talk, nobody = held[: len(chosen)], held[len(chosen) :], np.zeros(len(talk), bool)
    # whatever means something by itself may be said after another request as well
    parts = [
        (vectors, wanted, ~alone, held),
        (vectors[alone], wanted[alone], np.ones(alone.sum(), bool), held[alone]),
        (talk, nobody, nobody, held_talk),
        (talk, nobody, ~nobody, held_talk),
    ]
    rows, own, follows, fold = (np.concatenate(column) for column in zip(*parts, strict=True))
    judged = np.empty(len(rows))
    for number in range(FOLDS):
        asked, kept = fold == number, fold != number
        weights = fitted(rows[kept], own[kept], follows[kept])
        judged[asked] = log_odds(weights, rows[asked], follows[asked])
    found = [
        threshold(judged[own & (follows == after)], judged[~own & (follows == after)])
        for after in (False, True)
    ]
    implied = frozenset(one for example in examples for one in example.implied)
    values = {one for example in examples for one in example.values}
    joined = frozenset(one for one in values if JOINT.search(one))
    leaning = fit_leaning(vectors[wanted], ~alone[wanted])
    thresholds = np.array(found, np.float32)
    return Route(fitted(rows, own, follows), thresholds, implied, joined, leaning)


def fit_leaning(vectors: Vectors, follows: npt.NDArray[np.bool_]) -> Vectors:
    """Weights [D + 1] that tell an adapter's requests that follow others from those that do not;
    empty where there are too few of either to judge them by others.
    """
    if min(follows.sum(), (~follows).sum()) < FOLDS:
        return np.empty(0, np.float32)
    fold, nobody = np.empty(len(vectors), int), np.zeros(len(vectors), bool)
    for kind in (follows, ~follows):
        fold[kind] = np.arange(kind.sum()) % FOLDS
    judged = np.empty(len(vectors), np.float32)
    for number in range(FOLDS):
        asked, kept = fold == number, fold != number
        weights = fitted(vectors[kept], follows[kept], nobody[kept])
        judged[asked] = log_odds(weights, vectors[asked], nobody[asked])
    found = fitted(vectors, follows, nobody)[0]
    found[-1] -= parting(judged[follows], judged[~follows])
    return np.asarray(found, np.float32)


def parting(above: Vectors, below: Vectors) -> float:
    """Where two kinds part with the fewest errors, each kind's share of them weighing the same; of
    equally good places the middle.
    """
    known = np.sort(np.concatenate([above, below]))
    places = (known[1:] + known[:-1]) / 2
    errors = [(above <= place).mean() + (below > place).mean() for place in places]
    return float(np.median(places[np.isclose(errors, min(errors))]))


def log_odds(weights: Vectors, vectors: Vectors, follows: npt.NDArray[np.bool_]) -> Vectors:
    """[N], of requests [N, D] each alone or after one that the adapter answered."""
    used = weights[0] + follows[:, None] * weights[1]  # [N, D + 1]
    return np.asarray((vectors * used[:, :-1]).sum(1) + used[:, -1], np.float32)


def fitted(vectors: Vectors, own: npt.NDArray[np.bool_], follows: npt.NDArray[np.bool_]) -> Vectors:
    """Weights [2, D + 1] of the regression, in which both sides weigh the same.

    Source: Nesterov 2004, "Introductory Lectures on Convex Optimization", section 2.2.1 (the
    constant-step scheme; a row's square is 4 at most, so the slope changes by no more than 1).
    """
    count, width = len(vectors), vectors.shape[1] + 1
    first = np.concatenate([vectors, np.ones((count, 1), np.float32)], 1)
    rows = np.concatenate([first, first * follows[:, None]], 1)  # [N, 2 (D + 1)]
    share = np.where(own, 0.5 / max(1, own.sum()), 0.5 / max(1, (~own).sum())).astype(np.float32)
    smooth, root = 1 + DECAY, DECAY**0.5
    momentum = (smooth**0.5 - root) / (smooth**0.5 + root)
    weights = ahead = np.zeros(2 * width, np.float32)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-np.clip(rows @ ahead, -30, 30)))
        before, weights = (
            weights,
            ahead - (rows.T @ (share * (chance - own)) + DECAY * ahead) / smooth,
        )
        ahead = weights + momentum * (weights - before)
    return np.asarray(weights.reshape(2, width), np.float32)


def folds(vectors: Vectors, own: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Which fold each row is held out in: what is wanted in turn, talk by whole clusters."""
    found = np.arange(len(vectors)) % FOLDS
    talk = vectors[~own]
    if len(talk):
        found[~own] = (talk @ centroids(talk, CLUSTERS).T).argmax(1) % FOLDS
    return found


def threshold(own: Vectors, talk: Vectors) -> float:
    """Where held-out requests part, by their log-odds; in the middle, if nothing lies between."""
    lost = float(np.quantile(own, MOST_LOST)) if len(own) else 0.0
    called = float(np.quantile(talk, 1 - MOST_CALLED)) if len(talk) else lost
    return lost if lost <= called else (lost + called) / 2


def centroids(vectors: Vectors, count: int) -> Vectors:
    """At most `count` directions that the vectors gather around: k-means on the sphere, begun at
    vectors evenly spread over their order; [K, D].

    Source: Dhillon and Modha 2001, "Concept Decompositions for Large Sparse Text Data".
    """
    found = vectors[np.linspace(0, len(vectors) - 1, min(count, len(vectors))).astype(int)]
    for _ in range(KMEANS_STEPS):
        nearest = (vectors @ found.T).argmax(1)
        sums = np.stack([vectors[nearest == place].sum(0) for place in range(len(found))])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        found = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), found)
    return np.asarray(found, np.float32)


def save_route(folder: Path, route: Route, identity: str) -> None:
    """Remember what the adapter in `folder` is for.

    Args:
        identity: of the embedding model.

    Hazard: of few requests the weights are nearly the embedding of one, from which words of it can
    be guessed, and what calls imply stands there in clear: both stay on this node, and
    are made anew when one of them is forgotten.

    Raises:
        QuietchoirError: the disk refused.
    """
    tensors = dict(zip(TENSORS, (route.weights, route.thresholds), strict=True))
    tensors |= {LEANING: route.leaning} if len(route.leaning) else {}
    told = json.dumps({"implied": sorted(route.implied), "joined": sorted(route.joined)})
    said = {"adapter": folder.name, "embedding": identity, TOLD: told}
    paths.write_atomically(folder / FILE, save(tensors, said), mode=0o600)


def note_route(folder: Path, examples: Iterable[RouteExample], general: Sequence[str]) -> None:
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
    known = list(examples)
    if any(one.wanted for one in known):
        from ..engine.embedder import SentenceEmbedder

        embedder = SentenceEmbedder.load(model)
        save_route(folder, fit_route(known, general, embedder.embed), embedder.identity)


def read_route(folder: Path, identity: str) -> Route | None:
    """What the adapter in `folder` is for; None: nothing is known of it.

    Args:
        identity: of the embedding model that requests are looked at with.

    Raises:
        DataError: the file is damaged, of another adapter, another embedding model or an earlier
            version.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            said = file.metadata() or {}
            told = json.loads(said.pop(TOLD, "{}"))
            lists = [told.get(key, []) for key in ("implied", "joined")]
            if not all(isinstance(one, list) and set(map(type, one)) <= {str} for one in lists):
                raise DataError(f"{path}: damaged; delete it")
            implied, joined = map(frozenset, lists)
            if said != {"adapter": folder.name, "embedding": identity}:
                raise DataError(
                    f"{path}: of another adapter, of another embedding model or of an earlier "
                    f"version; delete it, and the adapter's next version brings a new one"
                )
            known = (*TENSORS, LEANING) if LEANING in list(file.keys()) else TENSORS
            found = [np.asarray(file.get_tensor(name), np.float32) for name in known]
    except (OSError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it") from error
    weights, thresholds, *leaning = found
    shapes = (weights.shape[:-1], thresholds.shape)
    whole = shapes == ((2,), (2,)) and all(one.shape == weights.shape[1:] for one in leaning)
    if not whole or not all(np.isfinite(one).all() for one in found):
        raise DataError(f"{path}: damaged; delete it")
    return Route(weights, thresholds, implied, joined, *leaning)
