"""A member's side between two stages as bytes, for programs whose processes do not live as long as
an attempt.

Knows every secret of a `SecAggClient`. Knows nothing of where the bytes lie meanwhile.
Always: what is thawed goes on exactly where it was frozen, in the very same session, or nothing is
thawed.

Hazard: whoever reads the bytes unmasks this member. Seal them under a key that lies elsewhere, and
see to it that one freezing is thawed once at most: two clients that go on from the same state can
sign two sets of survivors, and then a self-mask share and a key share of one peer can meet. Forget
the bytes when the attempt is over.
"""

import json
from collections.abc import Callable
from typing import Any

from ...core.errors import ProtocolError
from ..identity.keys import Ephemeral, Identity, PublicIdentity
from ..ring import Ring
from .client import RevealLedger, SecAggClient, Stage
from .messages import KeyCard, Receipt
from .session import Floor, SecAggConfig, Session


def freeze(client: SecAggClient) -> bytes:
    """Everything a client needs to go on.

    Raises:
        ProtocolError: it is done; there is nothing left to keep.
    """
    if client.stage is Stage.DONE:
        raise ProtocolError(
            "this attempt is over and its secrets are gone; there is nothing to keep"
        )
    fields: dict[str, Any] = {
        "config": spell_config(client._session.config),
        "session": client._session.id.hex(),
        "stage": int(client.stage),
        "seed": client._seed.hex(),
        "vouch": client._vouch,
        "relies": client._relies,
        "tag_seed": client._tag_seed.hex(),
        "channel": client._channel.private_bytes().hex(),
        "mask": client._mask.private_bytes().hex(),
    }
    if client.stage >= Stage.SHARE:
        fields["card"] = client._card.record().hex()
    if client.stage >= Stage.MASK:
        fields["present"] = sorted(client._present)
        fields["near"] = {str(peer): card.record().hex() for peer, card in client._near.items()}
        fields["held"] = {str(peer): piece.hex() for peer, piece in client._held.items()}
        fields["view"] = client._view.hex()
    if client.stage >= Stage.CONSISTENCY:
        fields["shared"], fields["receipt"] = sorted(client._shared), client._receipt.record().hex()
        fields["tag_key"] = client._tag_key.hex()
    if client.stage >= Stage.UNMASK:
        fields["survivors"] = sorted(client._survivors)
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def thaw(
    data: bytes,
    name: str,
    identity: Identity,
    *,
    ring_of: Callable[[SecAggConfig], Ring],
    ledger: RevealLedger,
) -> SecAggClient:
    """The client that was frozen. The ledger noted its attempt when it began, and is asked again
    before anything is revealed.

    Args:
        ring_of: the ring of a session; it must have the same name as when the client was frozen.

    Raises:
        ProtocolError: another session follows from what was kept, or the session is not of this
        member.
    """
    fields = json.loads(data)
    config = read_config(fields["config"])
    session = Session(config, ring_of(config))
    if fields["session"] != session.id.hex() or config.members.get(name) != identity.public:
        raise ProtocolError(
            "what was kept belongs to another session, or to another member; it is not taken up"
        )
    # `__init__` would draw other secrets and begin an attempt
    client = object.__new__(SecAggClient)
    client._session, client._ledger, client._identity = session, ledger, identity
    client._me, client.stage = session.numbers[name], Stage(fields["stage"])
    client._seed, client._vouch, client._relies = (
        bytes.fromhex(fields["seed"]),
        fields["vouch"],
        fields["relies"],
    )
    client._tag_seed = bytes.fromhex(fields["tag_seed"])
    client._channel, client._mask = (
        Ephemeral(bytes.fromhex(fields[key])) for key in ("channel", "mask")
    )
    if client.stage >= Stage.SHARE:
        client._card = card_of(client._me, fields["card"])
    if client.stage >= Stage.MASK:
        client._present = frozenset(fields["present"])
        client._near = {
            int(peer): card_of(int(peer), record) for peer, record in fields["near"].items()
        }
        client._held = {int(peer): bytes.fromhex(piece) for peer, piece in fields["held"].items()}
        client._view = bytes.fromhex(fields["view"])
    if client.stage >= Stage.CONSISTENCY:
        client._shared, client._receipt = (
            frozenset(fields["shared"]),
            receipt_of(client._me, fields["receipt"]),
        )
        client._tag_key = bytes.fromhex(fields["tag_key"])
    if client.stage >= Stage.UNMASK:
        client._survivors = frozenset(fields["survivors"])
    return client


def card_of(sender: int, record: str) -> KeyCard:
    """A card whose signature was checked before it was kept."""
    return KeyCard.read(sender, bytes.fromhex(record))


def receipt_of(sender: int, record: str) -> Receipt:
    """This member's own receipt."""
    raw = bytes.fromhex(record)
    return Receipt(sender, raw[0], raw[1:33], raw[33:])


def spell_config(config: SecAggConfig) -> dict[str, Any]:
    """What a session was agreed on, as JSON's types."""
    plain = {key: getattr(config, key) for key in PLAIN}
    return plain | {
        "federation": config.federation.hex(),
        "context": config.context.hex(),
        "members": {name: key.raw.hex() for name, key in config.members.items()},
        "floors": [[sorted(floor.members), floor.least] for floor in config.floors],
        "subjects": [subject.hex() for subject in config.subjects],
    }


def read_config(fields: dict[str, Any]) -> SecAggConfig:
    """What `spell_config` wrote."""
    return SecAggConfig(
        federation=bytes.fromhex(fields["federation"]),
        context=bytes.fromhex(fields["context"]),
        members={
            name: PublicIdentity(bytes.fromhex(key)) for name, key in fields["members"].items()
        },
        floors=tuple(Floor(frozenset(members), least) for members, least in fields["floors"]),
        subjects=tuple(bytes.fromhex(subject) for subject in fields["subjects"]),
        **{key: fields[key] for key in PLAIN},
    )


PLAIN = (
    "round",
    "attempt",
    "threshold",
    "min_cohort",
    "min_tokens",
    "length",
    "bits",
    "corrupt_percent",
    "drop_percent",
    "tagged",
)
