"""What a federation is: the tables of `federation.toml`, checked.

Knows names, limits and defaults. Knows nothing of signatures (see roster) or of the network.
Always: a `Policy` that exists is consistent; two equal policies have equal digests.
"""

import dataclasses
import hashlib
import json
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...core.errors import ConfigError
from ...core.prompt import HOUSEHOLD, PromptFormat
from ...core.tables import above, at_least
from ...core.training.distillation.settings import MAX_VALUES
from . import compatibility
from .address import Address
from .compatibility import CAPABILITIES, Axes, Capabilities

if TYPE_CHECKING:
    from ...core.models.lora.adapter import AdapterShape
    from ...core.training.trainer import Hyperparameters

LAST_MOMENT = 253402300799  # of the year 9999, in seconds since 1970: later ones have no date
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_BITS = 16
# Of the squared length of what a member sends, for the bit by which the clip follows its length.
BIT_SHARE = 0.01
MIN_MASKED_COHORT = 3


def require(condition: bool, sentence: str) -> None:
    """Raise `ValueError(sentence)` unless `condition`; `tables.fill` adds file and table."""
    if not condition:
        raise ValueError(sentence)


def require_name(name: str) -> None:
    """Require the form that a federation's and a member's name have.

    Raises:
        ValueError: another one.
    """
    require(
        bool(NAME.fullmatch(name)), f"name = {name!r} must be lower-case letters, digits and dashes"
    )


def check_hex(text: str, size: int, what: str) -> None:
    """Require `size` bytes written as lower-case hexadecimal digits."""
    good = len(text) == 2 * size and not set(text) - set("0123456789abcdef")
    require(good, f"{what} = {text[:16]!r} must be {2 * size} lower-case hexadecimal digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One more file of the same model."""

    name: str
    digest: str  # sha256 of that file


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """The frozen model that every member holds."""

    name: str = "smollm2-135m-instruct"
    digest: str  # sha256 of the model file
    variants: tuple[Variant, ...] = ()  # other quantisations of it; a node takes the one it holds

    def __post_init__(self) -> None:
        check_hex(self.digest, 32, "digest")
        check_variants(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTable:
    """Shape of the one adapter that is trained."""

    rank: int = 16
    alpha: float = 32.0
    upper_layers: int = 8  # how many of the last layers carry LoRA
    targets: tuple[str, ...] = PROJECTIONS
    seed: int = 0  # public seed of the frozen A

    def __post_init__(self) -> None:
        at_least(1, rank=self.rank, upper_layers=self.upper_layers)
        unknown = set(self.targets) - set(PROJECTIONS)
        require(
            not unknown,
            f"targets {sorted(unknown)} are unknown; choose from {', '.join(PROJECTIONS)}",
        )

    def shape(self) -> "AdapterShape":
        """The same as the models' own type."""
        from ...core.models.lora.adapter import AdapterShape

        return AdapterShape(
            rank=self.rank,
            alpha=self.alpha,
            upper_layers=self.upper_layers,
            targets=self.targets,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionTable:
    """Who may see what, and how many must take part."""

    mode: Literal["plain", "masked", "sealed"] = "masked"
    # sealed: every member has the key, or a share of it
    key: Literal["shared", "threshold"] = "shared"
    # threshold: members that open a sum together; 0: more than two thirds of those who made the key
    open_with: int = 0
    bits: int = 8  # of one value of an update
    threshold: int = 2  # members whose shares open a sum
    min_cohort: int = 3  # a sum of fewer members is never opened
    min_tokens: int = 0  # answer tokens behind a sum; 0 is off

    @property
    def kind(self) -> str:
        """Which way to protect a sum it is: a key of `compatibility.CAPABILITIES`."""
        return "threshold" if self.key == "threshold" else self.mode

    def __post_init__(self) -> None:
        require(2 <= self.bits <= MAX_BITS, f"bits = {self.bits} must lie between 2 and {MAX_BITS}")
        at_least(1, min_cohort=self.min_cohort)
        at_least(0, min_tokens=self.min_tokens)
        require(
            1 <= self.threshold <= self.min_cohort,
            f"threshold = {self.threshold} must lie between 1 and min_cohort = {self.min_cohort}: "
            f"lower --threshold, or raise --min-cohort",
        )
        joint = self.key == "threshold"
        require(
            self.mode == "sealed" or not joint,
            f'key = "threshold" needs mode = "sealed", found {self.mode!r}',
        )
        require(
            joint or not self.open_with, f'open_with = {self.open_with} needs key = "threshold"'
        )
        require(
            self.open_with == 0 or self.open_with >= 2,
            f"open_with = {self.open_with} must be at least 2: one opens nothing",
        )
        floor = self.mode == "plain" or self.min_cohort >= MIN_MASKED_COHORT
        require(
            floor,
            f"min_cohort = {self.min_cohort} must be at least {MIN_MASKED_COHORT} under masks: a "
            f"sum of two tells all",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the adapter is trained (measured defaults)."""

    rounds: int = 10
    lr: float = 1e-2
    # the last round's learning rate as a share of the first's: between them it falls in a line
    lr_last: float = 1.0
    # "auto": rounds try higher rates and lower ones, and members' votes choose (`rounds.tuning`)
    tuning: Literal["fixed", "auto"] = "fixed"
    batch: int = 16
    epochs: int = 1
    # Steps of a member's optimizer in one round, at most: who has more examples trains on others of
    # them in each round. Far more steps move a member beyond `update_range`. 0: all.
    local_steps: int = 48
    server_lr: float = 1.0
    server_momentum: float = 0.7
    server_optimizer: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavgm"
    server_memory: float = 0.99  # beta 2 of fedadam and fedyogi
    # tau of fedadam and fedyogi: what keeps a step from dividing by nothing
    server_floor: float = 1e-3
    # FedProx's mu: pull towards the round's adapter while a member trains; 0: none
    proximal: float = 0.0
    # FedNova: a member's change is scaled as if it had taken so many steps; 0: as it is
    agreed_steps: int = 0
    update_range: float = 0.2  # a coordinate that moved further in one round is clipped to this
    # "tensor": each tensor's own, from the public velocity, at most the above
    ranges: Literal["fixed", "tensor"] = "fixed"
    evaluate_every: int = 1  # rounds between scores; 0: only before the first and after the last
    cohort: int = 0  # members asked in a round; 0: all that are there
    # What a round tells members: the adapter, or the steps to it from one that they hold. "auto":
    # steps under masks, so that members need not take the coordinator's word for an adapter.
    download: Literal["auto", "adapter", "change"] = "auto"
    attempts: int = 3  # of one round, before the coordinator gives up
    work_timeout_s: float = 3600.0  # training may take this long
    stage_timeout_s: float = 60.0  # any other stage

    def __post_init__(self) -> None:
        at_least(
            1, rounds=self.rounds, batch=self.batch, epochs=self.epochs, attempts=self.attempts
        )
        above(0, lr=self.lr, server_lr=self.server_lr, update_range=self.update_range)
        require(0 < self.lr_last <= 1, f"lr_last = {self.lr_last} must be above 0 and at most 1")
        require(
            0 <= self.server_momentum < 1,
            f"server_momentum = {self.server_momentum} must lie in [0, 1)",
        )
        require(
            0 < self.server_memory < 1,
            f"server_memory = {self.server_memory} must lie between 0 and 1",
        )
        above(
            0,
            server_floor=self.server_floor,
            work_timeout_s=self.work_timeout_s,
            stage_timeout_s=self.stage_timeout_s,
        )
        at_least(
            0,
            local_steps=self.local_steps,
            proximal=self.proximal,
            agreed_steps=self.agreed_steps,
            evaluate_every=self.evaluate_every,
            cohort=self.cohort,
        )

    def lr_share(self, number: int) -> float:
        """The learning rate of a round as a share of `lr`; rounds count from 1."""
        progress = min(1.0, max(0, number - 1) / max(1, self.rounds - 1))
        return 1.0 - (1.0 - self.lr_last) * progress

    def trainer(self) -> "Hyperparameters":
        """The part that a node's trainer needs."""
        from ...core.training.trainer import Hyperparameters

        return Hyperparameters(
            lr=self.lr, batch=self.batch, epochs=self.epochs, proximal=self.proximal
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyTable:
    """Differential privacy of what is summed; the unit is one member's whole update.

    Whoever reads a sum may be a member of it, and knows its own noise: what counts is the noise of
    the others, less that of `colluders`. So the noise of a sum of `min_cohort` is dealt out among
    `honest` of them.

    Hazard: with `counters = "exact"` the sums of scores, losses, examples and tokens are opened
    without noise, and no epsilon covers them. With "none" they are not sent: then there is no
    accuracy, no loss and no guard.
    """

    mechanism: Literal["none", "discrete-gaussian", "skellam"] = "none"
    clip: float = 1.0  # largest L2 norm of one member's update; "quantile": in the first round
    # "quantile": from then on it follows the median of members' norms, by a noised bit of each
    # (`aggregation.clipping`); what all of it costs is one round's noise as before
    clipping: Literal["fixed", "quantile"] = "fixed"
    # deviation of a sum's noise over one member's largest share of it
    noise_multiplier: float = 1.0
    epsilon: float = 8.0  # the budget: training stops before it is passed
    delta: float = 1e-5  # at most one over the number of members
    # Members of a sum that may be in league with its reader; 0 counts as 1. Their noise hides
    # nobody else, and a bucket, or what two sums from one adapter differ by, has `min_cohort`
    # members besides them (also where there is no noise).
    colluders: int = 0
    counters: Literal["none", "exact"] = "none"

    def __post_init__(self) -> None:
        above(0, clip=self.clip, noise_multiplier=self.noise_multiplier, epsilon=self.epsilon)
        if not 0 < self.delta < 1:
            raise ValueError(f"delta = {self.delta} must lie between 0 and 1")
        at_least(0, colluders=self.colluders)

    @property
    def on(self) -> bool:
        """Is there noise?"""
        return self.mechanism != "none"

    @property
    def adaptive(self) -> bool:
        """Does the clip follow members' norms?"""
        return self.on and self.clipping == "quantile"

    def unsure(self, deviation: float) -> float:
        """Deviation of the noise in the share of members that are within the clip, where each value
        of what they send has this one in the mean.
        """
        return 0.5 * deviation / (self.clip * math.sqrt(BIT_SHARE))

    @property
    def counts(self) -> bool:
        """Do counters travel beside the update?"""
        return not self.on or self.counters == "exact"

    def honest(self, min_cohort: int) -> int:
        """Members of any opened sum whose noise its reader does not know."""
        return min_cohort - max(1, self.colluders)

    def check(self, min_cohort: int, members: int = 0) -> None:
        """Require that it fits the `[protection]` and the roster beside it. Raises ValueError."""
        if self.on and self.honest(min_cohort) < 1:
            raise ValueError(
                f"privacy.colluders = {self.colluders} must be below protection.min_cohort = "
                f"{min_cohort}, which must be at "
                "least 2: somebody must add noise that the reader of a sum does not know"
            )
        if self.on and (most := max(members, min_cohort)) * self.delta > 1:
            raise ValueError(
                f"privacy.delta = {self.delta:g} must be at most 1/{most}, one over the number of "
                f"members: above that, showing "
                "one member's update in clear would pass; use far less, for example 1e-5"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardTable:
    """After each round members score the new adapter on their held-out examples; a worse one is not
    kept.

    "vote": only where it is worse, each bucket's own change is scored too. "choose": they always
    are, and the best is kept: that costs as many more passes over held-out examples as there are
    buckets.

    Hazard: with `ballots = "open"` the coordinator reads, of each vote, by how much each member's
    own held-out score rose or fell (`rounds.validation`); in sums nobody does, and one liar
    decides its sum.
    """

    rule: Literal["off", "vote", "choose"] = "off"
    # an adapter whose accuracy is lower than the best one's by more than this is undone
    margin: float = 0.05
    # what counts: sums of scores, or each member's own ballot, of which a quarter may lie
    ballots: Literal["sums", "open"] = "sums"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin = {self.margin} must lie in [0, 1)")
        require(
            self.on or not self.open,
            'ballots = "open" needs rule = "vote" or "choose", found "off"',
        )

    @property
    def on(self) -> bool:
        """Is there a vote after each round?"""
        return self.rule != "off"

    @property
    def open(self) -> bool:
        """Does the coordinator read each member's ballot?"""
        return self.ballots == "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationTable:
    """How contributions become one change. Apart from the mean, each bucket of members is a sum of
    its own.

    Hazard: the coordinator sees the sums of buckets, each over fewer members than the cohort; no
    bucket has fewer than `protection.min_cohort` members besides those that may collude
    (`privacy.colluders`, one at least). So of a bucket it is not a third that may collude, but that
    number.
    """

    rule: Literal["mean", "median", "trimmed-mean"] = "mean"
    buckets: int = 1  # as many as the cohort fills, at most this
    # trimmed-mean: values left out at each end, of the buckets' values of one coordinate
    trim: int = 1
    # buckets' means as long as they are, or all as long as the middle one of them: then boosting a
    # change gains nothing where one of them is chosen
    lengths: Literal["own", "middle"] = "own"

    def __post_init__(self) -> None:
        if (self.rule == "mean") != (self.buckets == 1):
            raise ValueError(
                f"rule = {self.rule!r} with buckets = {self.buckets}: the mean has 1 "
                f"bucket, the others more"
            )
        if self.rule != "mean" and self.buckets < 3:
            raise ValueError(
                f"buckets = {self.buckets} must be at least 3: the middle of two is their mean"
            )
        if self.trim < 1 or (self.rule == "trimmed-mean" and 2 * self.trim >= self.buckets):
            raise ValueError(
                f"trim = {self.trim} at each end must be at least 1 and leave some of "
                f"{self.buckets} buckets"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleTable:
    """When contributions are summed."""

    rounds: Literal["synchronous", "buffered"] = "synchronous"
    buffer: int = 0  # buffered: contributions that a group waits for; 0: protection.min_cohort
    # buffered: a contribution from an adapter more steps ago than this is dropped, and trained anew
    max_staleness: int = 10
    # buffered: a run to which nobody has contributed for so long gives up
    patience_s: float = 7 * 86400.0

    def __post_init__(self) -> None:
        at_least(0, buffer=self.buffer, max_staleness=self.max_staleness)
        above(0, patience_s=self.patience_s)

    @property
    def buffered(self) -> bool:
        """Are members summed as they become ready?"""
        return self.rounds == "buffered"


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationTable:
    """What members whose models differ compare: a public set's answers.

    Where it is on, no adapter travels: the vector that rounds carry are scores, and `[model]` names
    nobody's.
    """

    public: str = ""  # sha256 of the public set's file; "": members train one adapter
    items: int = 0
    answers: int = 0  # of each item

    def __post_init__(self) -> None:
        at_least(0, items=self.items, answers=self.answers)
        if self.public:
            check_hex(self.public, 32, "public")
            require(self.items >= 1 and self.answers >= 2, "items and answers of the public set")
            require(
                self.size <= MAX_VALUES,
                f"{self.size} values of a public set, {MAX_VALUES} at most: take fewer items",
            )

    @property
    def on(self) -> bool:
        """Do members' models differ?"""
        return bool(self.public)

    @property
    def size(self) -> int:
        """Values that are summed."""
        return self.items * self.answers


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorTable:
    """Where the coordinator answers, and how a node knows it."""

    address: str  # HOST:PORT
    key: str  # Ed25519, hex: tasks are signed with it
    certificate: str = ""  # PEM; the only one a node accepts under TLS

    def __post_init__(self) -> None:
        check_hex(self.key, 32, "key")
        try:
            Address.parse(self.address)
        except ValueError as error:
            raise ValueError(f"address = {error}") from None

    @property
    def host(self) -> str:
        """Name or number of the machine, without brackets."""
        return Address.parse(self.address).host

    @property
    def port(self) -> int:
        """TCP port."""
        return Address.parse(self.address).port


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One line of the roster."""

    name: str
    key: str  # Ed25519, hex
    transport: str = ""  # P-384 point, hex; empty for members that never leave this process
    expires: int = 0  # seconds since 1970: from then on this is no member; 0: never
    rank: int = 0  # first columns of the adapter that it trains; 0: all of them

    def __post_init__(self) -> None:
        require(
            0 <= self.expires <= LAST_MOMENT,
            f"expires = {self.expires} must be 0 or a moment, in seconds since 1970",
        )
        require_name(self.name)
        check_hex(self.key, 32, "key")
        if self.transport:
            check_hex(self.transport, 49, "transport")


@dataclass(frozen=True, kw_only=True)  # no slots: what follows from it is computed once
class Policy:
    """Everything the members of one federation have agreed on."""

    name: str
    nonce: str  # 16 random bytes, hex: two federations of one owner differ
    owner: str  # Ed25519, hex
    founder: str = ""  # the first owner's key, once the owner's key was rotated; empty: the owner's
    version: int = 1  # number of the newest entry of its chain
    head: str = ""  # hash of that entry, hex; empty for a federation that never leaves this process
    expires: int = 0  # seconds since 1970: nobody takes part under an older file; 0: never
    model: ModelTable
    adapter: AdapterTable = field(default_factory=AdapterTable)
    protection: ProtectionTable = field(default_factory=ProtectionTable)
    recipe: Recipe = field(default_factory=Recipe)
    privacy: PrivacyTable = field(default_factory=PrivacyTable)
    guard: GuardTable = field(default_factory=GuardTable)
    aggregation: AggregationTable = field(default_factory=AggregationTable)
    schedule: ScheduleTable = field(default_factory=ScheduleTable)
    distillation: DistillationTable = field(default_factory=DistillationTable)
    # what members' examples show the model, and the adapter is shown when it serves
    prompt: PromptFormat = HOUSEHOLD
    coordinator: CoordinatorTable
    members: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        require_name(self.name)
        check_hex(self.nonce, 16, "nonce")
        check_hex(self.owner, 32, "owner")
        for text, what in ((self.founder, "founder"), (self.head, "head")):
            if text:
                check_hex(text, 32, what)
        require(
            0 <= self.expires <= LAST_MOMENT,
            f"expires = {self.expires} must be 0 or a moment, in seconds since 1970",
        )
        require(self.version >= 1, f"version = {self.version} must be at least 1")
        self.privacy.check(self.protection.min_cohort, len(self.members))
        compatibility.check(self.axes)
        require(
            not 0 < self.recipe.cohort < self.smallest_sum,
            f"recipe.cohort = {self.recipe.cohort} must be 0 (everybody who is there) or at least "
            f"{self.smallest_sum}: a sum of fewer members is never opened",
        )
        names, keys = (
            [member.name for member in self.members],
            [member.key for member in self.members],
        )
        require(len(set(names)) == len(names), "members: a name stands twice")
        require(len(set(keys)) == len(keys), "members: a key stands twice")
        check_ranks(self.adapter, {member.name: member.rank for member in self.members})
        if self.distillation.on:
            self._check_distillation()

    def _check_distillation(self) -> None:
        """Scores are summed as they are: no step goes beyond their mean, and all members give all
        of them.
        """
        recipe = self.recipe
        plain = recipe.server_optimizer == "fedavg" and recipe.server_lr == 1.0
        require(
            plain and recipe.ranges == "fixed" and not recipe.agreed_steps,
            'distillation takes the mean of scores: set recipe.server_optimizer = "fedavg", '
            'server_lr = 1, ranges = "fixed" and agreed_steps = 0',
        )
        require(not self.ranked, "distillation has no columns that members could train alone")
        require(not self.guard.on, 'distillation has no adapter to vote on: set guard.rule = "off"')
        require(
            not self.privacy.adaptive,
            'distillation has no adapter whose clip could follow: set privacy.clipping = "fixed"',
        )

    def carried(self, size: int) -> int:
        """Values that rounds carry for an adapter of `size` values: with a clip that is learned
        beside it, one more.
        """
        return size + (self.privacy.adaptive and size > 0)

    @property
    def axes(self) -> Axes:
        """What it asks for, as far as one choice may exclude another."""
        return axes_of(self, ranked=self.ranked)

    @property
    def can(self) -> Capabilities:
        """What its way to protect a sum can do."""
        return CAPABILITIES[self.protection.kind]

    @cached_property
    def ranked(self) -> bool:
        """Do members train different ranks?"""
        return any(0 < member.rank < self.adapter.rank for member in self.members)

    def cohort_size(self, *, everybody: bool = False) -> int:
        """How many are asked in a round."""
        wanted = self.recipe.cohort
        return (
            len(self.members)
            if everybody or not wanted
            else max(wanted, self.protection.min_cohort)
        )

    def needed(self, asked: int = 0) -> int:
        """Members without which nothing of a round is opened: more than two thirds of all that
        could have been asked.

        Of the drawn size, which follows from the signed file alone (`recipe.cohort`, or the whole
        roster; buffered: the group), or of those asked, if they are more. Never of those that are
        ready, whom the coordinator names: so two sums of one attempt would each need honest members
        that the other needs too, as long as at most a third collude. Where the coordinator reads
        every update there is nothing to protect, and `min_cohort` is enough.

        Source: Bonawitz et al. 2017, section 6.2; the bound is `SecAggConfig.colluders`.
        """
        protection = self.protection
        if self.can.server_reads_updates:
            return protection.min_cohort
        most = max(self.drawn, asked)
        return max(protection.min_cohort, protection.threshold, 2 * most // 3 + 1)

    @property
    def drawn(self) -> int:
        """Members that can be in one round, by this file alone."""
        if self.schedule.buffered:
            return self.group_size
        living = sum(self.member(one.name) is not None for one in self.members)
        return min(living, self.cohort_size())

    def advice(self, found: int) -> str:
        """What an owner can do whose members are rarely there, as the end of a sentence; nothing if
        that would not help.
        """
        protection = self.protection
        if self.schedule.buffered or self.can.server_reads_updates or found < protection.min_cohort:
            return ""
        return (
            f" (more than two thirds of {self.cohort_size()}, from the signed file). If members "
            "are rarely there, a lower recipe.cohort asks fewer of them at once"
        )

    @property
    def followed(self) -> bool:
        """Do members follow the adapter step by step, instead of being told it whole?"""
        if self.can.model_held_by == "members":
            return False  # they step by themselves
        return self.recipe.download == "change" or (
            self.recipe.download == "auto" and self.protection.mode == "masked"
        )

    @property
    def federation(self) -> bytes:
        """The federation's number, 32 bytes: bound to its first owner, the same in every
        version.
        """
        founder = bytes.fromhex(self.founder or self.owner)
        return hashlib.sha256(
            b"quietchoir federation v1" + founder + bytes.fromhex(self.nonce)
        ).digest()

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that differ between any two different policies."""
        return hashlib.sha256(canonical(self.table())).digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def by_name(self) -> dict[str, Member]:
        """Members, those whose time is over too."""
        return {member.name: member for member in self.members}

    @cached_property
    def by_key(self) -> dict[str, Member]:
        """The same by their Ed25519 keys, hex."""
        return {member.key: member for member in self.members}

    @property
    def colluders(self) -> int:
        """Members of any one sum that may be in league with the coordinator: what the file says,
        and one at least.
        """
        return max(1, self.privacy.colluders)

    @property
    def smallest_sum(self) -> int:
        """Members that any sum has: buckets and halves, each over few, have `min_cohort` besides
        those that may collude.
        """
        several = self.aggregation.buckets > 1 or self.trials > 1
        return self.protection.min_cohort + (self.colluders if several and self.masks else 0)

    @property
    def masks(self) -> bool:
        """Is an update hidden from the coordinator?"""
        return not self.can.server_reads_updates

    @property
    def trials(self) -> int:
        """Rates that are tried at once in the first rounds of a recipe that chooses its own: two,
        where a cohort is large enough for a sum of each (and sums are all that a step is made of),
        else one after the other.
        """
        fits = (
            self.recipe.tuning == "auto"
            and self.can.model_held_by == "server"
            and self.aggregation.rule == "mean"
            and not self.ranked
        )
        least = self.protection.min_cohort + (self.colluders if self.masks else 0)
        return 2 if fits and min(len(self.members), self.cohort_size()) >= 2 * least else 1

    @property
    def group_size(self) -> int:
        """Buffered: contributions that a group waits for: never fewer than its sums may have."""
        buckets = self.aggregation.buckets
        least = self.protection.min_cohort if buckets == 1 else buckets * self.smallest_sum
        return max(self.schedule.buffer, least)

    def table(self) -> dict[str, Any]:
        """The policy as TOML's types."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))

    def member(self, name: str) -> Member | None:
        """The member called `name`, or None; a member whose time is over is none."""
        member = self.by_name.get(name)
        return None if member is None or is_over(member.expires) else member

    def name_of(self, key: bytes) -> str | None:
        """The member whose Ed25519 key is `key`, or None; a member whose time is over is none."""
        member = self.by_key.get(key.hex())
        return None if member is None or is_over(member.expires) else member.name


class Tables(Protocol):
    """The tables that must fit each other: a federation file's, or a scenario's."""

    @property
    def protection(self) -> ProtectionTable: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def privacy(self) -> PrivacyTable: ...
    @property
    def guard(self) -> GuardTable: ...
    @property
    def aggregation(self) -> AggregationTable: ...
    @property
    def schedule(self) -> ScheduleTable: ...


def axes_of(tables: Tables, *, ranked: bool) -> Axes:
    """What these tables ask for. Args: ranked: members train different ranks."""
    return Axes(
        mode=tables.protection.kind,
        buffered=tables.schedule.buffered,
        rule=tables.aggregation.rule,
        cohort=tables.recipe.cohort,
        ranked=ranked,
        download=tables.recipe.download,
        min_tokens=tables.protection.min_tokens,
        counts=tables.privacy.counts,
        guard=tables.guard.rule,
        ballots=tables.guard.ballots,
        tuned=tables.recipe.tuning == "auto",
        adaptive=tables.privacy.adaptive,
    )


def is_over(expires: int) -> bool:
    """Is that moment past, by this machine's clock? 0 never is. Clocks that differ differ about
    it: a round may then abort.
    """
    return 0 < expires <= time.time()


def canonical(table: dict[str, Any]) -> bytes:
    """One spelling of a table: JSON, sorted keys, no spaces."""
    return json.dumps(
        table, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def check_variants(model: "ModelTable") -> None:
    """Require different digests. Raises ValueError."""
    digests = digests_of(model)
    for digest in digests:
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError(
                f"a variant's digest = {digest[:16]!r} must be 64 lower-case hexadecimal digits"
            )
    if len(set(digests)) != len(digests):
        raise ValueError("variants: a digest stands twice, or is the model's own")
    if len(set(names_of(model))) != len(digests):
        raise ValueError(
            "variants: a name stands twice, or is the model's own; give the file another name"
        )


def digests_of(model: "ModelTable") -> tuple[str, ...]:
    """The model's digest, then its variants'."""
    return model.digest, *(variant.digest for variant in model.variants)


def names_of(model: "ModelTable") -> tuple[str, ...]:
    """The model's name, then its variants'."""
    return model.name, *(variant.name for variant in model.variants)


def with_variants(model: "ModelTable", added: list[Variant]) -> list[dict[str, str]]:
    """The list of variants with some more, as TOML's types; one of the same name is replaced."""
    kept = {one.name: one for one in (*model.variants, *added)}
    return [dataclasses.asdict(one) for one in kept.values()]


def weight(staleness: int) -> float:
    """How much a contribution counts whose adapter was `staleness` steps ago when it is summed; 1
    if it was the newest.

    Source: s(τ) = 1/√(1 + τ): Nguyen et al. 2022, "Federated learning with buffered asynchronous
    aggregation", arXiv 2106.06639; the polynomial of Xie et al. 2019, arXiv 1903.03934, with
    exponent 1/2.
    """
    if staleness < 0:
        raise ValueError(
            f"staleness = {staleness} must be at least 0"
        )  # our bug: whoever reads messages has checked
    return 1.0 / math.sqrt(1 + staleness)


def check_ranks(adapter: AdapterTable, ranks: Mapping[str, int]) -> None:
    """Require that members' ranks fit the adapter. Raises ValueError."""
    for name, rank in ranks.items():
        if not 0 <= rank <= adapter.rank:
            raise ValueError(
                f"members: {name} trains rank {rank}, expected 1 to {adapter.rank}; 0: the whole "
                "adapter"
            )


def rank_of(policy: "Policy", name: str) -> int:
    """Columns that a member is asked to train."""
    member = policy.by_name.get(name)
    return (member.rank if member else 0) or policy.adapter.rank


def reached(ranks: Collection[int], least: int) -> int:
    """The largest rank that at least `least` of these members reach; that of all of them if they
    are fewer.
    """
    return sorted(ranks, reverse=True)[min(least, len(ranks)) - 1]


def check_limit(policy: "Policy", name: str, limit: int) -> None:
    """Require that the file asks no more of this node than its owner allows.

    Args:
        limit: `training.max_rank` of the node's configuration; 0: any.

    Raises:
        ConfigError: it does; says what the federation's owner can do.
    """
    asked = rank_of(policy, name)
    if limit and asked > limit:
        raise ConfigError(
            f"federation {policy.name} asks rank {asked} of {name}, but training.max_rank allows "
            f"{limit}; ask its owner for "
            f"`quietchoir federation change FED --member-rank {name}={limit}`, or change that line "
            f"of your configuration"
        )


def ranks_sentence(policy: "Policy") -> str | None:
    """For people: how many train what; None where all train the whole adapter."""
    whole, ranks = (
        policy.adapter.rank,
        [member.rank or policy.adapter.rank for member in policy.members],
    )
    if not ranks or min(ranks) == whole:
        return None
    classes = ", ".join(
        f"{ranks.count(rank)} of rank {rank}" for rank in sorted(set(ranks), reverse=True)
    )
    least = policy.smallest_sum
    shared = reached(ranks, least)
    unused = (
        (f"; columns above {shared} are trained by fewer than {least}, so by nobody")
        if shared < whole
        else ""
    )
    return (
        f"{classes}; all send the whole vector; a column's sum is over at least {least} that "
        f"train it{unused}"
    )
