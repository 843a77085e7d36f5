"""Findings are shared where a simulation says so, and nowhere else; a refusal never is."""

import threading

import pytest

from quietchoir.core.errors import AuthenticationError, ProtocolError
from quietchoir.crypto import shared
from quietchoir.crypto.identity.keys import Identity, PublicIdentity
from quietchoir.crypto.secagg.messages import KeyList
from quietchoir.crypto.shared import once, sharing
from quietchoir.tests.fakes.secagg import Cohort, Round


def test_nothing_is_shared_outside_of_a_simulation_nor_in_another_thread() -> None:
    found: list[int] = []

    def find() -> int:
        found.append(0)
        return len(found)

    assert [once("a", 1, find), once("a", 1, find)] == [1, 2]
    with sharing():
        assert [once("a", 1, find), once("a", 1, find), once("b", 1, find)] == [3, 3, 4]
        other = threading.Thread(target=lambda: once("a", 1, find))
        other.start()
        other.join()
        assert len(found) == 5
    assert once("a", 1, find) == 6


def test_a_refusal_is_never_kept() -> None:
    def refuse() -> int:
        raise ProtocolError("no")

    with sharing():
        with pytest.raises(ProtocolError):
            once("a", 1, refuse)
        assert once("a", 1, lambda: 7) == 7


def test_a_signature_that_was_made_here_is_known_and_no_other() -> None:
    identity, stranger = Identity.generate(), Identity.generate()
    with sharing():
        signature = identity.sign(b"context", b"message")
        identity.public.verify(b"context", b"message", signature)
        changed = bytes([signature[0] ^ 1]) + signature[1:]
        for key, context, message, given in (
            (identity.public, b"context", b"other", signature),
            (identity.public, b"other", b"message", signature),
            (identity.public, b"context", b"message", changed),
            (stranger.public, b"context", b"message", signature),
        ):
            with pytest.raises(AuthenticationError):
                key.verify(context, message, given)


def test_findings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MOST", 10)
    monkeypatch.setattr(shared, "SIGNATURES", 10)
    with sharing():
        findings = shared._findings.get()
        assert findings is not None
        for scope in range(50):
            once(scope, "key", lambda: 0)
            shared.signed(b"key", bytes([scope]), b"signature")
        assert len(findings.scopes) <= 10 and len(findings.signatures) == 10


def test_members_that_share_their_findings_refuse_a_changed_list_as_each_alone_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = 0
    honest = PublicIdentity.verify

    def counting(self: PublicIdentity, *given: bytes) -> None:
        nonlocal checked
        checked += 1
        honest(self, *given)

    with sharing():
        game = Round(Cohort(5)).play(stages=1)
        cards, session = game.brought[1]["node-000"], game.session
        monkeypatch.setattr(PublicIdentity, "verify", counting)
        first = KeyList.decode(cards, session)
        assert checked == 5
        assert KeyList.decode(cards, session) is first and checked == 5
        bad = bytearray(cards)
        bad[-1] ^= 1
        for _ in range(2):
            with pytest.raises((AuthenticationError, ProtocolError)):
                KeyList.decode(bytes(bad), session)
        assert checked > 5
