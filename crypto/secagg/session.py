"""What the members of one attempt must agree on before anything is said, folded into 32 bytes; and
what follows from it: who masks with whom, under which keys.

Knows the signed federation file's floors, the cohort, the ring, hypergeometric tails, and the
derivation of every mask key and its sign: the lower number of a pair adds its stream and the higher
one subtracts it, values and tokens have separate keys. Knows nothing of messages.
Always: two parties whose views differ in anything here have different session digests, so nothing
of one is accepted by the other; every floor comes from the caller's own configuration, never from a
message. The graph is complete up to 32 parties; above that every party has the same even number of
neighbours on a shuffled cycle, and the numbers come from a failure bound that is computed, not
guessed.

The shuffle's seed is a hash of everybody's signed round keys and the session, so the coordinator
does not choose it. It can try subsets of the parties, and its accomplices can try keys: each try is
a lottery ticket, and `GRINDING_BITS` of them are paid for in the security bound.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, lgamma, log
from typing import Protocol

from ...core.errors import AuthenticationError, ConfigError
from ..identity.keys import BOX_OVERHEAD, KEY_BYTES, Ephemeral, PublicIdentity, bind, digest, hkdf
from ..ring import BitRing, Ring, TokenRing
from ..shamir import SHARE_BYTES
from ..shared import once
from . import tag

PROTOCOL = "quietchoir secagg 2"
VOUCH_BYTES, COMMITMENT_BYTES, SIGNATURE_BYTES = 8, 32, 64
CLAIM_STEPS = 4  # a claim counts in quarters of a fair share of min_tokens ...
CLAIM_LIMIT = 15  # ... up to 15 of them, so that it says at most four bits about a member

COMPLETE_UP_TO = 32
SECURITY_BITS = 40  # one attempt in 2**40 may give a bad graph by chance ...
GRINDING_BITS = 48  # ... even if the coordinator could try 2**48 graphs during the attempt
# one attempt in 2**20 may have a party whose secrets cannot be rebuilt: it is retried, nothing
# leaks
FAILURE_BITS = 20


@dataclass(frozen=True, slots=True)
class Floor:
    """Some of the cohort, of whom enough must be in any sum that is opened.

    For vectors of which only some members fill a part: that part of the sum is a sum over those
    members, and must not be one over fewer than a sum may have.
    """

    members: frozenset[str]
    least: int


@dataclass(frozen=True, kw_only=True)
class SecAggConfig:
    """One attempt of one round, as each party knows it from its OWN copy of the signed federation
    file.

    With n members and the threshold t: up to n - t may drop out; t - 1 pooled share sets open
    nothing; and a coordinator that shows different survivors to different members gets nowhere
    while at most 2t - n - 1 members collude with it (`colluders`). The other percentages matter
    above 32 parties only, where shares go to neighbours.

    Raises:
        ConfigError: floors that protect nobody.

    Source: Bonawitz et al. 2017, theorem 6.5 (2t > n + colluders).
    """

    federation: bytes  # 32 bytes, digest of the signed federation file
    round: int
    attempt: int  # a retry is a new attempt with new seeds
    members: Mapping[str, PublicIdentity]  # the cohort of this round, from the signed roster
    threshold: int  # survivors, and signatures, without which nothing is revealed
    min_cohort: int  # a sum over fewer parties is not opened
    min_tokens: int = 0  # nor a sum over fewer training tokens; 0 turns it off
    length: int  # values of one update
    bits: int  # of one value
    corrupt_percent: int = 10  # of the cohort that may collude, for the graph above 32 parties
    drop_percent: int = 10  # of the cohort that may drop out, for the same
    # besides min_cohort, for parts of the vector that not everybody fills
    floors: tuple[Floor, ...] = ()
    # so many of the first values carry a tag (`tag`), with which members check the sum they are
    # shown
    tagged: int = 0
    # whatever else must be the same for all, hashed: what each was told before it contributes
    context: bytes = b""
    # What a member's ledger holds survivors to (`RevealLedger.sign`); the server need not know it.
    # 32 bytes each: what the sum is about; sums about the same can be subtracted
    subjects: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.members)
        if len(self.federation) != 32 or self.round < 0 or self.attempt < 0 or self.min_tokens < 0:
            raise ConfigError(
                f"federation of {len(self.federation)} bytes, round {self.round}, attempt "
                f"{self.attempt}: not a round"
            )
        # two disjoint majorities cannot exist: Bonawitz 2017, section 6.2
        if not n // 2 < self.threshold <= n:
            raise ConfigError(
                f"threshold {self.threshold} of {n} members; take more than half and "
                f"at most all of them"
            )
        if not 3 <= self.min_cohort <= n:  # a sum of two tells each of the two the other's update
            raise ConfigError(
                f"min_cohort {self.min_cohort} of {n} members; take at least 3 and "
                f"at most all of them"
            )
        if n > 65_535 or not (0 <= self.corrupt_percent < 50 and 0 <= self.drop_percent < 50):
            raise ConfigError(
                f"{n} members, {self.corrupt_percent} % colluding, "
                f"{self.drop_percent} % dropping: out of range"
            )
        if n > COMPLETE_UP_TO and self.colluders < n * self.corrupt_percent // 100:
            raise ConfigError(
                f"threshold {self.threshold} of {n} bears {self.colluders} colluders; raise it or "
                f"lower corrupt_percent"
            )
        if self.tagged and (n > COMPLETE_UP_TO or not 0 < self.tagged <= self.length):
            raise ConfigError(
                f"{self.tagged} of {self.length} values with a tag among {n} members; tags need 1 "
                f"value and at most "
                f"{COMPLETE_UP_TO} members, who all share with each other"
            )
        for floor in self.floors:
            known = len(floor.members.intersection(self.members))
            if known != len(floor.members) or not 1 <= floor.least <= known:
                raise ConfigError(
                    f"a floor of {floor.least} among {len(floor.members)} members, {known} of them "
                    f"in this cohort of {n}; "
                    "name members of the cohort, and at most as many as they are"
                )

    @property
    def words(self) -> int:
        """Integers of one contribution, its tag included."""
        return self.length + (tag.width(self.bits) if self.tagged else 0)

    @property
    def colluders(self) -> int:
        """Members that may collude with a coordinator that equivocates."""
        return 2 * self.threshold - len(self.members) - 1

    @property
    def needed(self) -> int:
        """Parties without which no stage goes on."""
        return max(self.threshold, self.min_cohort)

    @property
    def token_unit(self) -> int:
        """Tokens behind one unit of a claim; 0 when no floor is set."""
        return -(-self.min_tokens // (CLAIM_STEPS * self.min_cohort))


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one graph."""

    degree: int  # neighbours of each party
    threshold: int  # shares, of degree + 1 (a party keeps one of its own), that rebuild a secret


class Graph:
    """Neighbours on a cycle in shuffled order: the `degree / 2` nearest on each side, or
    everybody.
    """

    def __init__(self, present: Sequence[int], degree: int, seed: bytes) -> None:
        """Args: present: numbers of the parties; degree: even, or len(present) - 1; seed: 32
        bytes nobody chose.
        """
        self.degree = degree
        self._order = shuffled(present, seed)
        self._places = {party: place for place, party in enumerate(self._order)}

    def neighbours(self, party: int) -> tuple[int, ...]:
        """The parties that mask with `party` and hold its shares, in ascending order."""
        place, reach = self._places[party], self.degree // 2
        others = self._order[place + 1 :] + self._order[:place]  # everybody else, going round once
        return tuple(
            sorted(others if self.degree >= len(others) else others[:reach] + others[-reach:])
        )


def shuffled(present: Sequence[int], seed: bytes) -> list[int]:
    """The parties ordered by SHA-256(seed, number): a permutation that is uniform if the hash is
    a random function.
    """
    return sorted(
        present, key=lambda number: hashlib.sha256(seed + number.to_bytes(4, "big")).digest()
    )


@lru_cache(maxsize=256)
def plan(parties: int, corrupt: int, dropped: int) -> Plan | None:
    """The smallest degree k, with its share threshold t, that keeps both bounds; None if only the
    complete graph does.

    *Nothing opens too early.* Let h = k/2. The coordinator sees the graph and then chooses who
    drops. To open a part of the sum alone it must cut the cycle between two groups of honest
    survivors. At a cut, h places in a row hold no honest survivor, so the survivor beside it has at
    most h + 1 honest shares of its self-mask left (itself and its other side), and t of them need
    at least t - h - 1 corrupt parties within those h places. The same condition, for both sides of
    a party, keeps corrupt neighbours from opening its secrets alone. Hence, over n windows,

        n * P[Hypergeometric(n, corrupt, h) >= t - h - 1] <= 2^-(SECURITY_BITS + GRINDING_BITS).

    *Everything opens in the end.* A party whose neighbours drop too much cannot be unmasked:

        n * P[Hypergeometric(n - 1, dropped, k) >= k + 2 - t] <= 2^-FAILURE_BITS.

    Args:
        parties: that sent keys.
        corrupt: of them that may collude with the coordinator.
        dropped: of them that may drop out.

    Source: after Bell et al. 2020 (SecAgg+), section 3; the window argument is ours, because there
    dropping out is chance.
    """
    # shares that may be missing; it only grows with the degree, since more draws hit more dropped
    # parties
    slack = 1
    for degree in range(4, parties - 1, 2):
        half = degree // 2
        while log(parties) + log_tail(parties - 1, dropped, degree, slack) > -FAILURE_BITS * log(2):
            slack += 1
        # the highest that opens in the end; it makes the other bound easiest
        threshold = degree + 2 - slack
        if threshold < half + 2:
            continue
        if log(parties) + log_tail(parties, corrupt, half, threshold - half - 1) <= -(
            SECURITY_BITS + GRINDING_BITS
        ) * log(2):
            return Plan(degree, threshold)
    return None


def log_tail(population: int, marked: int, drawn: int, at_least: int) -> float:
    """Natural logarithm of P[X >= at_least] for X hypergeometric: `drawn` out of `population`,
    of which `marked` count.
    """
    if at_least <= max(0, drawn - (population - marked)):
        return 0.0
    if at_least > min(marked, drawn):
        return -inf
    whole = log_choose(population, drawn)
    terms = [
        log_choose(marked, hit) + log_choose(population - marked, drawn - hit) - whole
        for hit in range(at_least, min(marked, drawn) + 1)
    ]
    top = max(terms)
    return min(0.0, top + log(sum(exp(term - top) for term in terms)))


def log_choose(n: int, k: int) -> float:
    """Natural logarithm of the binomial coefficient; -inf where it is zero."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) if 0 <= k <= n else -inf


class Session:
    """The agreed facts of one attempt: order of the members, rings, graph sizes, and the digest
    of it all.
    """

    def __init__(self, config: SecAggConfig, ring: Ring | None = None) -> None:
        self.config = config
        self.names = tuple(sorted(config.members))  # a member's number is its place here
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.keys = tuple(config.members[name] for name in self.names)
        self.ring: Ring = ring or BitRing(
            length=config.words, bits=config.bits, parties=len(self.names)
        )
        self.token_ring = TokenRing(len(self.names))
        self.claim_step = config.token_unit
        self.id = self._digest()

    @classmethod
    def of(cls, config: SecAggConfig, ring: Ring | None = None) -> "Session":
        """A session; one for all members of this process that share their findings and have this
        very configuration, if their ring has no state of its own.
        """
        if not isinstance(ring, BitRing | None):
            return cls(config, ring)
        scope = (config.federation, config.round, config.attempt, id(config))
        name = b"" if ring is None else ring.name
        return once(scope, ("session", name), lambda: cls(config, ring))

    def _digest(self) -> bytes:
        config = self.config
        members = [
            field
            for name, key in zip(self.names, self.keys, strict=True)
            for field in (name, key.raw)
        ]
        floors = (
            config.threshold,
            config.min_cohort,
            config.min_tokens,
            config.corrupt_percent,
            config.drop_percent,
        )
        parts: list[str | int] = []
        for floor in config.floors:
            parts += ["floor", floor.least, *sorted(floor.members)]
        agreed = (
            config.federation,
            config.round,
            config.attempt,
            self.ring.name,
            config.tagged,
            config.context,
        )
        return digest(PROTOCOL, *agreed, *floors, *members, *parts)

    def short(self, present: Collection[int], what: str, needed: int) -> str:
        """Why these members (by number), which did `what`, are too few, in all or of a floor;
        empty if they are enough.
        """
        if len(present) < needed:
            return f"{len(present)} members {what}, need {needed}"
        names = {self.names[number] for number in present}
        for floor in self.config.floors:
            if (found := len(floor.members & names)) < floor.least:
                part = f"the {len(floor.members)} members that fill one part of the vector"
                return f"{found} of {part} {what}, need {floor.least}"
        return ""

    @property
    def claim_limit(self) -> int:
        """The highest claim; 0 when no floor is set, so that nothing is said about tokens."""
        return CLAIM_LIMIT if self.claim_step else 0

    def claim(self, tokens: int) -> int:
        """What a member says in clear about its tokens: rounded down, capped, nothing if no
        floor is set.
        """
        return min(tokens // self.claim_step, self.claim_limit) if self.claim_step else 0

    @property
    def card_bytes(self) -> int:
        """Of one member's round keys: two of them, its commitments, what it vouches for."""
        commitments = (2 if self.config.tagged else 1) * COMMITMENT_BYTES
        return 2 * KEY_BYTES + commitments + VOUCH_BYTES + SIGNATURE_BYTES

    @property
    def box_bytes(self) -> int:
        """Of one member's shares for another, sealed."""
        return 2 * SHARE_BYTES + (tag.SEED_BYTES if self.config.tagged else 0) + BOX_OVERHEAD

    def tag_key(self, seeds: Iterable[bytes], shared: bytes) -> bytes:
        """The key of this attempt's tags, from what everybody put into its boxes. Args: shared:
        `shared_view`.
        """
        return tag.derive(seeds, bind(PROTOCOL, self.id, "tag", shared))

    @property
    def vouchers(self) -> int:
        """Members whose word a member takes for what it could not check: one of them is honest if
        at most a third is not.

        A third of all that could have been in the cohort, which the threshold is two thirds of; not
        of those that are, whom the coordinator names.
        """
        return max(len(self.names) // 3, self.config.threshold // 2) + 1

    def signing(self, stage: str, view: bytes = b"") -> bytes:
        """Context of a signature: this session, this stage, and everything its signer had seen
        by then.
        """
        return bind(PROTOCOL, self.id, stage, view)

    def box(self, view: bytes, sender: int, receiver: int) -> bytes:
        """Associated data of the shares that `sender` seals for `receiver`."""
        return bind(PROTOCOL, self.id, "shares", view, sender, receiver)

    def pair(self, purpose: str, one: int, other: int) -> bytes:
        """Context of a secret that two members share, the same from both ends."""
        return bind(PROTOCOL, self.id, purpose, min(one, other), max(one, other))

    def mask_key_context(self, purpose: str, quantity: str) -> bytes:
        """Context of one mask stream: `purpose` self or pair, `quantity` values or tokens."""
        return bind(PROTOCOL, self.id, "mask", purpose, quantity)

    def plan(self, present: int) -> Plan:
        """Neighbours and share threshold among `present` members that sent keys."""
        if len(self.names) <= COMPLETE_UP_TO:
            return Plan(degree=present - 1, threshold=self.config.threshold)
        corrupt = len(self.names) * self.config.corrupt_percent // 100
        dropped = len(self.names) * self.config.drop_percent // 100
        return plan(present, corrupt, dropped) or Plan(
            degree=present - 1, threshold=self.config.threshold
        )

    def verify(self, number: int, context: bytes, message: bytes, signature: bytes) -> None:
        """Check a member's signature. Raises AuthenticationError, naming the member."""
        try:
            self.keys[number].verify(context, message, signature)
        except AuthenticationError:
            raise AuthenticationError(
                f"the message of {self.names[number]} is not signed for this session; it is refused"
            ) from None


QUANTITIES = ("values", "tokens")


class Maskable(Protocol):
    """A party's vector or the coordinator's sum: whatever masks are added to."""

    def mask(self, quantity: str, key: bytes, *, subtract: bool) -> None:
        """Add or take away one stream for one quantity."""


def commit(session: Session, sender: int, seed: bytes) -> bytes:
    """Commitment to a self-mask seed; hiding because the seed has 256 random bits."""
    return digest(session.id, "self-mask commitment", sender, seed)


def commit_tag(session: Session, sender: int, seed: bytes) -> bytes:
    """Commitment to what a member adds to the key of tags, where there are any; hiding as above."""
    return digest(session.id, "tag seed commitment", sender, seed) if session.config.tagged else b""


def mask_self(target: Maskable, session: Session, seed: bytes, *, subtract: bool) -> None:
    """The mask that only its owner adds: what keeps a late upload unreadable."""
    for quantity in QUANTITIES:
        target.mask(
            quantity, hkdf(seed, session.mask_key_context("self", quantity)), subtract=subtract
        )


def mask_pair(
    target: Maskable, session: Session, own: Ephemeral, owner: int, peer: int, peer_key: bytes
) -> None:
    """The mask that `owner` and `peer` share, with the owner's sign.

    The coordinator calls it in a dropped owner's name: adding what the owner would have added
    cancels what the peer did.

    Raises:
        AuthenticationError: the peer's key gives no secret.
    """
    context = session.pair("pair mask", owner, peer)

    def find() -> list[bytes]:
        secret = own.agree(peer_key, context)
        return [hkdf(secret, session.mask_key_context("pair", one)) for one in QUANTITIES]

    # the same from both ends; the context names the pair, and the keys are this attempt's own
    keys = once(session.id, (context, frozenset((own.public, peer_key))), find)
    for quantity, key in zip(QUANTITIES, keys, strict=True):
        target.mask(quantity, key, subtract=owner > peer)
