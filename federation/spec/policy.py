"""What a federation is: the tables of `federation.toml`, checked.

Knows names, limits and defaults. Knows nothing of signatures (see roster) or of the network.
Always: a `Policy` that exists is consistent; two equal policies have equal digests.
"""

import dataclasses
import functools
import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ...core.prompt import HOUSEHOLD, PromptFormat
from .address import Address
from .guard import AggregationTable, GuardTable, check_guard
from .privacy import PrivacyTable
from .ranks import check_ranks
from .schedule import ScheduleTable, check_schedule
from .variants import Variant, check_variants

if TYPE_CHECKING:
    from ...core.models.lora.adapter import AdapterShape
    from ...core.training.trainer import Recipe as TrainerRecipe

LAST_MOMENT = 253402300799  # of the year 9999, in seconds since 1970: later ones have no date
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_BITS = 16
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
        require(
            self.rank >= 1 and self.upper_layers >= 1, "rank and upper_layers must be at least 1"
        )
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

    def __post_init__(self) -> None:
        require(2 <= self.bits <= MAX_BITS, f"bits = {self.bits} must lie between 2 and {MAX_BITS}")
        require(
            self.min_cohort >= 1 and self.min_tokens >= 0,
            "min_cohort must be at least 1, min_tokens at least 0",
        )
        require(
            1 <= self.threshold <= self.min_cohort, "threshold must lie between 1 and min_cohort"
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
    batch: int = 16
    epochs: int = 1
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
        require(
            min(self.rounds, self.batch, self.epochs, self.attempts) >= 1,
            "rounds, batch, epochs, attempts: at least 1",
        )
        require(
            min(self.lr, self.server_lr, self.update_range) > 0,
            "lr, server_lr and update_range must be above 0",
        )
        require(
            0 <= self.server_momentum < 1,
            f"server_momentum = {self.server_momentum} must lie in [0, 1)",
        )
        require(
            0 < self.server_memory < 1,
            f"server_memory = {self.server_memory} must lie between 0 and 1",
        )
        require(
            self.server_floor > 0 <= self.proximal,
            "server_floor must be above 0, proximal at least 0",
        )
        require(self.agreed_steps >= 0, f"agreed_steps = {self.agreed_steps} must be at least 0")
        require(
            min(self.work_timeout_s, self.stage_timeout_s) > 0, "timeouts must be above 0 seconds"
        )
        require(
            min(self.evaluate_every, self.cohort) >= 0,
            "evaluate_every and cohort must be at least 0",
        )

    def trainer(self) -> "TrainerRecipe":
        """The part that a node's trainer needs."""
        from ...core.training.trainer import Recipe as TrainerRecipe

        return TrainerRecipe(
            lr=self.lr, batch=self.batch, epochs=self.epochs, proximal=self.proximal
        )


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


@dataclass(frozen=True, slots=True, kw_only=True)
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
        self.privacy.check(
            self.protection.min_cohort, self.protection.min_tokens, len(self.members)
        )
        self.aggregation.check(self.protection.mode)
        check_guard(self.guard, self.privacy.counts)
        check_schedule(self)
        told = self.recipe.download != "change" or self.protection.mode != "sealed"
        require(
            told,
            'recipe.download = "change" needs mode "plain" or "masked": a sealed round '
            "tells sums alone as it is",
        )
        require(
            not 0 < self.recipe.cohort < self.smallest_sum,
            f"recipe.cohort = {self.recipe.cohort} must be 0 (everybody who is there) or at least "
            f"{self.smallest_sum}: a sum of fewer members is never opened",
        )
        everybody = self.protection.key == "shared" or not self.recipe.cohort
        require(
            everybody,
            'recipe.cohort must be 0 with key = "threshold": whoever is there holds '
            "a share, and is needed",
        )
        names, keys = (
            [member.name for member in self.members],
            [member.key for member in self.members],
        )
        require(len(set(names)) == len(names), "members: a name stands twice")
        require(len(set(keys)) == len(keys), "members: a key stands twice")
        check_ranks(self, {member.name: member.rank for member in self.members})

    @property
    def followed(self) -> bool:
        """Do members follow the adapter step by step, instead of being told it whole?"""
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

    @property
    def digest(self) -> bytes:
        """32 bytes that differ between any two different policies."""
        return digest_of(self)

    @property
    def colluders(self) -> int:
        """Members of any one sum that may be in league with the coordinator: what the file says,
        and one at least.
        """
        return max(1, self.privacy.colluders)

    @property
    def smallest_sum(self) -> int:
        """Members that any sum has: buckets, each over few, have `min_cohort` besides those that
        may collude.
        """
        few = self.aggregation.buckets > 1 and self.protection.mode != "plain"
        return self.protection.min_cohort + (self.colluders if few else 0)

    def table(self) -> dict[str, Any]:
        """The policy as TOML's types."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))

    def member(self, name: str) -> Member | None:
        """The member called `name`, or None; a member whose time is over is none."""
        return next(
            (
                member
                for member in self.members
                if member.name == name and not is_over(member.expires)
            ),
            None,
        )

    def name_of(self, key: bytes) -> str | None:
        """The member whose Ed25519 key is `key`, or None; a member whose time is over is none."""
        named = (
            member.name
            for member in self.members
            if member.key == key.hex() and not is_over(member.expires)
        )
        return next(named, None)


def is_over(expires: int) -> bool:
    """Is that moment past, by this machine's clock? 0 never is. Clocks that differ differ about
    it: a round may then abort.
    """
    return 0 < expires <= time.time()


@functools.lru_cache(maxsize=64)
def digest_of(policy: Policy) -> bytes:
    """Remembered, because every letter names it."""
    return hashlib.sha256(canonical(policy.table())).digest()


def canonical(table: dict[str, Any]) -> bytes:
    """One spelling of a table: JSON, sorted keys, no spaces."""
    return json.dumps(
        table, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")
