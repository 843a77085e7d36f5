"""What each way to protect a sum can do, and which combinations of modes there are.

Knows one line of capabilities for each mode and one rule for each pair that does not go together.
Knows nothing of tables, files or rounds: whoever has tables says by `Axes` what they ask for.
Always: every refusal of a combination stands here and follows from a capability; a rule whose
`nature` is empty is not true of the thing, only of this version.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one mode can do."""

    server_reads_updates: bool = False  # of single members: nothing is masked
    model_held_by: Literal["server", "members"] = "server"
    needs_all_online: bool = False  # to open a sum: whoever is away is missed
    sums_per_round: Literal["one", "many"] = "many"
    snapshot: bool = True  # a member's process may end between two stages


CAPABILITIES = {
    "plain": Capabilities(server_reads_updates=True),
    "masked": Capabilities(),
    "sealed": Capabilities(model_held_by="members"),
    "threshold": Capabilities(model_held_by="members", needs_all_online=True, sums_per_round="one"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """What a federation asks for, as far as one choice may exclude another."""

    mode: str = "masked"  # a key of CAPABILITIES
    buffered: bool = False
    rule: str = "mean"  # of aggregation: all but the mean have buckets
    cohort: int = 0  # members drawn for a round; 0: all
    ranked: bool = False  # members train different ranks
    download: str = "auto"
    min_tokens: int = 0
    counts: bool = True  # counters travel beside the update
    guard: str = "off"
    ballots: str = "sums"  # what counts in a vote
    tuned: bool = False  # rounds choose their learning rate
    adaptive: bool = False  # the clip of updates follows their norms
    engines: bool = False  # Flower's own carry the messages

    @property
    def can(self) -> Capabilities:
        """What its mode can do."""
        return CAPABILITIES[self.mode]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """One pair that does not go together."""

    meets: Callable[[Axes], bool]
    sentence: Callable[[Axes], str]
    nature: str = ""  # what forbids it; empty: nothing does, it is not built


RULES = (
    Exclusion(
        lambda axes: axes.buffered and axes.can.model_held_by == "members",
        lambda axes: (
            'schedule.rounds = "buffered" needs protection.mode "plain" or "masked": in sealed '
            "mode all members step together"
        ),
        nature="who holds the model must be there when it steps, and a buffered group is not "
        "everybody",
    ),
    Exclusion(
        lambda axes: axes.can.needs_all_online and axes.cohort > 0,
        lambda axes: (
            'recipe.cohort must be 0 with key = "threshold": whoever is there holds a share, and '
            "is needed"
        ),
        nature="a key in shares opens with those that hold them, not with a drawn few",
    ),
    Exclusion(
        lambda axes: axes.buffered and axes.cohort > 0,
        lambda axes: (
            'schedule.rounds = "buffered" draws nobody: set recipe.cohort = 0, found '
            f"{axes.cohort}; schedule.buffer says how many are summed"
        ),
        nature="who comes to a buffered sum follows from who is ready, so nobody is drawn",
    ),
    Exclusion(
        lambda axes: axes.ranked and axes.min_tokens > 0,
        lambda axes: (
            "members of different ranks need protection.min_tokens = 0: it counts the tokens "
            "behind a whole sum, not behind the columns that only some members train"
        ),
        nature="a token count is of a whole sum, and a column's sum is of a part of its members",
    ),
    Exclusion(
        lambda axes: not axes.counts and axes.min_tokens > 0,
        lambda axes: (
            'privacy.counters = "none" sends no token counts; set protection.min_tokens = 0, or '
            'counters = "exact"'
        ),
        nature="a floor on counts needs counts",
    ),
    Exclusion(
        lambda axes: axes.guard != "off" and not axes.counts,
        lambda axes: (
            f'guard.rule = "{axes.guard}" needs privacy.counters = "exact": votes are counters'
        ),
        nature="votes are counters",
    ),
    Exclusion(
        lambda axes: axes.ballots == "open" and axes.can.model_held_by == "members",
        lambda axes: (
            'guard.ballots = "open" needs protection.mode "plain" or "masked": in sealed mode the '
            "coordinator learns nothing of how well an adapter does at any one member"
        ),
        nature="a sealed coordinator is to learn no member's scores",
    ),
    Exclusion(
        lambda axes: axes.ballots == "open" and axes.buffered,
        lambda axes: (
            'guard.ballots = "open" needs schedule.rounds = "synchronous": a ballot compares with '
            "the adapter that its member trained from, which in buffered rounds is not everybody's"
        ),
        nature="ballots that compare with different adapters are not counted together",
    ),
    Exclusion(
        lambda axes: axes.ballots == "open" and axes.tuned,
        lambda axes: (
            'guard.ballots = "open" needs recipe.tuning = "fixed": a recipe that chooses its '
            "learning rate goes by the sums of scores"
        ),
    ),
    Exclusion(
        lambda axes: axes.ballots == "open" and axes.engines,
        lambda axes: (
            'guard.ballots = "open" needs `quietchoir coordinate` and `join`: on Flower\'s own '
            "engines a member's process ends with each message, and with it what its ballot is "
            "compared with"
        ),
    ),
    Exclusion(
        lambda axes: axes.tuned and axes.guard == "off",
        lambda axes: (
            'recipe.tuning = "auto" needs guard.rule = "vote" (or "choose"): what members say of '
            "each new adapter chooses the learning rate, and undoes what was too high"
        ),
        nature="a rate that nobody judges is not chosen",
    ),
    Exclusion(
        lambda axes: axes.tuned and axes.buffered,
        lambda axes: (
            'recipe.tuning = "auto" needs schedule.rounds = "synchronous": a buffered step is made '
            "of changes that were trained at several rates"
        ),
        nature="a vote on a step of several rates says nothing of any one",
    ),
    Exclusion(
        lambda axes: axes.adaptive and axes.buffered,
        lambda axes: (
            'privacy.clipping = "quantile" needs schedule.rounds = "synchronous": a buffered sum '
            'is made of changes that were cut to several clips; set clipping = "fixed"'
        ),
        nature="members of a buffered sum start from several adapters, each with a clip of its own",
    ),
    Exclusion(
        lambda axes: axes.rule != "mean" and axes.can.sums_per_round == "one",
        lambda axes: (
            f'aggregation.rule = {axes.rule!r} needs protection.key = "shared": more than half of '
            "those that hold a share open a sum, each of them one that it is in"
        ),
        nature="of three buckets none has more than half of all that hold a share",
    ),
    Exclusion(
        lambda axes: axes.download == "adapter" and axes.can.model_held_by == "members",
        lambda axes: (
            'recipe.download = "adapter" needs mode "plain" or "masked": in sealed mode only '
            "members hold the adapter, and they follow it by sums"
        ),
        nature="the server has no adapter that it could tell",
    ),
    Exclusion(
        lambda axes: axes.engines and not axes.can.snapshot,
        lambda axes: (
            f"mode {axes.mode!r} keeps a member's process from message to message, which Flower's "
            "own engines do not; run it with `quietchoir coordinate` and `join`"
        ),
        nature="a process ends with every message there",
    ),
)


def refused(axes: Axes) -> Exclusion | None:
    """The first rule against a combination; None if it works."""
    return next((rule for rule in RULES if rule.meets(axes)), None)


def check(axes: Axes) -> None:
    """Require a combination that there is.

    Raises:
        ValueError: there is none; with the sentence that says why.
    """
    if (rule := refused(axes)) is not None:
        raise ValueError(rule.sentence(axes))
