"""What masked rounds cost in a federation too large to play: computed from unit costs that are
measured here and now, and marked as computed.

Knows how often the protocol does what, and what each costs on this machine. Knows nothing of
learning; plays no round.
Always: counts follow from the protocol's own sizes (`crypto.secagg.session`), bytes from its
formats; what was measured and what follows from it stand apart in the report.
Not covered: waiting, the network, disks, and Python's own work of reading and writing messages: so
seconds are lower bounds. Of a cohort of 100 that was played, a member's computed seconds were 0.85
and the coordinator's 0.5; `quietchoir bench simulate` tells both.
"""

import dataclasses
import math
import secrets
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..crypto import shamir
from ..crypto.identity.keys import SIGNATURE_BYTES, Ephemeral, Identity, bind, hkdf, seal_box
from ..crypto.ring import BitRing, add_streams
from ..crypto.secagg import SecAggConfig
from ..crypto.secagg.messages import HEADER_BYTES, Receipt
from ..crypto.secagg.session import Plan, Session
from ..federation.aggregation.base import MESSAGE_BYTES, WireCost
from ..federation.aggregation.delta_chain import attested
from ..federation.aggregation.secagg import proof_bytes
from ..federation.aggregation.update import Codec
from ..federation.rounds.server import held_by
from ..federation.spec.policy import CoordinatorTable, ModelTable, Policy
from .scenario import Scenario

REPEATS = 5
MOST = 65_535  # members of one cohort, by the protocol
NUMBER_BYTES, STAGES = 2, 5
NOBODY = "00" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """Processor seconds of one of each, measured; and of one value or byte where it says so."""

    sign_s: float
    verify_s: float
    agree_s: float  # a common secret of two members
    derive_s: float  # a key of it
    seal_s: float  # shares for one neighbour; opening them costs as much
    split_s: float  # one secret, for all neighbours
    rebuild_s: float  # one secret of their shares, with the weights of its holders
    stream_s: float  # one mask's first byte
    stream_value_s: float  # and each value
    pack_value_s: float  # of one contribution; unpacking costs as much

    @staticmethod
    def measure(plan: Plan, length: int, bits: int, parties: int) -> "UnitCosts":
        """On this machine, at these sizes."""
        identity, own, peer = Identity.generate(), Ephemeral.generate(), Ephemeral.generate()
        context, message = bind("costs"), secrets.token_bytes(256)
        signature = identity.sign(context, message)
        secret, points = secrets.token_bytes(32), list(range(1, plan.degree + 2))
        shares = shamir.split(secret, plan.threshold, points)[: plan.threshold]
        ring = BitRing(length=length, bits=bits, parties=parties)
        words = np.zeros(length, ring.dtype)
        payload, key = ring.pack(words), secrets.token_bytes(32)
        few, many = np.zeros(1, ring.dtype), np.zeros(1 << 20, ring.dtype)

        def rebuild() -> object:
            return shamir.join(shares, shamir.weights(points[: plan.threshold]))

        stream_s = timed(lambda: add_streams(few, [(key, False)]), 200)
        return UnitCosts(
            sign_s=timed(lambda: identity.sign(context, message), 200),
            verify_s=timed(lambda: identity.public.verify(context, message, signature), 200),
            agree_s=timed(lambda: own.agree(peer.public, context), 200),
            derive_s=timed(lambda: hkdf(secret, context), 200),
            seal_s=timed(lambda: seal_box(key, message, context), 200),
            split_s=timed(lambda: shamir.split(secret, plan.threshold, points), 3),
            rebuild_s=timed(rebuild, 3),
            stream_s=stream_s,
            stream_value_s=timed(lambda: add_streams(many, [(key, False)]), 2) / many.size,
            pack_value_s=timed(lambda: ring.unpack(payload), 5) / length,
        )


def timed(work: Callable[[], object], times: int) -> float:
    """Processor seconds of one, the median of some repeats."""
    found = []
    for _ in range(REPEATS):
        before = time.process_time()
        for _ in range(times):
            work()
        found.append((time.process_time() - before) / times)
    return statistics.median(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortCost:
    """One masked round of one cohort."""

    neighbours: int
    share_threshold: int
    member_s: float
    coordinator_s: float
    member_up_bytes: int
    member_down_bytes: int


def cohort_cost(
    parties: int, length: int, bits: int, dropouts: float
) -> tuple[CohortCost, UnitCosts]:
    """Of so many members, each contributing `length` values; a share of them falls silent once it
    has dealt its secrets, the costliest moment for the coordinator.
    """
    session = session_of(parties, length, bits)
    plan, n = session.plan(parties), parties
    k, silent = plan.degree, round(dropouts * parties)
    unit, alive = UnitCosts.measure(plan, length, bits, parties), parties - silent
    stream_s = unit.stream_s + length * unit.stream_value_s
    pair_s = unit.agree_s + 2 * unit.derive_s + stream_s
    member_s = (
        STAGES * unit.sign_s
        + (n + 2 * alive) * unit.verify_s  # everybody's keys, receipts and agreements
        + 2 * unit.split_s
        + 2 * k * (unit.agree_s + unit.seal_s)  # seal for each neighbour, open each one's
        + k * pair_s
        + 2 * unit.derive_s
        + stream_s
        + length * unit.pack_value_s
    )
    coordinator_s = (
        (2 * n + 3 * alive) * unit.verify_s
        + 4 * n * unit.agree_s  # tries each of two keys with a fresh one
        + n * unit.rebuild_s
        + alive * (2 * unit.derive_s + stream_s + length * unit.pack_value_s)
        + silent * k * pair_s
    )
    up, down = bytes_of(session, plan, n, alive)
    cost = CohortCost(
        neighbours=k,
        share_threshold=plan.threshold,
        member_s=member_s,
        coordinator_s=coordinator_s,
        member_up_bytes=up,
        member_down_bytes=down,
    )
    return cost, unit


def session_of(parties: int, length: int, bits: int) -> Session:
    """An attempt's sizes, under keys of nobody."""
    key = Identity.generate().public
    config = SecAggConfig(
        federation=bytes(32),
        round=0,
        attempt=0,
        members={f"{number:05}": key for number in range(parties)},
        threshold=2 * parties // 3 + 1,
        min_cohort=3,
        length=length,
        bits=bits,
    )
    return Session(config)


def bytes_of(session: Session, plan: Plan, asked: int, alive: int) -> tuple[int, int]:
    """What one member sends and is sent, by the formats of `crypto.secagg.messages`."""
    k, record = plan.degree, NUMBER_BYTES
    tokens = session.token_ring.limbs.wire_bytes
    up = (
        session.card_bytes
        + k * (record + session.box_bytes)
        + SIGNATURE_BYTES
        + Receipt.RECORD_BYTES
        + session.ring.wire_bytes
        + tokens
        + SIGNATURE_BYTES
        + (k + 1) * (record + 1 + shamir.SHARE_BYTES)
        + SIGNATURE_BYTES
    )
    down = (
        asked * (record + session.card_bytes)
        + -(-asked // 8)
        + k * (record + session.box_bytes)
        + alive * (record + Receipt.RECORD_BYTES)
        + alive * (record + SIGNATURE_BYTES)
    )
    around = STAGES * HEADER_BYTES + MESSAGE_BYTES
    return up + around, down + around


def wire_of(scenario: Scenario, size: int) -> WireCost:
    """What one party of a masked round sends and is sent, its adapter included, when everybody who
    is asked stays.
    """
    cohort = min(scenario.recipe.cohort or scenario.population.count or 3, MOST)
    recipe = dataclasses.replace(scenario.recipe, cohort=cohort)
    policy = rules_of(dataclasses.replace(scenario, recipe=recipe))
    size = policy.carried(size)
    session = session_of(cohort, Codec(size, policy).length, scenario.protection.bits)
    up, down = bytes_of(session, session.plan(cohort), cohort, cohort)
    total = BitRing(length=size, bits=scenario.protection.bits, parties=cohort).wire_bytes
    if attested(policy):  # the opened sum comes back, and is signed; the next step names it
        up, down = up + proof_bytes(cohort), down + total
    told = held_by(policy).wire_cost(policy, size, cohort)
    # who follows is told each step that was made since it was drawn last, so many in the mean
    missed = max(0.0, scenario.population.count / cohort - 1)
    late = min(told.late_down, round(missed * total))
    return WireCost(up, down + told.down + late)


def rules_of(scenario: Scenario) -> Policy:
    """The scenario's tables as a federation file without members."""
    return Policy(
        name=scenario.name,
        nonce=NOBODY[:32],
        owner=NOBODY,
        model=ModelTable(name=scenario.model, digest=NOBODY),
        protection=scenario.protection,
        privacy=scenario.privacy,
        recipe=scenario.recipe,
        coordinator=CoordinatorTable(address="127.0.0.1:1", key=NOBODY),
    )


def compute(scenario: Scenario, size: int) -> dict[str, Any]:
    """`Scale` in figures; nothing of it was run.

    Raises:
        ConfigError: a cohort larger than one sum can have.
    """
    scale, policy = scenario.scale, rules_of(scenario)
    if scale.cohort > MOST:
        raise ConfigError(f"scale.cohort = {scale.cohort}; one sum has at most {MOST} members")
    size = policy.carried(size)
    length, n = Codec(size, policy).length, scale.cohort
    cost, unit = cohort_cost(n, length, scenario.protection.bits, scale.dropouts)
    rounds = scenario.recipe.rounds
    often = rounds * n / scale.parties  # how often one party is drawn, in the mean
    needed = 2 * n // 3 + 1
    return {
        "computed": True,
        "parties": scale.parties,
        "cohort": n,
        "rounds": rounds,
        "drawn_in_the_mean": often,
        "never_drawn_share": (1 - n / scale.parties) ** rounds,
        "too_few_stay_log10": log_binomial_below(n, 1 - scale.dropouts, needed),
        "round": asdict(cost),
        "member_whole_s": often * cost.member_s,
        "member_whole_bytes": round(
            often * (cost.member_up_bytes + cost.member_down_bytes + 4 * size)
        ),
        "coordinator_whole_s": rounds * cost.coordinator_s,
        "coordinator_whole_bytes": round(
            rounds * n * (cost.member_up_bytes + cost.member_down_bytes + 4 * size)
        ),
        "measured_unit_costs": asdict(unit),
    }


def log_binomial_below(n: int, chance: float, least: int) -> float | None:
    """Base-10 logarithm of the chance that fewer than `least` of `n` stay; None: there is none."""
    if chance >= 1:
        return None
    terms = [
        math.lgamma(n + 1)
        - math.lgamma(at + 1)
        - math.lgamma(n - at + 1)
        + at * math.log(chance)
        + (n - at) * math.log1p(-chance)
        for at in range(least)
    ]
    top = max(terms)
    return (top + math.log(sum(math.exp(term - top) for term in terms))) / math.log(10)
