"""Which adapter a request is for, if any: a small classifier an adapter, made of its own examples.

Knows unit vectors of requests and their words, and weights for both. Knows nothing of models,
adapters' weights or HTTP.
Always: a request that no adapter's classifier takes for its own is the plain model's; the same
requests give the same choice. A classifier is made of examples that this node holds, lies in its
home, holds for that adapter and that embedding model alone, and is never sent.

A classifier is a logistic regression over the sentence's embedding and, beside it, its words as
they stand, hashed: an embedding tells what a sentence is about and hardly whether it asks for it or
tells of it ("open the blinds", "the blinds were open"), its first words do. A second set of weights
is for what is said right after a request that the adapter answered: "and the kitchen too" is a
command there and nothing elsewhere. A third set tells such requests from those that stand by
themselves: an adapter of single requests does worse at these behind others. The thresholds follow
from examples that it did not learn from, talk by whole clusters, so that what judges it is of kinds
that it never saw.

Source: Jang et al. 2023, "Exploring the Benefits of Training Expert Language Models over
Instruction Tuning", arXiv 2302.03202: an expert is chosen by the embedding of its training
examples. Larson et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope
Prediction": what is for nobody has to be learned, a distance alone does not tell it.
Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", arXiv 0902.2206.
Not covered: talk of a kind that neither the node nor the adapter's examples know; what it is worth
is printed by `quietchoir bench silence`, on talk and tasks that nothing here was chosen on.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
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

Vectors = npt.NDArray[np.float32]  # [N, D] or [N, D + WORDS], of length one
Embed = Callable[[Sequence[str]], Vectors]
FILE = "route.safetensors"  # in an adapter's folder
TENSORS, LEANING, TOLD = ("weights", "thresholds"), "leaning", "told"
EMBEDDING = "minilm-l6-v2"  # of the catalog
WORDS_ALONE = ""  # the identity of no embedding model
WORDS = 512  # columns of hashed words, beside an embedding's
WORD_SHARE = 0.5  # of a row's square
WORD = re.compile(r"\w+|[?!]")
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
ARTICLE = (
    r"(?:(?:the|an?|my|our|der|die|das|den|dem|des|(?:m?eine?|unsere?)[mnrs]?|les?|la|une?|mon|ma"
    r"|mes|el|los|las|un[ao]?|mi|il|lo|gli|i|de|het|een)\s+|l['’])"
)
NAME_WORDS = 5  # of a name at most; what is longer was dictated
ORDER = re.compile(r"^(?:first|zuerst|d['’]abord|primero|prima|eerst),?\s+", re.IGNORECASE)
THEN = re.compile(r"\b(?:then|after that|dann|danach|puis)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RouteExample:
    """One request of an adapter's examples, or of talk."""

    text: str
    wanted: bool = True  # the adapter's to answer
    follows: bool = False  # said right after one that it answered
    implied: tuple[str, ...] = ()  # what its right calls hold that nobody said, with their tool
    # texts that its right calls hold, with their arguments
    values: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """What an adapter is for."""

    # [2, D + WORDS + 1], the bias last: of any request; added where it follows
    weights: Vectors
    thresholds: Vectors  # [2], log-odds: of a request by itself; of one that follows
    implied: frozenset[str] = frozenset()  # what calls may hold that nobody said, with their tool
    # what was said and stood in right calls, by argument: "area", "name"
    named: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # [D + WORDS + 1], the bias last: of requests that lean on the one before them; empty: nobody
    # knows
    leaning: Vectors = field(default_factory=lambda: np.empty(0, np.float32))

    def lead(self, vector: Vectors, *, follows: bool) -> float:
        """By how much, in log-odds, a request [D + WORDS] is the adapter's; below zero it is not.

        Args:
            follows: the adapter answered the request before it.
        """
        seen = vector[-(self.weights.shape[1] - 1) :]  # of one made without a model, its words
        return float(log_odds(self.weights, seen[None], np.array([follows]))[0]) - float(
            self.thresholds[int(follows)]
        )

    def leans(self, vector: Vectors) -> bool:
        """Whether a request [D + WORDS] of the adapter's means something only after the one before
        it; so it is taken where its examples do not tell.
        """
        known = self.leaning
        return not len(known) or float(vector[-len(known) + 1 :] @ known[:-1] + known[-1]) > 0

    def wishes(self, text: str, features: Embed) -> Sequence[str]:
        """The two wishes of one sentence, in their order, or the sentence: it is cut where both
        sides are the adapter's, the second as what follows the first, and never within a name. Two
        names of one kind share what stands around them: "turn the lamp and the fan on" is "turn the
        lamp on" and "turn the fan on".

        Args:
            features: as `Router.features`.
        """
        joined = {name for names in self.named.values() for name in names if JOINT.search(name)}
        spans = [
            found.span()
            for name in joined
            for found in re.finditer(re.escape(name), text, re.IGNORECASE)
        ]
        cuts = [
            self.sides(text, cut)
            for cut in JOINT.finditer(text)
            if not any(start <= cut.start() < end for start, end in spans)
        ]
        # one word is no wish that another could follow
        cuts = [cut for cut in cuts if len(cut[0].split()) > 1 and cut[1]][:MOST_JOINTS]
        if not cuts:
            return (text,)
        vectors = features([side for cut in cuts for side in cut])
        leads = [
            min(
                self.lead(vectors[2 * place], follows=False),
                self.lead(vectors[2 * place + 1], follows=True),
            )
            for place in range(len(cuts))
        ]
        likeliest = max(range(len(cuts)), key=leads.__getitem__)
        return cuts[likeliest] if leads[likeliest] > 0 else (text,)

    def sides(self, text: str, joint: re.Match[str]) -> tuple[str, str]:
        """What is wished on either side of a joint."""
        left, right = text[: joint.start()].strip(), text[joint.end() :].strip()
        if THEN.search(joint[0]):
            left = ORDER.sub("", left)
        for known in self.named.values():
            names = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
            name = rf"(?P<article>{ARTICLE})?(?:{names})"
            one = re.search(rf"(?<!\w){name}$", left, re.IGNORECASE)
            other = re.match(rf"{name}(?!\w)", right, re.IGNORECASE)
            if one is None or other is None:
                continue
            before, behind = left[: one.start()], right[other.end() :]
            if not JOINT.search(before) and not JOINT.search(behind):  # of three, it is not known
                article = "" if other["article"] else one["article"] or ""
                return left + behind, f"{before}{article}{other[0]}{behind}"
        return left, right

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
        embed: `no_embedding` where there is no model: then words alone tell requests apart.
        identity: of the embedding model; a route of another one says nothing.
    """

    def __init__(self, embed: Embed, identity: str) -> None:
        self.embed = embed
        self.identity = identity

    @cached_property
    def width(self) -> int:
        """Columns of a route's weights for these vectors."""
        return int(self.features(["a"]).shape[1]) + 1

    def features(self, texts: Sequence[str]) -> Vectors:
        """What routes tell requests by, [N, D + WORDS]."""
        return with_hashed_words(self.embed(texts), texts)

    def choose(self, requests: Sequence[str], routes: Mapping[str, Route]) -> RouteChoice:
        """The adapter for the last of a conversation's `requests`.

        Args:
            requests: what was asked; who answers one decides how the next is looked at.
            routes: by adapter, one at least.
        """
        choice = RouteChoice(None, 0.0)
        for vector in self.features(requests[-LOOKED_BACK:]):
            leads = {
                name: route.lead(vector, follows=name == choice.adapter)
                for name, route in routes.items()
            }
            nearest = max(leads, key=lambda name: leads[name])
            choice = RouteChoice(nearest if leads[nearest] > 0 else None, leads[nearest])
        return choice


def no_embedding(texts: Sequence[str]) -> Vectors:
    """[N, 0], of a node without an embedding model."""
    return np.empty((len(texts), 0), np.float32)


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
    values = [
        (name, one)
        for call in calls
        for name, one in call.arguments.items()
        if isinstance(one, str)
    ]
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
    texts = [one.text for one in chosen]
    meant, others = embed(texts), embed(general)
    wanted = np.array([one.wanted for one in chosen])
    far = (others @ meant[wanted].T).max(1) < NEAR
    alone = ~np.array([one.follows for one in chosen])
    vectors, talk = with_hashed_words(meant, texts), with_hashed_words(others, general)[far]
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
    leaning = fit_leaning(vectors[wanted], ~alone[wanted])
    thresholds = np.array(found, np.float32)
    named = names_said(examples)
    return Route(fitted(rows, own, follows), thresholds, implied, named, leaning)


def names_said(examples: Iterable[RouteExample]) -> dict[str, frozenset[str]]:
    """By argument, what stood in a request and in its right calls."""
    found: dict[str, set[str]] = {}
    for example in examples:
        for argument, one in example.values:
            if 0 < len(one.split()) <= NAME_WORDS and one.lower() in example.text.lower():
                found.setdefault(argument, set()).add(one.lower())
    return {argument: frozenset(names) for argument, names in found.items()}


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
    rows = np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], 1)
    counts = np.stack([np.ones(len(rows)), follows], 1).astype(np.float32)  # [N, 2]: by set
    share = np.where(own, 0.5 / max(1, own.sum()), 0.5 / max(1, (~own).sum())).astype(np.float32)
    smooth, root = 1 + DECAY, DECAY**0.5
    momentum = (smooth**0.5 - root) / (smooth**0.5 + root)
    weights = ahead = np.zeros((rows.shape[1], 2), np.float32)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-np.clip((rows @ ahead * counts).sum(1), -30, 30)))
        slope = rows.T @ ((share * (chance - own))[:, None] * counts)
        before, weights = weights, ahead - (slope + DECAY * ahead) / smooth
        ahead = weights + momentum * (weights - before)
    return np.ascontiguousarray(weights.T, np.float32)


def with_hashed_words(vectors: Vectors, texts: Sequence[str]) -> Vectors:
    """Embeddings [N, D] with the texts' words beside them, of length one: each word, the first
    ones and the last as such, in a column and with a sign that its hash says.
    """
    rows = np.zeros((len(texts), WORDS), np.float32)
    for row, text in zip(rows, texts, strict=True):
        words = WORD.findall(text.lower())
        places = [f"^{' '.join(words[:1])}", f"^{' '.join(words[:2])}", f"{' '.join(words[-1:])}$"]
        for name in dict.fromkeys([*words, *places]):
            hashed = zlib.crc32(name.encode("utf-8", "replace"))
            row[hashed % WORDS] += 1 if hashed >> 31 else -1
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    parts = [(1 - WORD_SHARE) ** 0.5 * vectors, WORD_SHARE**0.5 * rows / lengths]
    return np.asarray(np.concatenate(parts, 1), np.float32)


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

    Hazard: of few requests the weights are nearly the embedding and the words of one, from which it
    can be guessed, and what calls name and imply stands there in clear: all of it stays on this
    node, and is made anew when one of them is forgotten.

    Raises:
        QuietchoirError: the disk refused.
    """
    tensors = dict(zip(TENSORS, (route.weights, route.thresholds), strict=True))
    tensors |= {LEANING: route.leaning} if len(route.leaning) else {}
    named = {argument: sorted(names) for argument, names in route.named.items()}
    words = json.dumps({"implied": sorted(route.implied), "named": named})
    head = {"adapter": folder.name, "embedding": identity, TOLD: words}
    paths.write_atomically(folder / FILE, save(tensors, head), mode=0o600)


def note_route(folder: Path, examples: Iterable[RouteExample], general: Sequence[str]) -> None:
    """As `save_route`, with this node's embedding model, or by words alone; without requests
    nothing is remembered, what was is dropped, and the adapter answers whatever it is active for.

    Raises:
        QuietchoirError: the disk refused, or the model is damaged.
    """
    (folder / FILE).unlink(missing_ok=True)
    known, identity = list(examples), WORDS_ALONE
    embed: Embed = no_embedding
    if not any(one.wanted for one in known):
        return
    with suppress(ModelNotFoundError):
        model = catalog.find(config.load().embedding.model)
        from ..engine.embedder import SentenceEmbedder

        embedder = SentenceEmbedder.load(model)
        embed, identity = embedder.embed, embedder.identity
    save_route(folder, fit_route(known, general, embed), identity)


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
            head = file.metadata() or {}
            words = json.loads(head.pop(TOLD, "{}"))
            implied, named = words.get("implied", []), words.get("named", {})
            lists = [implied, *named.values()]
            if not all(isinstance(one, list) and set(map(type, one)) <= {str} for one in lists):
                raise DataError(f"{path}: damaged; delete it")
            if head.pop("embedding", None) not in (identity, WORDS_ALONE) or head != {
                "adapter": folder.name
            }:
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
    kinds = {argument: frozenset(names) for argument, names in named.items()}
    return Route(weights, thresholds, frozenset(implied), kinds, *leaning)
