"""Adapters on this node's disk: named by their content, with a signed card, one of them active.

Knows PEFT folders and cards. Knows nothing of rounds or of the engine that serves them.
Always: a folder's name is the hash of what is in it, and its card names it; an adapter is listed
only once it is whole; the active one changes in one atomic write, and the ones before it are
remembered for rollback.

    adapters/HASH/{adapter_config.json, adapter_model.safetensors, card.json}
    adapters/HASH/{calibration.json, route.safetensors}   of this node alone: never in an export
    active-adapter.json
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import paths, tables
from ...core.errors import (
    AuthenticationError,
    ConfigError,
    FederationError,
    IntegrityError,
    RequestError,
)
from ...core.prompt import AS_IT_COMES, PromptFormat
from ...crypto.identity.keys import Identity, PublicIdentity
from ..membership.log import Chain
from ..spec.policy import Policy, canonical, digests_of

if TYPE_CHECKING:
    from ...core.history.store import HistoryStore
    from ...core.models.lora.adapter import Adapter

Names = list[str]
CONTEXT = b"quietchoir adapter card v1"
CARD = "card.json"
PERSONAL = "personal"  # the scope of an adapter that holds what one owner's own examples taught it
PUBLIC_MODE, PRIVATE_MODE = 0o644, 0o600
LATER: dict[str, object] = {
    "epsilon": None,
    "delta": None,
    "scope": "",
    "serial": 0,
    "variants": (),
    "prompt": dataclasses.asdict(AS_IT_COMES),
}  # came later, say nothing
SHOWN = 12  # characters of a name in tables; any unambiguous prefix is understood
REMEMBERED = 20  # activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is known of an adapter. Signed by the coordinator that summed it; in sealed mode by
    the member.
    """

    adapter: str  # hash of its content
    federation: str  # hex
    name: str  # of the federation
    run: str
    rounds: int
    model: str  # digest of the frozen model
    parent: str  # adapter that training started from; empty for none
    protection: str
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    # spent by the run so far, at `delta`; None: no differential privacy
    epsilon: float | None = None
    delta: float | None = None
    # "personal": one node's own, on top of the shared `parent` (see federation/personalization);
    # else shared
    scope: str = ""
    serial: int = 0  # of a personal one: the node's first, second, … for this federation
    variants: tuple[str, ...] = ()  # digests of the model's other files: it fits those too
    prompt: PromptFormat = AS_IT_COMES  # how it was trained to be asked
    signer: str = ""  # Ed25519, hex; empty: nobody vouches for it
    signature: str = ""

    def body(self) -> bytes:
        """What is signed. Fields that came later are left out where they say nothing, so that
        older signatures stay good.
        """
        return canonical({key: value for key, value in self.fields().items() if key != "signature"})

    def fields(self) -> dict[str, object]:
        """The card's fields, without those that came later and say nothing."""
        return {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if key not in LATER or value != LATER[key]
        }

    @property
    def models(self) -> tuple[str, ...]:
        """Digests of all files of the one model that the adapter belongs to."""
        return self.model, *self.variants

    @property
    def personal(self) -> bool:
        """Does the adapter hold what one owner's own examples taught it?"""
        return self.scope == PERSONAL

    @property
    def mode(self) -> int:
        """Of its files."""
        return PRIVATE_MODE if self.personal else PUBLIC_MODE

    def signed(self, identity: Identity) -> "Card":
        """The same, with the signer's key and signature."""
        named = dataclasses.replace(self, signer=identity.public.raw.hex())
        return dataclasses.replace(named, signature=identity.sign(CONTEXT, named.body()).hex())

    def text(self) -> str:
        """One line of JSON."""
        return canonical(self.fields()).decode("ascii")

    @staticmethod
    def unsigned(adapter: str, name: str, model: str) -> "Card":
        """The card of an adapter that nobody vouches for."""
        return Card(
            adapter=adapter,
            federation="",
            name=name,
            run="",
            rounds=0,
            model=model,
            parent="",
            protection="",
        )

    @staticmethod
    def parse(text: str, where: str, *, unsigned: bool = False) -> "Card":
        """Read a card and check its signature.

        Args:
            unsigned: a card that names no signer, and claims to be of no federation, will do.

        Raises:
            FederationError: malformed, or not signed by the key it names.
        """
        try:
            given = json.loads(text)
            card = tables.fill(
                Card, {key: value for key, value in given.items() if value is not None}, where
            )
            if unsigned and card == Card.unsigned(card.adapter, card.name, card.model):
                return card
            PublicIdentity(bytes.fromhex(card.signer)).verify(
                CONTEXT, card.body(), bytes.fromhex(card.signature)
            )
        except (
            ValueError,
            AttributeError,
            RecursionError,
            ConfigError,
            AuthenticationError,
        ) as error:
            raise FederationError(f"{where}not an adapter's signed card; refused") from error
        return card


def content_hash(adapter: "Adapter") -> str:
    """64 hex digits that differ between any two different adapters; independent of file formats.

    Over the model's digest, the shape and every tensor's name, shape and float32 bytes.
    """
    import torch

    digest = hashlib.sha256(b"quietchoir adapter v1")
    digest.update(canonical({"model": adapter.base_digest, **dataclasses.asdict(adapter.shape)}))
    for name in sorted(adapter.tensors):
        tensor = adapter.tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(
            canonical({"name": name, "shape": list(tensor.shape)}) + tensor.numpy().tobytes()
        )
    return digest.hexdigest()


def make_card(
    policy: Policy, adapter: str, evaluation: dict[str, object], identity: Identity
) -> Card:
    """The signed card of a run's result."""

    def number(name: str) -> float | None:
        value = evaluation.get(name)
        return value if isinstance(value, float) else None

    rounds = evaluation.get("rounds")
    return Card(
        adapter=adapter,
        federation=policy.federation.hex(),
        name=policy.name,
        run=str(evaluation.get("run", "")),
        rounds=rounds if isinstance(rounds, int) else 0,
        model=policy.model.digest,
        parent=str(evaluation.get("parent", "")),
        protection=policy.protection.mode,
        accuracy_before=number("before"),
        accuracy_after=number("after"),
        epsilon=number("epsilon"),
        delta=number("delta"),
        variants=digests_of(policy.model)[1:],
        prompt=policy.prompt,
    ).signed(identity)


def check_signer(card: Card, chain: Chain, where: str) -> None:
    """Require that whoever signed a card may speak for the federation that the card names.

    That is the federation's coordinator, of now or earlier. In sealed mode no coordinator has the
    adapter, and a personal one is its node's own: a member, of now or earlier, vouches then.
    Hazard: a key that was stolen and rotated away still vouches.

    Raises:
        FederationError: another federation's card, or a stranger's.
    """
    policy = chain.policy
    if (card.federation, card.name) != (policy.federation.hex(), policy.name):
        raise FederationError(
            f"{where}the card of federation {card.federation[:SHOWN]}…, not of "
            f"{policy.name}; refused"
        )
    allowed = chain.ever("coordinator", "key")
    if card.personal or (
        card.protection == "sealed" and "sealed" in chain.ever("protection", "mode")
    ):
        allowed |= chain.member_keys
    if card.signer not in allowed:
        raise FederationError(
            f"{where}its card was signed by key {card.signer[:16]}…, which has no part in "
            f"{policy.name}; refused. Without its "
            f"{CARD} the adapter can be kept as unsigned"
        )
    if policy.model.digest != card.model or not chain.model_digests.issuperset(card.variants):
        raise FederationError(
            f"{where}its card names a model that {policy.name} does not have; refused"
        )


class Registry:
    """The adapters of the node that lives in `home`."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or paths.home()
        self.folder = self.home / "adapters"
        self.pointer = self.home / "active-adapter.json"

    def put(self, adapter: "Adapter", card: Card) -> str:
        """Keep an adapter; return its name.

        Keeping the same one twice changes nothing, except that a card that nobody signed gives way:
        to one that says whose it is and how it was trained to be asked, or to what its owner calls
        it now. Where it is asked otherwise from then on, what was measured of it is gone.

        Raises:
            IntegrityError: the card is of another adapter.
        """
        name = content_hash(adapter)
        if card.adapter != name:
            raise IntegrityError(
                f"the card is of adapter {card.adapter[:SHOWN]}, the content is "
                f"{name[:SHOWN]}; not kept"
            )
        from ...core.assistant.calibration import FILE as CALIBRATION
        from ...core.models.lora.adapter import CONFIG_FILE, TENSOR_FILE

        if (kept := self.folder / name).exists():
            if not (before := self.card(name)).signer:
                if before.prompt != card.prompt:
                    (kept / CALIBRATION).unlink(missing_ok=True)
                for file in (CONFIG_FILE, TENSOR_FILE):
                    (kept / file).chmod(card.mode)
                paths.write_atomically(kept / CARD, card.text().encode("ascii"), mode=card.mode)
            return name
        paths.private_folder(self.folder)
        scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=".new-"))
        try:
            adapter.save(scratch, mode=card.mode)
            paths.write_atomically(scratch / CARD, card.text().encode("ascii"), mode=card.mode)
            scratch.rename(self.folder / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        paths.sync_folder(self.folder)
        return name

    def remove(self, prefix: str) -> str:
        """Delete one adapter; return its name.

        Raises:
            RequestError: it is the active one, or a personal one stands on it.

        Hazard: the file system forgets it, the disk's blocks and copies of them may not; a running
        node that has used it still holds it in memory.
        """
        name = self.find(prefix)
        if name == self.active():
            raise RequestError(
                f"adapter {name[:SHOWN]} is active and is kept; activate another "
                f"one, or `none`, first"
            )
        if above := [card.adapter for card in self.personal() if card.parent == name]:
            raise RequestError(
                f"{name[:SHOWN]} is kept: personal adapter {above[0][:SHOWN]} stands on it; remove "
                f"that one first"
            )
        if name in self.history():
            self.remember([each for each in self.history() if each != name])
        gone = self.folder / f".old-{name}"
        (self.folder / name).rename(gone)  # at once or not at all
        for left in (gone, *self.folder.glob(".old-*")):  # also what a killed removal left
            shutil.rmtree(left, ignore_errors=True)
        return name

    def remove_personal(self, names: Collection[str]) -> Names:
        """Delete those of these that are personal, and return them; where one is active, the shared
        one under it answers from now on.

        Hazard: as `remove`.
        """
        gone = [card for card in self.personal() if card.adapter in names]
        for card in gone:
            if self.active() == card.adapter:
                self.activate(card.parent)
            self.remove(card.adapter)
        return [card.adapter for card in gone]

    def renew_routes(self, store: "HistoryStore") -> None:
        """Make what adapters are for anew, of the examples that are left, where one that an adapter
        had learned was forgotten since; a personal one has none of its own.

        Raises:
            QuietchoirError: the disk refused, or the embedding model is damaged; the route is gone.
        """
        from ...core.assistant.router import FILE, note_route, route_example
        from ...core.training.household.talk import general_requests

        for name, at in store.forgotten_since().items():
            route = self.folder / name / FILE
            if route.exists() and route.stat().st_mtime <= at:
                prompt = self.card(name).prompt
                learned = [route_example(one.as_said, prompt) for one in store.learned_by(name)]
                note_route(route.parent, learned, general_requests())

    def list(self) -> Names:
        """Names of all adapters, in alphabetical order."""
        if not self.folder.exists():
            return []
        return sorted(
            entry.name
            for entry in self.folder.iterdir()
            if len(entry.name) == 64 and (entry / CARD).exists()
        )

    def find(self, prefix: str) -> str:
        """The one adapter whose name begins with `prefix`, or else the one whose card calls it
        that.

        Raises:
            RequestError: none, or several.
        """
        matches = [name for name in self.list() if prefix and name.startswith(prefix)]
        if len(matches) == 1:
            return matches[0]
        titles = {name: self.title(name) for name in self.list()}
        if not matches:
            matches = [name for name, title in titles.items() if prefix and title == prefix]
        if len(matches) != 1:
            here = "; ".join(f"{name[:SHOWN]} {title}".strip() for name, title in titles.items())
            raise RequestError(
                f"{len(matches)} adapters begin with {prefix!r} or are called so, expected one; "
                f"here: "
                f"{here or 'none yet: join a federation first'}"
            )
        return matches[0]

    def title(self, name: str) -> str:
        """What the card of one adapter calls it; "" if the card is damaged, which `card` tells."""
        try:
            return self.card(name).name
        except FederationError:
            return ""

    def card(self, prefix: str) -> Card:
        """The checked card of one adapter.

        Raises:
            RequestError, FederationError: as `find` and `Card.parse`; or the card is of another
            adapter.
        """
        name = self.find(prefix)
        path = self.folder / name / CARD
        card = Card.parse(path.read_text("ascii", "replace"), f"{path}: ", unsigned=True)
        if card.adapter != name:
            raise FederationError(
                f"{path}: the card of adapter {card.adapter[:SHOWN]}; remove the "
                f"folder and take it again"
            )
        return card

    def personal(self) -> tuple[Card, ...]:
        """Cards of all personal adapters; damaged ones are passed over, `show` tells what is
        wrong with them.
        """
        found = []
        for name in self.list():
            with contextlib.suppress(FederationError):
                found.append(self.card(name))
        return tuple(card for card in found if card.personal)

    def newest(self, run: str) -> str:
        """The adapter of the most rounds of one run; empty if none is here."""
        cards = [card for card in map(self.card, self.list()) if run and card.run == run]
        return max(cards, key=lambda card: card.rounds).adapter if cards else ""

    def path(self, prefix: str) -> Path:
        """The PEFT folder of one adapter."""
        return self.folder / self.find(prefix)

    def load(self, prefix: str) -> "Adapter":
        """Read one adapter and check it against its name.

        Raises:
            RequestError: no such adapter.
            IntegrityError: the files are not what the name says.
        """
        from ...core.models.lora.adapter import Adapter

        name = self.find(prefix)
        adapter = Adapter.load(self.folder / name)
        if content_hash(adapter) != name:
            raise IntegrityError(
                f"{self.folder / name}: changed on disk; remove the folder and "
                f"join the federation again"
            )
        return adapter

    def load_for(self, prefix: str, digest: str) -> "Adapter":
        """The same, as one of the model with this digest, if its card names that among its model's
        files.

        Raises:
            As `load` and `card`.
        """
        adapter, card = self.load(prefix), self.card(prefix)
        fits = {adapter.base_digest, digest} <= set(card.models)
        return dataclasses.replace(adapter, base_digest=digest) if fits else adapter

    def active(self) -> str | None:
        """Name of the adapter that is to be served; None for the bare model."""
        history = self.history()
        return (history[-1] or None) if history else None

    def history(self) -> Names:
        """Activations, oldest first; an empty text stands for the bare model.

        Raises:
            FederationError: the file is damaged.
        """
        if not self.pointer.exists():
            return []
        try:
            history = json.loads(self.pointer.read_text("ascii"))["history"]
            return [str(name) for name in history]
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise FederationError(
                f"{self.pointer}: damaged; remove it, then activate an adapter again"
            ) from error

    def activate(self, prefix: str) -> str:
        """Make one adapter the active one; return its name. An empty prefix: the bare model."""
        name = self.find(prefix) if prefix else ""
        self.remember([*self.history(), name])
        return name

    def rollback(self) -> str | None:
        """Go back to what was active before.

        Raises:
            RequestError: nothing was.
        """
        history = self.history()
        if not history:
            raise RequestError("no adapter was ever active here; nothing to roll back")
        self.remember(history[:-1])
        return self.active()

    def remember(self, history: Names) -> None:
        """Write the pointer."""
        content = json.dumps({"history": history[-REMEMBERED:]}).encode("ascii")
        paths.write_atomically(self.pointer, content)
