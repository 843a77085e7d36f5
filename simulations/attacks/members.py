"""Attacks by members: who holds a key of the roster, alone or several times over.

Knows what a member can send, keep and read. Knows nothing of the network.
Always: as `coordinators`: what an arm finds is measured, and the unprotected arm is the product
without one protection.
"""

import dataclasses
import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import QuietchoirError
from ...crypto.he.encrypted_ring import open_sum
from ...crypto.identity.keys import Identity
from ...crypto.secagg import server
from ...federation.adapters import registry
from ...federation.adapters.registry import make_card
from ...federation.aggregation import encrypted
from ...federation.aggregation.secagg import MaskedClient
from ...federation.aggregation.update import noise_of
from ...federation.membership import invitation, log
from ...federation.membership.keys import load_or_create
from ...federation.membership.log import ENROLL, Chain, create_chain, sign
from ...federation.monitor import run_status
from ...federation.monitor.run_status import RunStatus
from ...federation.rounds.client import Client
from ...federation.spec.policy import PrivacyTable
from ...federation.store.client_store import ClientStore
from ...federation.wire import messages
from ..inprocess import InProcessLink
from .catalogue import Attack, Result
from .scene import NAMES, RANGE, AttackScene, Stub, alike, federation, party_of, refused, without

LIAR = "dan"


# What a reader of the sum knows already


def own_noise(*stubs: Stub) -> Result:
    """One of three takes its own contribution away, and measures how much noise is left to hide
    the others.
    """
    tables = {
        "privacy": PrivacyTable(mechanism="discrete-gaussian", noise_multiplier=1.0, clip=1.0)
    }
    with without(*stubs):
        scene = federation(3, bits=16, tables=tables)
        noise = noise_of(scene.policy, 2000)
        assert noise is not None
        nothing, left = np.zeros(2000, np.float32), np.zeros(2000)
        for _ in range(2):  # of the two others
            left += noise.encode(nothing, bytes(32)).astype(np.float64) - 2**15 + 1
    part = float(left.std() / (noise.multiplier * noise.sensitivity))
    return Result(part < 0.92, f"{part:.2f} of the noise that the account counts with is left")


# One of many that does not keep to the rules


def dragged(*stubs: Stub) -> Result:
    """A member sends the largest words that go through the masks, whatever it learned."""
    scene = federation(5)
    honest = scene.clients[LIAR].go_on

    def shouting(task: Any) -> bytes:
        attempt = scene.clients[LIAR].attempt
        half = None if attempt is None else attempt.aggregation
        if task.stage == "mask" and isinstance(half, MaskedClient) and half.values is not None:
            half.values[: scene.size] = (1 << scene.policy.protection.bits) - 2
        return honest(task)

    scene.clients[LIAR].go_on = shouting  # type: ignore[method-assign]
    with without(*stubs):
        run = scene.run()
        words = refused(run.train_round)
    return moved(run.state.server.flat, words)


def averaged() -> Result:
    """The same with a mean of floats, as it is usual: a thousand times what was learned."""
    scene = federation(5)
    made = [
        voice.train(np.zeros(scene.size, np.float32), 1).flat for voice in scene.voices.values()
    ]
    return moved(np.mean([*made[1:], 1000.0 * made[0]], axis=0))


def moved(flat: np.ndarray, words: str = "") -> Result:
    """Did a round move any coordinate farther than the file allows?"""
    farthest = float(np.abs(flat).max())
    return Result(
        farthest > RANGE,
        f"the adapter moved by up to {farthest:.3f} in a round, {RANGE} is agreed; {words}",
    )


class WrongShares(InProcessLink):
    """One member's answers to the last stage hold shares that are not those it was given."""

    def __init__(self, scene: AttackScene, liars: tuple[str, ...] = (LIAR,)) -> None:
        super().__init__({name: one.handle for name, one in scene.clients.items()})
        for name in liars:
            spoil(scene.clients[name])


def spoil(client: Client) -> None:
    """This member reveals something else than the shares of the others."""
    honest = client.go_on

    def lying(task: Any) -> bytes:
        half = client.attempt.aggregation if client.attempt is not None else None
        if task.stage == "unmask" and isinstance(half, MaskedClient) and half.client is not None:
            held = half.client._held
            half.client._held = {peer: bytes(len(piece)) for peer, piece in held.items()}
        return honest(task)

    client.go_on = lying  # type: ignore[method-assign]


def wrong_shares(*stubs: Stub) -> Result:
    """In every attempt one member reveals wrong shares, under its own good signature."""
    scene = federation(5, recipe={"attempts": 3})
    with without(*stubs):
        run = scene.run(link=WrongShares(scene))
        words = refused(lambda: run.learn(2))
    return Result(
        run.state.round == 0,
        f"{run.state.round} of 2 rounds done{'; ' if words else ''}{words[:160]}",
    )


def first_shares(
    _: server.SecAggServer, holders: list[int], need: int
) -> Iterator[tuple[int, ...]]:
    """`SecAggServer._choices` that believes whoever answers first."""
    yield tuple(sorted(at + 1 for at in holders)[:need])


# Who is a member, and who speaks for all


def two_of_one(*stubs: Stub) -> Result:
    """Whoever was invited once brings two sets of keys, on two machines, and the owner's list is
    put back in between.
    """
    scene = federation(3)
    whole = create_chain(scene.policy, scene.owner)
    with tempfile.TemporaryDirectory() as name, without(*stubs):
        folder = Path(name)
        token, words = invitation.invite(whole.policy, folder, "zoe", 7), ""
        kept = (folder / invitation.OPEN_FILE).read_bytes()
        for home in ("zoe", "zed"):
            _, answer = invitation.accept(token, load_or_create(folder / home).card, folder / home)
            (folder / invitation.OPEN_FILE).write_bytes(kept)
            title, card, key, _ = invitation.check(answer, whole.policy, folder)
            member = {
                "name": title if home == "zoe" else home,
                "key": card.key,
                "transport": card.transport,
            }
            try:
                whole = whole.extended(
                    ENROLL, {"member": member, "invitation": key}, scene.owner, 1
                )
            except QuietchoirError as error:
                words = str(error)
    new = len(whole.policy.members) - len(scene.keys)
    return Result(new > 1, f"{new} members by one invitation{'; ' if words else ''}{words[:160]}")


def any_invitation(history: Any, change: Any) -> None:
    """An enrolment that does not look whether its invitation was used."""
    log._admit(history, change["member"])
    history.table["members"] = [*history.table["members"], change["member"]]


def another_founder(*stubs: Stub) -> Result:
    """A member founds a federation of its own under the first one's number, with its own key as
    coordinator.
    """
    scene, thief = federation(3), Identity.generate()
    table = {
        key: one for key, one in scene.policy.table().items() if key not in ("version", "head")
    }
    table |= {"founder": scene.policy.owner, "owner": thief.public.raw.hex()}
    table["coordinator"] = {**table["coordinator"], "key": Identity.generate().public.raw.hex()}
    made: list[Chain] = []
    with without(*stubs):
        words = refused(lambda: made.append(Chain((sign(1, "found", 0, "", table, thief),))))
    same = bool(made) and made[0].policy.federation == scene.policy.federation
    return Result(
        same,
        f"the number of somebody else's federation: "
        f"{'taken' if same else 'not taken'}; {words[:160]}",
    )


def unasked_founder(history: Any, change: Any) -> None:
    """A first entry that names any founder."""
    history.table = json.loads(json.dumps(change))


def card_of_a_member(*stubs: Stub) -> Result:
    """A member of a masked federation hands over an adapter of its own under a card that it
    signed.
    """
    scene = federation(3)
    card = make_card(
        scene.policy,
        "ab" * 32,
        {"rounds": 3, "run": "0a" * 16},
        scene.keys[LIAR if LIAR in scene.keys else "ben"],
    )
    with without(*stubs):
        words = refused(
            lambda: registry.check_signer(card, create_chain(scene.policy, scene.owner), "")
        )
    return Result(
        not words,
        f"the card "
        f"{'counts' if not words else 'does not count'}{'; ' if words else ''}{words[:160]}",
    )


# What is seen beside the sums


def named_on_the_page(*stubs: Stub) -> Result:
    """Rounds that fail for several reasons, and the names of members in what the page then tells
    its readers.
    """
    scene = federation(4, recipe={"attempts": 1})
    shown = RunStatus(scene.policy)
    with without(*stubs):
        run = scene.run(link=WrongShares(scene, NAMES[1:3]), on_event=shown.note)
        words = refused(lambda: run.insist(run.train_round))
        text = json.dumps(shown.snapshot())
    names = [
        name
        for name in scene.keys
        if f" {name} " in text or f'"{name}"' in text or f" {name}," in text
    ]
    return Result(bool(names), f"{len(names)} names of members; {words[:160]}")


class Measuring(InProcessLink):
    """Notes how long each member's longest answer is."""

    def __init__(self, scene: AttackScene) -> None:
        super().__init__({name: one.handle for name, one in scene.clients.items()})
        self.longest = dict[str, int]()

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """As `Link`."""
        for name, answer in super().ask(messages, timeout_s):
            self.longest[name] = max(len(answer), self.longest.get(name, 0))
            yield name, answer


def length_of_an_upload(*stubs: Stub, mode: str = "masked") -> Result:
    """Two trainings that differ in what was learned, and the bytes that leave for them."""
    sizes = []
    for part in (0.0, 1.0):
        scene = federation(3, mode=mode)
        scene.voices["ann"].secret = scene.voices["ann"].secret * np.float32(part)
        link = Measuring(scene)
        run = scene.run(link=link)
        with without(*stubs):
            refused(run.train_round)
        sizes.append(link.longest["ann"])
    return Result(sizes[0] != sizes[1], f"{sizes[0]} and {sizes[1]} bytes")


def deflated(reply: Any, policy: Any, identity: Identity) -> bytes:
    """`messages.encode_reply` that sends as little as it can."""
    small = zlib.compress(reply.payload) if reply.stage == "send" else reply.payload
    return ENCODE(dataclasses.replace(reply, payload=small), policy, identity)


ENCODE = messages.encode_reply


def read_after_leaving(*stubs: Stub) -> Result:
    """A member is let go; it keeps its key, and listens to what the coordinator carries under
    the file's next version.
    """
    scene, caught = federation(5, mode="sealed", bits=8, threshold=3), list[Any]()
    scene.run().train_round()
    client_secrets = scene.clients[LIAR].secrets
    assert client_secrets is not None
    old = client_secrets.store.seed(scene.policy.digest) or b""
    later = dataclasses.replace(
        scene.policy,
        version=2,
        members=tuple(one for one in scene.policy.members if one.name != LIAR),
    )
    next_ = dataclasses.replace(
        scene, policy=later, keys={name: key for name, key in scene.keys.items() if name != LIAR}
    )
    honest = encrypted.WitnessServer.show

    def listening(self: encrypted.WitnessServer) -> Any:
        step = honest(self)
        caught.append((self.seal, self.sealed_sum))
        return step

    with without((encrypted.WitnessServer, "show", listening), *stubs):
        next_.clients = {
            name: party_of(next_, name, key, store=client_store_of(scene, name))
            for name, key in next_.keys.items()
        }
        run = next_.run()
        run.train_round()
        seal, sealed_sum = caught[-1]
        got = list[Any]()
        words = refused(
            lambda: got.append(open_sum(seal, old, sealed_sum, client_secrets.crypto_worker))
        )
    truth = np.sum([scene.voices[name].secret for name in next_.keys], axis=0)
    close = alike(got[0].astype(np.float64), truth) if got else 0.0
    return Result(
        close > 0.9, f"correlation {close:.3f} with the sum{'; ' if words else ''}{words[:160]}"
    )


def client_store_of(scene: AttackScene, name: str) -> ClientStore:
    """What a member keeps, in sealed mode."""
    client_secrets = scene.clients[name].secrets
    assert client_secrets is not None
    return client_secrets.store


def of_any_epoch(self: ClientStore, epoch: bytes) -> bytes | None:
    """`ClientStore.seed` of a key that serves every version of the file."""
    del epoch
    return self._key[1] if self._key is not None else None


ATTACKS = (
    Attack(
        name="noise that its reader knows",
        who="a fellow member",
        mode="masked, noise",
        promise="epsilon holds against a member of the sum, which knows its own noise",
        unprotected=lambda: own_noise((PrivacyTable, "honest", lambda self, least: least)),
        protected=own_noise,
    ),
    Attack(
        name="as loud as one can be",
        who="one member",
        mode="masked",
        promise="no coordinate of a mean is larger than the agreed range",
        unprotected=averaged,
        protected=dragged,
    ),
    Attack(
        name="wrong shares in every attempt",
        who="one member",
        mode="masked",
        promise="wrong shares do no harm as long as enough right ones come",
        unprotected=lambda: wrong_shares((server.SecAggServer, "_choices", first_shares)),
        protected=wrong_shares,
    ),
    Attack(
        name="two members by one invitation",
        who="one person, as several members",
        mode="membership",
        promise="an invitation is good for one name and one card, once",
        unprotected=lambda: two_of_one((log, "STEPS", {**log.STEPS, ENROLL: any_invitation})),
        protected=two_of_one,
    ),
    Attack(
        name="a federation under another's number",
        who="one member",
        mode="membership",
        promise="the federation's number follows from its founder's key, which signed the first "
        "entry",
        unprotected=lambda: another_founder(
            (log, "STEPS", {**log.STEPS, "found": unasked_founder})
        ),
        protected=another_founder,
    ),
    Attack(
        name="an adapter under a member's card",
        who="one member",
        mode="masked",
        promise="in masked mode the coordinator alone vouches for an adapter",
        unprotected=lambda: card_of_a_member((registry, "check_signer", lambda *given: None)),
        protected=card_of_a_member,
    ),
    Attack(
        name="names on the page",
        who="a reader of the coordinator's page",
        mode="masked",
        promise="the page shows nothing of one member",
        unprotected=lambda: named_on_the_page((run_status, "unnamed", lambda text, names: text)),
        protected=named_on_the_page,
    ),
    Attack(
        name="the length of an upload",
        who="somebody on the network",
        mode="masked",
        promise="what is sent has one length, whatever was learned",
        unprotected=lambda: length_of_an_upload((messages, "encode_reply", deflated), mode="plain"),
        protected=length_of_an_upload,
    ),
    Attack(
        name="reading on after leaving",
        who="one member that was let go",
        mode="sealed",
        promise="the key is new for every version of the federation file",
        unprotected=lambda: read_after_leaving((ClientStore, "seed", of_any_epoch)),
        protected=read_after_leaving,
    ),
)
