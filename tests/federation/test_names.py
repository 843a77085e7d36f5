"""Every name that is derived, forged where it enters: refused, with the disk as it was.

A row of `NAMES` is a kind of name, what it is derived from and the place that checks it. The README
of the federation holds the same table; a name that is added to one and not to the other turns this
red.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quietchoir.federation
from quietchoir.core.errors import (
    AuthenticationError,
    ConfigError,
    FederationError,
    IntegrityError,
    ManifestError,
    MessageError,
    ModelNotFoundError,
    ProtocolError,
    QuietchoirError,
    RosterError,
)
from quietchoir.core.models.lora.adapter import Adapter, assemble
from quietchoir.core.models.lora.layout import Layout
from quietchoir.crypto.identity.keys import Identity
from quietchoir.crypto.privacy.accountant import Account, Budget, PrivacyStep
from quietchoir.federation import client_node, model_files
from quietchoir.federation.adapters.registry import (
    CARD,
    Card,
    Registry,
    check_signer,
    content_hash,
    make_card,
)
from quietchoir.federation.aggregation import parts, state_transfer
from quietchoir.federation.aggregation.delta_chain import DeltaChain, name_of
from quietchoir.federation.aggregation.delta_chain import Step as Stepped
from quietchoir.federation.aggregation.hello import Hello
from quietchoir.federation.aggregation.state_transfer import StateTransfer
from quietchoir.federation.membership import invitation, roster
from quietchoir.federation.membership.founding import FILE
from quietchoir.federation.membership.keys import PublicCard, load_or_create
from quietchoir.federation.membership.log import ENROLL, REVOKE, Chain, Entry, create_chain, sign
from quietchoir.federation.rounds.model_broadcast import ClientModelCache
from quietchoir.federation.spec.policy import ModelTable
from quietchoir.federation.store.checkpoint import ServerState, Store
from quietchoir.federation.store.client_store import ClientStore
from quietchoir.federation.store.member import open_member
from quietchoir.federation.store.privacy_book import PrivacyBook
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import Reply, RoundId, Task
from quietchoir.plugins import host, manifest
from quietchoir.private_search import host as library_host
from quietchoir.private_search.budget import QueryBudget as Questions
from quietchoir.private_search.messages import (
    RequestKind,
    SearchRequest,
    decode_manifest,
    decode_request,
    key_id,
)
from quietchoir.tests.fakes.federation import DIGEST, House, house
from quietchoir.tests.fakes.search import fake_index
from quietchoir.tests.federation.adapters.test_registry import SHAPE, TINY

SIZE, RUN = 12, "0a" * 16
ROUND_ID = RoundId(RUN, 1, 1)
Attempt = tuple[Callable[[], object], type[QuietchoirError], str]


@dataclasses.dataclass
class World:
    """A federation, a thief that has no part in it, and a folder."""

    home: House
    thief: Identity
    folder: Path

    @property
    def chain(self) -> Chain:
        return create_chain(self.home.policy, self.home.owner)

    def adapter(self, value: float) -> Adapter:
        return assemble(SHAPE, TINY, DIGEST, torch.full((Layout(SHAPE, TINY).size,), value))

    def card(self, of: Adapter, signer: Identity | None = None, **changes: Any) -> Card:
        made = make_card(
            self.home.policy, content_hash(of), {"rounds": 3, "run": RUN}, self.home.coordinator
        )
        return dataclasses.replace(made, signer="", signature="", **changes).signed(
            signer or self.home.coordinator
        )


def federation_number(world: World) -> Iterator[Attempt]:
    table = {
        key: value
        for key, value in world.home.policy.table().items()
        if key not in ("version", "head")
    }
    table |= {"founder": world.home.policy.owner, "owner": world.thief.public.raw.hex()}
    yield (
        lambda: Chain((sign(1, "found", 0, "", table, world.thief),)),
        RosterError,
        ("not that federation's file"),
    )
    other = dataclasses.replace(world.home.policy, nonce="02" * 16)
    task = Task(round_id=ROUND_ID, stage=messages.TRAIN, recipient="ann", payload=b"")
    message = messages.encode_task(task, other, world.home.coordinator)
    yield (
        lambda: messages.decode_task(message, world.home.policy, "ann"),
        MessageError,
        "found federation",
    )


def entry_hash(world: World) -> Iterator[Attempt]:
    later = world.chain.extended(REVOKE, {"name": "ann"}, world.home.owner, 1)
    stray = sign(2, REVOKE, 1, "00" * 32, {"name": "ann"}, world.home.owner)
    yield lambda: Chain((*world.chain.entries, stray)), RosterError, "does not follow"
    text = roster.dump(later).replace(later.policy.head, "00" * 32, 1)
    yield lambda: roster.read_text(text.encode(), ""), RosterError, "does not fit the content"
    other = Entry(later.entries[1].text.replace('"ann"', '"ben"'), later.entries[1].signature)
    yield lambda: Chain((*world.chain.entries, other)), RosterError, "signature of entry 2"


def invitation_key(world: World) -> Iterator[Attempt]:
    token = invitation.invite(world.chain.policy, world.folder, "zoe", 7)
    _, answer = invitation.accept(
        token, load_or_create(world.folder / "zoe").card, world.folder / "zoe"
    )
    said = dataclasses.asdict(
        invitation.unpack(invitation.ANSWER, answer, invitation.Answer, "answer")
    )
    for change in ({"card": load_or_create(world.folder / "eve").card.text}, {"rank": 3}):
        text = invitation.pack(invitation.ANSWER, said | change)
        yield (
            partial(invitation.check, text, world.chain.policy, world.folder),
            RosterError,
            "changed on its way",
        )
    text = invitation.pack(invitation.ANSWER, said | {"invitation": world.thief.public.raw.hex()})
    yield (
        lambda: invitation.check(text, world.chain.policy, world.folder),
        RosterError,
        ("no open invitation"),
    )


def member_name(world: World) -> Iterator[Attempt]:
    policy, keys = world.home.policy, world.home.members
    asked = messages.encode_task(
        Task(round_id=ROUND_ID, stage="x", recipient="ann", payload=b""),
        policy,
        world.home.coordinator,
    )
    for signer in (keys["ben"], world.thief):
        reply = Reply(
            round_id=ROUND_ID,
            stage="x",
            sender="ann",
            task=messages.fingerprint(asked),
            payload=b"",
        )
        data = messages.encode_reply(reply, policy, signer)
        yield partial(messages.decode_reply, data, policy, asked), MessageError, "not signed by ann"
    hello = Hello(sender="ben", public=bytes(32)).signed(policy, ROUND_ID, world.thief)
    yield lambda: Hello.decode(hello, policy, ROUND_ID, "ben"), MessageError, "not signed by ben"
    yield (
        lambda: roster.check_member(policy, world.thief.public.raw),
        RosterError,
        ("not in the roster"),
    )
    twin = {"name": "ann", "key": world.thief.public.raw.hex()}
    yield (
        lambda: world.chain.extended(ENROLL, {"member": twin}, world.home.owner, 1),
        RosterError,
        "enrolled already",
    )


def coordinator_key(world: World) -> Iterator[Attempt]:
    task = Task(round_id=ROUND_ID, stage=messages.TRAIN, recipient="ann", payload=b"")
    for signer in (world.thief, world.home.members["ben"], world.home.owner):
        message = messages.encode_task(task, world.home.policy, signer)
        yield (
            partial(messages.decode_task, message, world.home.policy, "ann"),
            MessageError,
            "not signed by",
        )


def task_name(world: World) -> Iterator[Attempt]:
    policy = world.home.policy
    one, two = (
        messages.encode_task(
            Task(round_id=ROUND_ID, stage="x", recipient="ann", payload=payload),
            policy,
            world.home.coordinator,
        )
        for payload in (b"1", b"2")
    )
    reply = Reply(
        round_id=ROUND_ID, stage="x", sender="ann", task=messages.fingerprint(one), payload=b""
    )
    data = messages.encode_reply(reply, policy, world.home.members["ann"])
    yield lambda: messages.decode_reply(data, policy, two), MessageError, "another task"


def run_name(world: World) -> Iterator[Attempt]:
    for run in ("../../../../../../../../tmp/aaaaa"[:32], "0A" * 16, "0a" * 15, "0" * 31 + "/"):
        task = Task(round_id=RoundId(run, 1, 1), stage=messages.TRAIN, recipient="ann", payload=b"")
        message = messages.encode_task(task, world.home.policy, world.home.coordinator)
        yield (
            partial(messages.decode_task, message, world.home.policy, "ann"),
            MessageError,
            "run are out of range",
        )
    other = Store(world.folder / "state")
    state = other.load(world.home.policy, SIZE)
    other.save(state)
    other.close()

    def taken_up() -> None:
        store = Store(world.folder / "state")
        try:
            store.load(house().policy, SIZE)
        finally:
            store.close()

    yield taken_up, FederationError, "a run of another federation"


def state_name(world: World) -> Iterator[Attempt]:
    policy = dataclasses.replace(
        world.home.policy, recipe=dataclasses.replace(world.home.policy.recipe, download="change")
    )
    model_cache = ClientModelCache()
    there = ServerState(flat=np.ones(SIZE, np.float32), velocity=np.zeros(SIZE, np.float32))
    way = DeltaChain(policy, SIZE, RUN)
    whole = b"".join(way_to(way, there))
    yield (
        lambda: model_cache.follow(way, "ab" * 32, whole),
        MessageError,
        "not the one that is named",
    )
    sealed = house(4, mode="sealed", min_cohort=4, threshold=3)
    members = {
        name: StateTransfer(sealed.policy, name, key, ClientStore(None, SIZE))
        for name, key in sealed.members.items()
    }
    hellos = {
        name: one.answer(ROUND_ID, state_transfer.GREET, b"") for name, one in members.items()
    }
    asked = parts.join({state_transfer.TO + "ben": hellos["ben"]})
    dealt = parts.split(members["ann"].answer(ROUND_ID, state_transfer.DEAL, asked))
    members["ben"].answer(
        ROUND_ID,
        state_transfer.TAKE,
        parts.join(
            {state_transfer.FROM: b"ann", state_transfer.ENVELOPE: dealt[state_transfer.TO + "ben"]}
        ),
    )
    handed = parts.split(members["ann"].answer(ROUND_ID, state_transfer.HAND, asked))
    alone = parts.join(
        {
            state_transfer.FROM: b"ann",
            state_transfer.ENVELOPE: handed[state_transfer.TO + "ben"],
            state_transfer.SAYS + "ann": dealt[state_transfer.OWN],
        }
    )
    yield (
        lambda: members["ben"].answer(ROUND_ID, state_transfer.FOLLOW, alone),
        MessageError,
        ("members have this adapter, need"),
    )


def way_to(stepping: DeltaChain, state: ServerState) -> Iterator[bytes]:
    """A whole state as the coordinator tells it, from the common origin."""
    from quietchoir.federation.aggregation import delta_chain

    yield delta_chain.join(
        name_of(ServerState.zeros(SIZE)), [Stepped(kind="whole", state=state.encode()).encode()]
    )


def adapter_name(world: World) -> Iterator[Attempt]:
    registry, one, two = Registry(world.folder / "node"), world.adapter(0.5), world.adapter(0.25)
    yield lambda: registry.put(one, world.card(two)), IntegrityError, "not kept"
    name = registry.put(one, world.card(one))
    two.save(registry.path(name))
    yield lambda: registry.load(name), IntegrityError, "changed on disk"
    (registry.path(name) / CARD).write_text(world.card(two).text())
    yield lambda: registry.card(name), FederationError, "the card of adapter"


def card_signer(world: World) -> Iterator[Attempt]:
    one = world.adapter(0.5)
    yield (
        lambda: Card.parse(world.card(one).text().replace(RUN, "0b" * 16), ""),
        FederationError,
        "signed card",
    )
    for signer, changes, words in (
        (world.thief, {}, "has no part in choir"),
        (world.home.members["ann"], {}, "has no part in choir"),
        (
            world.home.members["ann"],
            {"protection": "sealed"},
            "has no part in choir",
        ),  # this one never was
        (world.home.owner, {}, "has no part in choir"),
        (world.home.coordinator, {"federation": "ab" * 32}, "not of choir"),
        (world.home.coordinator, {"name": "other"}, "not of choir"),
        (world.home.coordinator, {"model": "cd" * 32}, "does not have"),
        (world.home.coordinator, {"variants": ("cd" * 32,)}, "does not have"),
    ):
        card = Card.parse(world.card(one, signer, **changes).text(), "")  # by itself it looks right
        yield partial(check_signer, card, world.chain, ""), FederationError, words
        if signer is not world.home.coordinator or changes:
            weights: Any = dataclasses.make_dataclass("W", ["architecture", "digest"])(TINY, DIGEST)
            registry, flat = (
                Registry(world.folder / "member"),
                np.zeros(Layout(SHAPE, TINY).size, np.float32),
            )
            policy = world.home.policy
            yield (
                partial(
                    client_node.keep_finished,
                    policy,
                    weights,
                    registry,
                    flat,
                    card.text(),
                    world.thief,
                ),
                FederationError,
                "not this federation's, signed by its coordinator",
            )


def model_digest(world: World) -> Iterator[Attempt]:
    (world.folder / "other").mkdir()
    path = world.folder / "other" / "model.gguf"
    from quietchoir.tests.fakes.models import GgufWriter, make_model

    GgufWriter(make_model("smollm2"), path).write()
    policy = dataclasses.replace(world.home.policy, model=ModelTable(name=str(path), digest=DIGEST))
    yield (
        lambda: model_files.resident(policy, named=str(path)),
        IntegrityError,
        ("the federation agreed on abababab"),
    )
    # a foreign file's name is no path here
    yield lambda: model_files.resident(policy), ModelNotFoundError, "sha256 abababab"


def account_scope(world: World) -> Iterator[Attempt]:
    book = PrivacyBook(open_member(world.folder / "node"))
    Account(Budget(epsilon=100.0), scope="this ann", book=book).charge(
        "a/1/1", PrivacyStep(multiplier=4.0)
    )
    yield (
        lambda: Account(Budget(epsilon=100.0), scope="that ann", book=book),
        ConfigError,
        "member.sqlite",
    )


def public_card(world: World) -> Iterator[Attempt]:
    zoe, eve = (load_or_create(world.folder / name).card for name in ("zoe", "eve"))
    for text in (
        zoe.key + "02" + "ff" * 48 + zoe.proof,
        zoe.key + "05" + zoe.transport[2:] + zoe.proof,
    ):
        yield partial(PublicCard.parse, text), ConfigError, "P-384 point"
    # the last: as an earlier version printed it
    for text in (zoe.text[:-2], zoe.text + "00", zoe.key + zoe.transport):
        yield partial(PublicCard.parse, text), ConfigError, "has [0-9]+ characters"
    key_half, transport_half = 2 * 64, 2 * 96
    assert len(zoe.proof) == key_half + transport_half
    for card in (
        # zoe's key under eve's name, to have it enrolled before she does
        dataclasses.replace(eve, key=zoe.key),
        dataclasses.replace(eve, transport=zoe.transport),
        dataclasses.replace(
            eve, transport=zoe.transport, proof=eve.proof[:key_half] + zoe.proof[key_half:]
        ),
        dataclasses.replace(zoe, proof=eve.proof),
        dataclasses.replace(zoe, proof=zoe.proof[:key_half] + "00" * 96),
        dataclasses.replace(zoe, proof="00" * 64 + zoe.proof[key_half:]),
    ):
        yield partial(PublicCard.parse, card.text), ConfigError, "not made by who holds its keys"


def library_name(world: World) -> Iterator[Attempt]:
    asker = Identity.generate()
    service = library_host.LibraryService(
        fake_index(), world.home.owner, Questions(world.folder / "budget.json", limit=5)
    )
    try:
        told = service.describe()
        yield lambda: decode_manifest(told, world.thief.public), AuthenticationError, "signature"
        fields: dict[str, Any] = {
            "kind": RequestKind.KEYS,
            "library": service.manifest.library,
            "asker": asker.public,
            "key_id": bytes(32),
            "sequence": 1,
            "parts": (b"x",),
        }
        elsewhere = SearchRequest(**{**fields, "library": bytes(32)}).encode(asker)
        yield (
            lambda: decode_request(elsewhere, service.manifest.library),
            MessageError,
            ("another library"),
        )
        stranger = SearchRequest(**fields).encode(world.thief)
        yield (
            lambda: decode_request(stranger, service.manifest.library),
            AuthenticationError,
            "signature",
        )
    finally:
        service.close()


def search_key_id(world: World) -> Iterator[Attempt]:
    from quietchoir.crypto.pir.search import PirClient
    from quietchoir.private_search.messages import decode_reply

    asker = Identity.generate()
    service = library_host.LibraryService(
        fake_index(), world.home.owner, Questions(world.folder / "budget.json", limit=5)
    )
    questioner = PirClient(service.manifest.shape)
    try:
        keys = questioner.keys()
        fields: dict[str, Any] = {
            "library": service.manifest.library,
            "asker": asker.public,
            "sequence": 1,
            "parts": tuple(keys),
        }
        raw = SearchRequest(kind=RequestKind.KEYS, key_id=key_id(keys[::-1]), **fields).encode(
            asker
        )
        yield (
            lambda: decode_reply(service.answer(raw)[1], raw, world.home.owner.public),
            ProtocolError,
            "another key's name",
        )
    finally:
        questioner.close()
        service.close()


def plugin_id(world: World) -> Iterator[Attempt]:
    import json

    def refusal() -> None:
        raise host.available([bundle]).refused[bundle]

    builtin = host.BUILTIN / "household"
    table = json.loads((builtin / manifest.FILE).read_text("utf-8"))
    bundle = world.folder / "bundle"
    bundle.mkdir(exist_ok=True)
    for name, words in (
        ("quietchoir/household", "calls itself quietchoir/household"),
        ("quietchoir/other", "must use a publisher"),
    ):
        for path, content in manifest.bundle(builtin).items():
            (bundle / path).write_bytes(content)
        (bundle / manifest.FILE).write_text(json.dumps(table | {"id": name}))
        yield refusal, ManifestError, words
    (bundle / manifest.FILE).write_text(
        json.dumps(table | {"id": "a/b", "tools_digest": "00" * 32})
    )
    yield refusal, ManifestError, "tools hash to"


@dataclasses.dataclass(frozen=True)
class Name:
    """A kind of name."""

    derived_from: str
    checked_in: str
    forge: Callable[[World], Iterator[Attempt]]


NAMES = {
    "federation": Name("the founder's key, a nonce", "membership/log", federation_number),
    "entry, head": Name("the entry's text", "membership/log", entry_hash),
    "invitation": Name("the key in its token", "membership/invitation", invitation_key),
    "member": Name("its key in the roster", "wire/messages", member_name),
    "public card": Name("both of a node's keys", "membership/keys", public_card),
    "coordinator": Name("its key in the signed file", "wire/messages", coordinator_key),
    "task": Name("the message's bytes", "wire/messages", task_name),
    "run": Name("drawn", "wire/messages", run_name),
    "state": Name("the adapter's and the optimizer's bits", "rounds/model_broadcast", state_name),
    "adapter": Name("model, shape and values", "adapters/registry", adapter_name),
    "card": Name("its signer's key", "adapters/registry", card_signer),
    "model": Name("the file's bytes", "model_files", model_digest),
    "privacy account": Name("federation and member", "crypto/privacy/accountant", account_scope),
    "library": Name("its host's key", "private_search/messages", library_name),
    "search key": Name("the public keys", "private_search/host", search_key_id),
    "plugin": Name("its publisher's word", "plugins/host", plugin_id),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".sqlite-wal", ".sqlite-shm")  # SQLite's own
    }


@pytest.mark.parametrize("kind", NAMES)
def test_a_forged_name_is_refused_where_it_enters_and_nothing_is_kept(
    kind: str, tmp_path: Path
) -> None:
    world = World(house(), Identity.generate(), tmp_path)
    tried = 0
    for attempt, error, words in NAMES[kind].forge(world):
        before = contents(tmp_path)
        with pytest.raises(error, match=words):
            attempt()
        assert contents(tmp_path) == before
        tried += 1
    assert tried


def test_the_federations_readme_lists_the_same_names() -> None:
    text = (Path(quietchoir.federation.__file__).with_name("README.md")).read_text("utf-8")
    table = text.partition("## Names\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| ")
    ]
    listed = {row[0]: (row[1], row[2]) for row in rows if row[0] not in ("name", "---")}
    assert listed == {kind: (one.derived_from, one.checked_in) for kind, one in NAMES.items()}


def test_a_node_that_a_forged_file_reached_first_takes_the_true_one(tmp_path: Path) -> None:
    world = World(house(), Identity.generate(), tmp_path)
    roster.write(tmp_path / FILE, world.chain)
    text = (tmp_path / FILE).read_text("utf-8")
    forged = text.replace(world.home.policy.owner, world.thief.public.raw.hex())
    for number, one in enumerate(
        (forged, text.replace(world.home.coordinator.public.raw.hex(), "ab" * 32))
    ):
        (tmp_path / f"{number}.toml").write_text(one, "utf-8")
        with pytest.raises(RosterError):
            roster.accept(tmp_path / f"{number}.toml", tmp_path / "node")
        assert not (tmp_path / "node").exists()
    assert roster.accept(tmp_path / FILE, tmp_path / "node") == world.chain.policy
