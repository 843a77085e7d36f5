"""What members of a sealed federation say to each other through the coordinator: hellos and
sealed envelopes.

Knows bytes, signatures and boxes. Knows nothing of when they are sent.
Always: both are signed by their sender's key of the roster for one federation, epoch, run, round
and attempt; an envelope opens for its one receiver, whose box key lives for this attempt alone. The
coordinator can lose them; it cannot read them, alter them or keep them for later.
"""

from dataclasses import dataclass, field

from ...core.errors import AuthenticationError, MessageError
from ...crypto.identity.keys import (
    BOX_OVERHEAD,
    KEY_BYTES,
    SIGNATURE_BYTES,
    Ephemeral,
    Identity,
    PublicIdentity,
    bind,
    open_box,
    seal_box,
)
from ..spec.policy import Policy
from ..store.client_store import TAG_BYTES
from ..wire.messages import RoundId
from . import parts

PROTOCOL = "quietchoir sealed 1"
FIELDS = {
    "before": TAG_BYTES,
    "key": KEY_BYTES,
    "public": KEY_BYTES,
    "signature": SIGNATURE_BYTES,
    "steps": 8,
    "tag": TAG_BYTES,
}


def occasion(purpose: str, policy: Policy, round_id: RoundId) -> bytes:
    """Context of a signature or box: this federation, this version of its file, this attempt."""
    return bind(
        PROTOCOL,
        purpose,
        policy.federation,
        policy.digest,
        round_id.run,
        round_id.round,
        round_id.attempt,
    )


def verify(policy: Policy, sender: str, context: bytes, message: bytes, signature: bytes) -> None:
    """Require that `sender` of the roster signed `message` in this context.

    Raises:
        MessageError: no member, or it did not.
    """
    member = policy.member(sender)
    if member is None:
        raise MessageError(f"{sender!r} is not in the roster; its message is refused")
    try:
        PublicIdentity(bytes.fromhex(member.key)).verify(context, message, signature)
    except AuthenticationError:
        raise MessageError(f"not signed by {sender} for this attempt; refused") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A member says where it is, and how a box for it is sealed."""

    sender: str
    public: bytes  # X25519, for this attempt
    # name of the members' key that it holds; zeros: none of this epoch
    key: bytes = bytes(KEY_BYTES)
    steps: int = 0  # sums it has applied in this run
    tag: bytes = bytes(TAG_BYTES)  # of its adapter and velocity, under that key
    before: bytes = bytes(TAG_BYTES)  # of those one step earlier, if it still has them; else zeros
    key_group: bytes = b""  # who made that key, `KeyGroup.encode`; nothing where all have the key
    signature: bytes = b""

    @property
    def has_key(self) -> bool:
        """Does it hold a key of this epoch?"""
        return self.key != bytes(KEY_BYTES)

    @property
    def state(self) -> tuple[int, bytes]:
        """Equal for members with equal adapters."""
        return self.steps, self.tag

    @property
    def states(self) -> tuple[tuple[int, bytes], ...]:
        """`state`, and the one that it can go back to."""
        return (
            (self.state,)
            if self.before == bytes(TAG_BYTES)
            else (self.state, (self.steps - 1, self.before))
        )

    def body(self) -> bytes:
        """What is signed."""
        return bind(
            self.sender, self.public, self.key, self.steps, self.tag, self.before, self.key_group
        )

    def signed(self, policy: Policy, round_id: RoundId, identity: Identity) -> bytes:
        """Spell and sign it."""
        signature = identity.sign(occasion("greeting", policy, round_id), self.body())
        fields = {
            "before": self.before,
            "circle": self.key_group,
            "key": self.key,
            "public": self.public,
            "tag": self.tag,
        }
        return parts.join(
            {**fields, "signature": signature, "steps": self.steps.to_bytes(8, "big")}
        )

    @staticmethod
    def decode(data: bytes, policy: Policy, round_id: RoundId, sender: str) -> "Hello":
        """Read what `sender` signed for this attempt.

        Raises:
            MessageError: anything else.
        """
        found = parts.split(data)
        if {
            name: len(part) for name, part in found.items() if name != "circle"
        } != FIELDS or "circle" not in found:
            raise MessageError(
                f"the hello of {sender} has other fields than circle, {', '.join(FIELDS)}; refused"
            )
        steps = int.from_bytes(found.pop("steps"), "big")
        hello = Hello(sender=sender, steps=steps, key_group=found.pop("circle"), **found)
        verify(
            policy, sender, occasion("greeting", policy, round_id), hello.body(), hello.signature
        )
        return hello


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedEnvelope:
    """Secret content on its way from one member to another."""

    purpose: str  # "key" or "state"
    policy: Policy
    round_id: RoundId
    sender: str
    receiver: str
    content: bytes = field(default=b"", repr=False)

    @property
    def context(self) -> bytes:
        """Names federation, epoch, attempt, purpose, sender and receiver."""
        return bind(occasion(self.purpose, self.policy, self.round_id), self.sender, self.receiver)

    def sealed(self, identity: Identity, receiver_public: bytes) -> bytes:
        """Ephemeral key, box, signature.

        Raises:
            AuthenticationError: the receiver's box key gives no shared secret.
        """
        own = Ephemeral.generate()
        box = own.public + seal_box(
            own.agree(receiver_public, self.context), self.content, self.context
        )
        return box + identity.sign(self.context, box)

    def opened(self, data: bytes, own: Ephemeral) -> bytes:
        """The content of what `sealed` wrote.

        Args:
            own: the receiver's box key of this attempt.

        Raises:
            MessageError: not signed by the sender for this receiver and attempt.
            AuthenticationError: the box does not open.
        """
        if len(data) < KEY_BYTES + BOX_OVERHEAD + SIGNATURE_BYTES:
            raise MessageError(
                f"an envelope of {len(data)} bytes from {self.sender} holds nothing; refused"
            )
        box, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
        verify(self.policy, self.sender, self.context, box, signature)
        return open_box(own.agree(box[:KEY_BYTES], self.context), box[KEY_BYTES:], self.context)
