"""Attacks by strangers: who reaches the network and holds no key.

Knows the fleet's door, federation files and invitations, as anybody can reach them; ports on
loopback are `browsers`'.
Always: loopback alone; what an arm opened it closes.
"""

import base64
import concurrent.futures
import contextlib
import functools
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from ...core.errors import BudgetError, QuietchoirError
from ...crypto.identity.keys import Identity
from ...federation.membership import invitation, log, roster
from ...federation.membership.keys import PublicCard, load_or_create
from ...federation.spec.policy import Policy
from ...federation.transport import listener, proof
from ...federation.transport.proof import PROOF_HEADER, SESSION_HEADER, Proof
from ...private_search.budget import QueryBudget
from ...private_search.messages import RequestKind
from . import browsers
from .catalogue import Attack, NotHere, Result
from .targets import HOST, federation, opened

ELSEWHERE = "127.0.0.2"  # a member's address; the strangers' is HOST
# strangers that connect while a distant member waits for an answer: at 500 a second, 160 ms
BETWEEN = 80
TRIES = 3
DIALS_IN = b"/v1/fleet/activate-node"
NAMES = "flwr-public-key"  # the header in which a node says whose it is


# A crowd of connections that say nothing, and a member that is far away


CROWD = """
import socket, sys
held = []
while True:
    try:
        held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5))
    except OSError:
        pass
    if len(held) > 256:
        held.pop(0).close()
"""


def knocks(policy: Policy, far: Callable[[], None]) -> bool:
    """TLS and one request over a long line, from an address of its own: is there an answer?"""
    context = ssl.create_default_context(cadata=policy.coordinator.certificate)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    spoken = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
    try:
        line = socket.create_connection(
            (HOST, policy.coordinator.port), timeout=20, source_address=(ELSEWHERE, 0)
        )
    except OSError as error:
        if line_is_missing(error):
            raise NotHere("this machine has one loopback address") from None
        return False

    def patiently(act: Callable[[], Any]) -> Any:
        while True:
            try:
                return act()
            except ssl.SSLWantReadError:
                far()
                line.sendall(outgoing.read())
                if not (piece := line.recv(1 << 16)):
                    raise ConnectionError("ended") from None
                incoming.write(piece)

    with line:
        try:
            patiently(spoken.do_handshake)
            spoken.write(b"POST " + DIALS_IN + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            far()
            line.sendall(outgoing.read())
            return bool(patiently(lambda: spoken.read(100)))
        except OSError:
            return False


def line_is_missing(error: OSError) -> bool:
    """Is there no second loopback address?"""
    return "assign" in str(error)


def kept_out(crowding: Callable[[listener.Listener], Any]) -> Result:
    """How often a member comes through a crowd from one other address."""
    before, came_by, mine, tried = listener.source, 0, 0, 0

    def counted(peer: tuple[Any, ...]) -> str:
        nonlocal came_by, mine
        came_by, mine = came_by + 1, mine + (peer[0] == ELSEWHERE)
        return before(peer)

    def far() -> None:
        """Until the member was let in by the kernel's queue, and then so many others."""
        deadline = time.monotonic() + 20
        while mine < tried and time.monotonic() < deadline:
            time.sleep(0.01)
        until = came_by + BETWEEN
        while came_by < until and time.monotonic() < deadline:
            time.sleep(0.01)

    # time is not what is tried here
    patched = mock.patch.multiple(listener, source=counted, HEAD_S=100.0)
    with (
        patched,
        mock.patch.object(listener.Listener, "crowding", crowding),
        opened() as (_, policy),
    ):
        command = [sys.executable, "-c", CROWD, str(policy.coordinator.port)]
        crowd = [subprocess.Popen(command) for _ in range(2)]
        try:
            far()  # until the crowd is there
            came = 0
            while tried < TRIES:
                tried += 1
                came += knocks(policy, far)
        finally:
            for one in crowd:
                one.kill()
                one.wait()
    return Result(
        came == 0,
        f"a member with {BETWEEN} strangers between its messages came in {came} times of {TRIES}",
    )


def oldest(crowded: listener.Listener) -> Any:
    """Who had to go before: whoever came first, which is whoever is far away."""
    return next(iter(crowded.unproven))


# Requests in a member's name


def requests(key: bytes) -> Iterator[bytes]:
    """Heads that name a member, which everybody who has the file can, and prove nothing."""
    named = NAMES.encode() + b": " + base64.b64encode(key)
    name, session = PROOF_HEADER.encode(), SESSION_HEADER.encode() + b": " + b"ab" * 16
    strange = base64.b64encode(os.urandom(64))
    heads: tuple[tuple[bytes, ...], ...] = (
        (),
        (session,),
        (session, name + b": " + strange),
        (session, name + b": " + strange, name + b": " + strange),
        (session, name.replace(b"-", b"_") + b": " + strange),
        (session, name + b": "),
        (session, name + b":\t" + strange),
        (b"connection: upgrade", b"upgrade: h2c"),
        (b"expect: 100-continue",),
        (b"x-forwarded-for: 127.0.0.1", b"forwarded: for=x"),
    )
    for head in heads:
        for path in (DIALS_IN, b"/v1/fleet/pull-messages"):
            yield b"\r\n".join(
                (
                    b"POST " + path + b" HTTP/1.1",
                    b"host: x",
                    named,
                    *head,
                    b"content-length: 0",
                    b"",
                    b"",
                )
            )
    inner = b"\r\n".join(
        (b"POST " + DIALS_IN + b" HTTP/1.1", b"host: x", named, b"content-length: 0", b"", b"")
    )
    outer = b"POST " + DIALS_IN + b" HTTP/1.1\r\nhost: x\r\n" + named
    yield outer + b"\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + inner
    yield outer + b"\r\ncontent-length: %d\r\n\r\n" % len(inner) + inner
    yield b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" + inner * 3
    for path in (
        b"https://x" + DIALS_IN,
        DIALS_IN + b"?",
        DIALS_IN + b"/",
        b"/" + DIALS_IN,
        b"/v1/fleet/%61ctivate-node",
    ):
        yield inner.replace(DIALS_IN, path)
    yield inner.replace(b"POST", b"post")
    yield inner.replace(b"HTTP/1.1", b"HTTP/1.0")


def by_name(headers: Any, path: str, federation: bytes, identity_of: Any) -> Proof | None:
    """Who asks, by the key that a request names."""
    del path, federation
    for name, value in headers:
        if name == NAMES.lower().encode():
            key = base64.b64decode(value)
            return Proof(key, "ab" * 16) if identity_of(key) is not None else None
    return None


def in_a_members_name(check: Callable[..., Proof | None]) -> Result:
    """How many requests of a stranger come to Flower, behind the door."""
    with mock.patch.object(proof, "check", check), opened() as (link, policy):
        inner, reached = link.endpoint.app, list[str]()

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            reached.append(scope.get("path", ""))
            await inner(scope, receive, send)

        link.endpoint.app = counted
        context = ssl.create_default_context(cadata=policy.coordinator.certificate)
        tried = 0
        for words in requests(link.keys["ann"]):
            tried += 1
            with contextlib.suppress(OSError):
                line = socket.create_connection((HOST, policy.coordinator.port), timeout=10)
                with context.wrap_socket(line, server_hostname=HOST) as spoken:
                    spoken.sendall(words)
                    while spoken.recv(1 << 16):
                        pass
    return Result(bool(reached), f"{tried} requests without a proof, {len(reached)} came to Flower")


# Files and tokens


def damaged(good: bytes) -> Iterator[bytes]:
    """Federation files that somebody wrote for whoever reads them."""
    yield b"a = " + b"[" * 5_000
    yield b"a = " + b"{a=" * 5_000
    yield b"a = " + b"1" * 5_000
    yield b"a = 0x" + b"f" * 5_000
    yield b"a = 2020-99-99T00:00:00Z"
    yield b"\xff\xfe" + good
    yield b""
    for number in (
        b"1" * 400,
        b"inf",
        b"nan",
        b"-0.0",
        b"0x" + b"f" * 400,
        b"[[]]",
        b'"\\u0000"',
        b"{}",
    ):
        for key in (b"lr", b"version", b"rank", b"expires", b"targets", b"address"):
            before, named, after = good.partition(b"\n" + key + b" = ")
            if named:
                yield before + named + number + b"\n" + after.partition(b"\n")[2]
    for place in range(7, len(good), len(good) // 60):
        yield good[:place] + b"\x00" + good[place + 1 :]
        yield good[:place]


def old_read(content: bytes, home: Path) -> None:
    """A reader that catches what TOML says, and no more."""
    del home
    try:
        roster.parse(tomllib.loads(content.decode()), "")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise QuietchoirError("no federation file") from error


def accept(content: bytes, home: Path) -> None:
    """What `join` and `accept` do with a file."""
    file = home.parent / "offered.toml"
    file.write_bytes(content)
    roster.accept(file, home)


def broken_off(read: Callable[[bytes, Path], None]) -> Result:
    """How many files end the reader with a traceback, or are taken."""
    tried, ended, taken = 0, set[str](), 0
    with federation() as (file, _):
        good, home = file.read_bytes(), file.parent / "home"
        for content in damaged(good):
            tried += 1
            try:
                read(content, home)
            except QuietchoirError:
                pass
            except Exception as error:
                ended.add(type(error).__name__)
            else:
                taken += content != good
        kept = home.exists() and any(path.is_file() for path in home.rglob("*"))
    what = (
        f"{tried} files, {taken} taken, errors without a sentence: "
        f"{', '.join(sorted(ended)) or 'none'}"
    )
    return Result(bool(ended or taken or kept), what)


def changed_on_its_way(check: Callable[[str, Policy, Path], tuple[str, PublicCard]]) -> Result:
    """Whoever carries an answered invitation puts another card into it: whose keys are enrolled?"""
    with federation() as (file, policy):
        token = invitation.invite(policy, file.parent, "zoe", 7)
        invited, thief = (load_or_create(file.parent / name) for name in ("zoe", "thief"))
        _, answer = invitation.accept(token, invited.card, file.parent / "zoe")
        fields = asdict(invitation.unpack(invitation.ANSWER, answer, invitation.Answer, "answer"))
        for change in (
            {"card": thief.card.text},
            {"card": thief.card.text, "signature": "00" * 64},
            {"rank": 1},
        ):
            text = invitation.pack(invitation.ANSWER, fields | change)
            try:
                name, card = check(text, policy, file.parent)
            except QuietchoirError:
                continue
            if card.text == thief.card.text or change == {"rank": 1}:
                return Result(True, f"{name} is enrolled with what the carrier wrote")
    return Result(False, "3 changed answers, none is taken")


def unchecked(text: str, policy: Policy, folder: Path) -> tuple[str, PublicCard]:
    """A card by mail: whatever the mailer says it is."""
    del policy
    answer = invitation.unpack(invitation.ANSWER, text, invitation.Answer, "answer")
    return invitation.pending(folder)[answer.invitation].name, PublicCard.parse(answer.card)


def somebody_elses_number(read: Callable[[log.Entry], bytes]) -> Result:
    """A file with the number of a known federation and a roster of the stranger's own."""
    with federation() as (_, policy):
        thief = Identity.generate()
        table = {
            key: value for key, value in policy.table().items() if key not in ("version", "head")
        }
        mine = {"founder": policy.owner, "owner": thief.public.raw.hex(), "members": []}
        try:
            number = read(log.sign(1, log.FOUND, 0, "", table | mine, thief))
        except QuietchoirError as error:
            return Result(False, str(error)[:90])
        return Result(
            number == policy.federation, "a stranger's file goes by the federation's number"
        )


def signed_by_its_owner(entry: log.Entry) -> bytes:
    """The check as it was: entry 1 is signed by whoever it calls the owner."""
    change = json.loads(entry.text)["change"]
    log.check(change["owner"], log.CONTEXT, entry.text, entry.signature)
    return Policy.federation.fget(  # type: ignore[attr-defined, no-any-return]
        mock.Mock(founder=change["founder"], owner=change["owner"], nonce=change["nonce"])
    )


# More answers than a library grants


def many_askers(charge: Callable[[QueryBudget, Any, int], None]) -> Result:
    """Fresh identities, sixteen at a time: how many questions do they get together?"""
    limit = 8
    with tempfile.TemporaryDirectory() as folder:
        budget = QueryBudget(Path(folder) / "budget.json", limit=limit)

        def try_one(number: int) -> int:
            try:
                charge(budget, Identity.generate().public, number)
            except BudgetError:
                return 0
            return 1

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            granted = sum(pool.map(try_one, range(5 * limit)))
        again = QueryBudget(
            Path(folder) / "budget.json", limit=limit
        )  # a host that was started anew
        with contextlib.suppress(BudgetError):
            charge(again, Identity.generate().public, 1)
            granted += 1
    return Result(granted > limit, f"{granted} answers to strangers, {limit} are granted")


def by_identity(budget: QueryBudget, asker: Any, number: int) -> None:
    """A limit for each key, which costs nothing to make."""
    with mock.patch.object(budget, "account", lambda who: who.raw.hex()):
        budget.charge(asker, RequestKind.QUESTION, number)


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="a crowd of silent connections keeps a distant member out",
        who="stranger at one address",
        mode="fleet",
        promise="strangers at fewer than 64 addresses never keep a member at another from coming "
        "in",
        unprotected=lambda: kept_out(oldest),
        protected=functools.partial(kept_out, listener.Listener.crowding),
    ),
    Attack(
        name="requests in a member's name",
        who="stranger with the federation file",
        mode="fleet",
        promise="nothing is done for or against a caller before the head of its request has proved "
        "that a member makes it",
        unprotected=lambda: in_a_members_name(by_name),
        protected=functools.partial(in_a_members_name, proof.check),
    ),
    Attack(
        name="a federation file that ends its reader",
        who="stranger who wrote a file",
        mode="file",
        promise="a file that is none is refused with a sentence, and nothing is kept",
        unprotected=lambda: broken_off(old_read),
        protected=lambda: broken_off(accept),
    ),
    Attack(
        name="a federation file with somebody else's number",
        who="stranger who wrote a file",
        mode="file",
        promise="a federation's number is proven by its founder's key",
        unprotected=lambda: somebody_elses_number(signed_by_its_owner),
        protected=lambda: somebody_elses_number(
            lambda entry: log.Chain((entry,)).policy.federation
        ),
    ),
    Attack(
        name="an answered invitation is changed on its way",
        who="stranger who carries it",
        mode="file",
        promise="an answer is good for one card",
        unprotected=lambda: changed_on_its_way(unchecked),
        protected=lambda: changed_on_its_way(lambda *arguments: invitation.check(*arguments)[:2]),
    ),
    Attack(
        name="more questions than a library grants, by fresh keys",
        who="stranger who asks",
        mode="library",
        promise="all askers that are not listed share one account",
        unprotected=lambda: many_askers(by_identity),
        protected=lambda: many_askers(
            lambda budget, asker, number: budget.charge(asker, RequestKind.QUESTION, number)
        ),
    ),
    *browsers.ATTACKS,
)
