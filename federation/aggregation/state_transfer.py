"""A member's side of what comes before a sealed round: one key for all, and the same adapter for
all.

    greet    say which key and which adapter are here           deal    seal the key for those that
                                                                        lack it
    take     open it                                            hand    seal the adapter for those
                                                                        that are behind
    follow   open it, if enough members say that theirs is the same
    with key = "threshold" there is no key to deal and take; the stages of `dkg_client` make one
    that nobody has

Knows hellos, envelopes and the store. Knows nothing of Flower, training or masks.
Always: key and adapter go to members of the roster only, sealed, for the attempt in which they
asked; an adapter is taken only with the signatures of enough other members under it, whatever the
coordinator says; a refused message changes nothing.

Not covered: any one member that colludes with the coordinator can hand it the key, and with it
every sum and adapter of the epoch. It cannot hand over one member's update: nobody but that member
has it.
"""

import json

from ...core.errors import MessageError
from ...crypto.he.bfv import SEED_BYTES
from ...crypto.identity.keys import Ephemeral, Identity
from ..spec.policy import Policy
from ..store.client_store import TAG_BYTES, ClientStore, Progress
from ..wire.messages import RoundId
from . import parts
from .experimental import dkg_client
from .experimental.dkg_client import DkgClient
from .experimental.key_group import KeyGroup
from .hello import Hello, SealedEnvelope

GREET, DEAL, TAKE, HAND, FOLLOW = "greet", "deal", "take", "hand", "follow"
STAGES = (GREET, DEAL, TAKE, HAND, FOLLOW, *dkg_client.STAGES)
OWN, FROM, ENVELOPE, TO, SAYS = "own", "from", "parcel", "to/", "says/"  # names of parts


def witnesses(policy: Policy) -> int:
    """Members that must say the same of an adapter before another one takes it; from the signed
    file alone.
    """
    return max(policy.protection.threshold, 2 * policy.protection.min_cohort // 3 + 1)


class StateTransfer:
    """One member, before its rounds."""

    def __init__(self, policy: Policy, name: str, identity: Identity, store: ClientStore) -> None:
        self.policy, self.name, self.identity, self.store = policy, name, identity, store
        self.dkg = (
            DkgClient(policy, name, identity, store)
            if policy.protection.key == "threshold"
            else None
        )
        self.box_key: tuple[RoundId, Ephemeral] | None = None  # of the attempt that greeted last

    def answer(self, round_id: RoundId, stage: str, payload: bytes) -> bytes:
        """One stage.

        Raises:
            MessageError, AuthenticationError, FederationError: refused; nothing was changed.
            ProtocolError, ThresholdError: as `DkgClient.answer`.
        """
        if stage in (dkg_client.STAGES if self.dkg is None else (DEAL, TAKE)):
            raise MessageError(
                f"found stage {stage!r}, but protection.key = "
                f"{self.policy.protection.key!r}; refused"
            )
        if self.dkg is not None and stage in dkg_client.STAGES:
            self.own_box(round_id)
            return self.dkg.answer(round_id, stage, payload) or (
                self.hello(round_id) if stage == dkg_client.SETTLE else b""
            )
        if stage == GREET:
            if payload:
                raise MessageError(
                    f"a hello was asked for with {len(payload)} bytes, expected none; refused"
                )
            self.box_key = (round_id, Ephemeral.generate())
            return self.hello(round_id)
        steps = {DEAL: self.deal, TAKE: self.take, HAND: self.hand, FOLLOW: self.follow}
        return steps[stage](round_id, parts.split(payload))

    def hello(self, round_id: RoundId) -> bytes:
        """Where this member is, signed."""
        epoch = self.policy.digest
        public, seed, key = (
            self.own_box(round_id).public,
            self.store.seed(epoch),
            self.store.key_name(epoch),
        )
        if seed is None or key is None:
            return Hello(sender=self.name, public=public).signed(
                self.policy, round_id, self.identity
            )
        progress, before = self.store.progress(round_id.run), self.store.before(round_id.run)
        hello = Hello(
            sender=self.name,
            public=public,
            key=key,
            steps=progress.steps,
            tag=progress.tag(seed, round_id.run),
            before=bytes(TAG_BYTES) if before is None else before.tag(seed, round_id.run),
            key_group=b""
            if (held := self.store.key_shares.key_share(epoch)) is None
            else KeyGroup.of(held.plan).encode(),
        )
        return hello.signed(self.policy, round_id, self.identity)

    def deal(self, round_id: RoundId, asked: dict[str, bytes]) -> bytes:
        """Seal the key for those that asked; make one if this member has none of this epoch
        either.
        """
        askers = self.hellos(asked, TO, round_id)
        self.own_box(round_id)
        seed = self.store.seed(self.policy.digest) or self.store.make_seed(self.policy.digest)
        return self.envelopes("key", round_id, askers, seed)

    def take(self, round_id: RoundId, given: dict[str, bytes]) -> bytes:
        """Open the key, keep it, and greet again. Raises as `unwrap`; MessageError for what is
        no key.
        """
        seed = self.unwrap("key", round_id, given)
        if len(seed) != SEED_BYTES:
            raise MessageError(f"a key of {len(seed)} bytes came, {SEED_BYTES} expected; refused")
        self.store.keep_seed(self.policy.digest, seed)
        return self.hello(round_id)

    def hand(self, round_id: RoundId, asked: dict[str, bytes]) -> bytes:
        """Seal this member's adapter for those that are behind."""
        askers = self.hellos(asked, TO, round_id)
        return self.envelopes("state", round_id, askers, self.store.progress(round_id.run).encode())

    def follow(self, round_id: RoundId, given: dict[str, bytes]) -> bytes:
        """Open an adapter, or go back by one step if none was sent; keep it if enough others have
        it, and greet again.

        Raises:
            MessageError: no key, no adapter, or one that too few others have; and as `unwrap`.
            FederationError: no adapter of this shape.
        """
        seed, key = self.store.seed(self.policy.digest), self.store.key_name(self.policy.digest)
        if seed is None:
            raise MessageError("an adapter came before the members' key; refused")
        if ENVELOPE in given:
            progress = Progress.decode(self.unwrap("state", round_id, given), self.store.size)
        elif (before := self.store.before(round_id.run)) is not None:
            progress = before
        else:
            raise MessageError("no adapter came, and there is none to go back to; refused")
        state = (progress.steps, progress.tag(seed, round_id.run))
        hellos = self.hellos(given, SAYS, round_id)
        same = sum(
            one.key == key and state in one.states
            for one in hellos.values()
            if one.sender != self.name
        )
        if same < witnesses(self.policy):
            raise MessageError(
                f"{same} members have this adapter, need {witnesses(self.policy)}; it is not taken"
            )
        self.store.keep_progress(round_id.run, progress)
        return self.hello(round_id)

    def freeze(self) -> bytes:
        """What this member needs to go on in the attempt in which it greeted; nothing before it
        did.

        Hazard: it holds this attempt's box key, and a ceremony's secrets. Seal it.
        """
        if self.box_key is None:
            return b""
        round_id, key = self.box_key
        header = json.dumps(
            {
                "place": [round_id.run, round_id.round, round_id.attempt],
                "key": key.private_bytes().hex(),
            }
        ).encode("ascii")
        ceremony = b"" if self.dkg is None else self.dkg.freeze()
        return len(header).to_bytes(4, "big") + header + ceremony

    def thaw(self, kept: bytes) -> None:
        """Go on where `freeze` left it."""
        end = 4 + int.from_bytes(kept[:4], "big")
        header = json.loads(kept[4:end])
        round_id = RoundId(*header["place"])
        self.box_key = (round_id, Ephemeral(bytes.fromhex(header["key"])))
        if self.dkg is not None:
            self.dkg.thaw(round_id, kept[end:])

    def envelopes(
        self, purpose: str, round_id: RoundId, askers: dict[str, Hello], content: bytes
    ) -> bytes:
        """This member's hello, and one envelope for each asker."""
        out = {OWN: self.hello(round_id)}
        for name, asker in askers.items():
            envelope = SealedEnvelope(
                purpose=purpose,
                policy=self.policy,
                round_id=round_id,
                sender=self.name,
                receiver=name,
                content=content,
            )
            out[TO + name] = envelope.sealed(self.identity, asker.public)
        return parts.join(out)

    def unwrap(self, purpose: str, round_id: RoundId, given: dict[str, bytes]) -> bytes:
        """The content of the envelope in `given`. Raises MessageError without one; and as
        `SealedEnvelope.opened`.
        """
        try:
            sender, data = given[FROM].decode("ascii"), given[ENVELOPE]
        except (KeyError, UnicodeDecodeError):
            raise MessageError("an envelope without its sender's name; refused") from None
        envelope = SealedEnvelope(
            purpose=purpose,
            policy=self.policy,
            round_id=round_id,
            sender=sender,
            receiver=self.name,
        )
        return envelope.opened(data, self.own_box(round_id))

    def hellos(self, given: dict[str, bytes], prefix: str, round_id: RoundId) -> dict[str, Hello]:
        """The hellos among `given`, by sender, each checked."""
        names = [name.removeprefix(prefix) for name in given if name.startswith(prefix)]
        return {
            name: Hello.decode(given[prefix + name], self.policy, round_id, name) for name in names
        }

    def own_box(self, round_id: RoundId) -> Ephemeral:
        """This attempt's box key. Raises MessageError if this member has not greeted in it."""
        if self.box_key is None or self.box_key[0] != round_id:
            raise MessageError("this member has not greeted in this attempt; refused")
        return self.box_key[1]
