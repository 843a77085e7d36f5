"""A member for one message: opened from its home, asked once, put away again. (`client_node` is the
one that stays.)

    home, federation file → party → [what was put aside] → the message's answer → [what is put
    aside] + its key

Knows how the organs fit, where the process that answers one message may not be the one that answers
the next. Knows nothing of Flower; the key of what is put aside is the caller's to keep, in memory.
Always: consent, roster, ledger and privacy are checked for every message as `join` checks them; the
model is loaded for messages that need it, and kept for as long as this process lives.
"""

import json
import secrets
import threading
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core import log
from ...core.config import Config
from ...core.errors import AuthenticationError, QuietchoirError
from ...core.worker import Worker
from ...crypto.he.encrypted_ring import MemberService
from ...crypto.identity.keys import KEY_BYTES, bind, open_box, seal_box
from ..aggregation import state_transfer
from ..aggregation.base import ClientSecrets
from ..aggregation.registry import check_freezable, thaw
from ..client_node import ClientNode, ClientOptions, make_learner, trainer_of
from ..costs import round_cost
from ..membership import roster
from ..membership.consent import check_consent, check_upload
from ..membership.keys import member_keys
from ..model_files import resident
from ..rounds.client import Attempt, Client
from ..rounds.contribution_buffer import ContributionBuffer
from ..rounds.model_broadcast import ClientModelCache
from ..spec.policy import Policy
from ..store.checkpoint import Vector
from ..store.client_store import ClientStore
from ..store.database import DamagedError, Database
from ..store.ledger import AnsweredRounds
from ..store.member import hold, open_member
from ..training.learner import Counts, Learner, Trained
from ..training.synthetic_task import StatelessSyntheticLearner
from ..wire import messages
from ..wire.messages import GROUP, RoundId

if TYPE_CHECKING:
    from ...core.models.weights import Weights
    from ...core.training.trainer import Trainer

logger = log.get("federation.stateless_client")
ASIDE = "attempt"  # record
HELLO = "quietchoir hello on Flower's grid 1"


class Absent:
    """The learner of a party that is only asked for the stages after its work: never called."""

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`."""
        raise RuntimeError(
            f"a stage that needs no model asked for training from {flat.shape}, seed {seed}"
        )  # our bug

    def evaluate(self, flat: Vector) -> Counts:
        """As `Learner`."""
        raise RuntimeError(
            f"a stage that needs no model asked for a score of {flat.shape}"
        )  # our bug


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What belongs to one node."""

    file: Path  # the federation file
    home: Path
    data: Path | None
    rehearse: int
    config: Config


def prove(own: Own, nonce: bytes, node_id: int) -> tuple[str, bytes]:
    """This member's name, and its proof that it is the one behind Flower's node `node_id`.

    Raises:
        RosterError, ConfigError: no member of this federation, or none that takes part in it, or
        not this way.
    """
    policy = accepted(own.file, own.home)
    check_freezable(policy)
    check_consent(policy, own.config.consent)
    keys = member_keys(own.home)
    name = roster.check_member(policy, keys.identity.public.raw)
    return name, keys.identity.sign(hello_context(policy), bind(name, nonce, node_id))


def hello_context(policy: Policy) -> bytes:
    """What a proof of name is for."""
    return bind(HELLO, policy.federation)


def answer(own: Own, message: bytes, key: bytes) -> tuple[bytes, bytes]:
    """Answer one message.

    Args:
        key: of what the last call put aside; empty if there is none.

    Returns:
        the signed answer, and the key of what is put aside now; empty if nothing is.

    Raises:
        QuietchoirError: refused, as `Client.handle`; what was put aside stays as it was, under the
        same key.
    """
    policy = accepted(own.file, own.home)
    check_freezable(policy)
    keys = member_keys(own.home)
    name = roster.check_member(policy, keys.identity.public.raw)
    task = messages.decode_task(message, policy, name)
    folder = roster.folder(own.home, policy)
    with ExitStack() as opened:
        opened.enter_context(closing(hold(folder)))
        database = opened.enter_context(closing(open_member(folder, policy.federation.hex())))
        snapshot = AttemptSnapshot(database, policy.digest, name)
        kept = snapshot.take(key)
        try:
            working, buffer = task.stage in messages.STAGES, ContributionBuffer(database)
            learner, size, weights = (
                learner_of(own, policy, name)
                if working or task.stage in state_transfer.STAGES
                else (Absent(), buffer.size if task.stage == GROUP else size_of(kept), None)
            )
            if working and task.stage != messages.ADOPT:
                cost = round_cost(policy, size)
                check_upload(policy, cost.up + cost.once_up, own.config.consent)
            # started by sealed members alone
            crypto_worker = opened.enter_context(closing(Worker(MemberService)))
            node = ClientNode(
                options=ClientOptions(
                    file=own.file, data=own.data, home=own.home, rehearse=own.rehearse
                ),
                config=own.config,
                keys=keys,
                name=name,
                weights=weights,
                learner=learner,
                size=size,
                folder=folder,
                database=database,
                ledger=AnsweredRounds(database),
                secrets=ClientSecrets(ClientStore(database, size), crypto_worker),
                buffer=buffer,
                cache=ClientModelCache(database),
                leave=threading.Event(),
                on_event=lambda event: None,
            )
            client = node.client(policy)
            before = client.attempt = None if kept is None else thaw_attempt(kept, client)
            try:
                reply = client.handle(message)
            except QuietchoirError:
                # another attempt has begun, or this one has ended, and then it failed
                if client.attempt is not before:
                    snapshot.wipe()
                raise
            aside = freeze_attempt(client)
        except QuietchoirError:
            snapshot.give_back()
            raise
        if aside is not None:
            return reply, snapshot.put(aside)
        snapshot.wipe()
        return reply, b""


def accepted(file: Path, home: Path) -> Policy:
    """As `roster.accept`, without reading files again that this process has read and nobody has
    written since.

    Raises:
        RosterError, ConfigError: as that.
    """
    known = read_before.get((file, home))
    if known is not None and known[1] == stamps(file, known[0], home):
        roster.check_time(known[0], f"{file}: ")
        return known[0]
    policy = roster.accept(file, home)
    read_before[file, home] = policy, stamps(file, policy, home)
    return policy


def stamps(file: Path, policy: Policy, home: Path) -> tuple[int, ...]:
    """What changes when the federation file does, the copy that this node keeps, or what it was
    invited to.
    """
    looked_at = (file, roster.folder(home, policy) / roster.FILE, home / roster.INVITED_FILE)
    found = [path.stat() for path in looked_at if path.exists()]
    return tuple(number for one in found for number in (one.st_mtime_ns, one.st_size, one.st_ino))


read_before: dict[tuple[Path, Path], tuple[Policy, tuple[int, ...]]] = {}


def size_of(kept: bytes | None) -> int:
    """Values of the adapter, for a message that goes on with what was put aside; without that it
    will be refused.
    """
    return 0 if kept is None else int(split(kept)[0]["size"])


def learner_of(own: Own, policy: Policy, name: str) -> "tuple[Learner, int, Weights | None]":
    """The learner, the values that rounds carry of its adapter, and the model behind it.

    Raises:
        DataError, ModelNotFoundError, IntegrityError: as `client_node.make_learner` and
        `model_files.resident`.
    """
    if own.rehearse:
        return (StatelessSyntheticLearner(own.rehearse, name), policy.carried(own.rehearse), None)
    learner, size, weights = trained_by(own, policy, name)
    return learner, policy.carried(size), weights


@lru_cache(maxsize=1)
def model_of(config: Config, policy: Policy) -> "tuple[Weights, Trainer]":
    """The resident model of this process and what trains on it, the same for all its nodes."""
    weights = resident(policy, None, config.engine.model)
    return weights, trainer_of(config, policy, weights)


@lru_cache(maxsize=16)
def trained_by(own: Own, policy: Policy, name: str) -> "tuple[Learner, int, Weights | None]":
    """Kept, for so many nodes: under Ray one process answers for many, round after round."""
    weights, trainer = model_of(own.config, policy)
    options = ClientOptions(file=own.file, data=own.data, home=own.home)
    learner, size = make_learner(
        options, own.config, policy, weights, name, lambda event: None, trainer
    )
    return learner, size, weights


class AttemptSnapshot:
    """What one member keeps between two messages of one attempt.

        message → take (it is gone for everybody else) → answer → put (under another key) → the
        answer leaves

    What was put aside is taken once at most, whatever dies when; a refused message leaves it as it
    was; it opens under one key only, which is new each time and never on this disk, so that an old
    copy of the database opens nothing; a crash between `take` and `put` loses the attempt for this
    member, as a kill of `quietchoir join` does.

    Args:
        database: the member's, of one federation. whose: digest of the federation file and the
        member's name; what another one put aside does not open.

    Not covered: whoever reads this machine's memory or swap meanwhile.
    """

    def __init__(self, database: Database, *whose: bytes | str) -> None:
        self.database = database
        self.associated = bind("quietchoir attempt put aside 1", *whose)

    def take(self, key: bytes) -> bytes | None:
        """What was put aside under `key`; None if there is nothing, or nothing that this key
        opens.
        """
        try:
            kept = self.database.get(ASIDE)
            if kept is None or kept.fields["taken"]:
                return None
            # from here on no other process, and no restart, finds it
            self.database.put(ASIDE, {"taken": True}, kept.body)
            return open_box(key, kept.body, self.associated) if key else None
        except (AuthenticationError, DamagedError):
            return None

    def put(self, content: bytes) -> bytes:
        """Put `content` aside; returns the key that opens it.

        Raises:
            QuietchoirError: the disk refuses; then the answer must not leave.
        """
        key = secrets.token_bytes(KEY_BYTES)
        self.database.put(ASIDE, {"taken": False}, seal_box(key, content, self.associated))
        return key

    def give_back(self) -> None:
        """The message was refused: what was taken is there again, under the same key."""
        with suppress(DamagedError):
            if (kept := self.database.get(ASIDE)) is not None:
                self.database.put(ASIDE, {"taken": False}, kept.body)

    def wipe(self) -> None:
        """The attempt is over."""
        self.database.drop(ASIDE)


def freeze_attempt(client: Client) -> bytes | None:
    """Whatever `party` needs to go on; None between attempts.

    Raises:
        ProtocolError: a mode whose members do not stop between two messages.
    """
    attempt = client.attempt
    before = b"" if attempt is not None else client.model.freeze()
    if attempt is None and not before:
        return None
    fields: dict[str, Any] = {"size": client.size, "attempt": None}
    if attempt is not None:
        fields["attempt"] = {
            "place": asdict(attempt.round_id),
            "done": attempt.done,
            "relies_on": attempt.relies_on,
            "leaves": attempt.leaves,
        }
    header = json.dumps(fields).encode("ascii")
    body = before if attempt is None else attempt.aggregation.freeze()
    return len(header).to_bytes(4, "big") + header + body


def thaw_attempt(kept: bytes, client: Client) -> Attempt | None:
    """The attempt that `freeze_attempt` kept, for a party of the same member; None where it only
    was about to begin: then what its members say to each other before goes on.

    Raises:
        ProtocolError: of another session.
    """
    fields, body = split(kept)
    begun = fields["attempt"]
    if begun is None:
        client.model.thaw(body)
        return None
    round_id = RoundId(**begun.pop("place"))
    context = client.context(round_id)
    return Attempt(round_id, thaw(body, context), **begun)


def split(kept: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and the rest."""
    end = 4 + int.from_bytes(kept[:4], "big")
    return json.loads(kept[4:end]), kept[end:]
