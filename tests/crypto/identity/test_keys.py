"""Identities, agreements and boxes."""

import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.errors import AuthenticationError, ConfigError
from quietchoir.crypto.identity.keys import (
    Ephemeral,
    Identity,
    PublicIdentity,
    bind,
    hkdf,
    open_box,
    seal_box,
)

FIELDS = st.lists(
    st.one_of(st.binary(max_size=6), st.text(max_size=4), st.integers(0, 2**64 - 1)), max_size=4
)


@settings(deadline=None)
@given(FIELDS, FIELDS)
def test_two_different_contexts_never_have_the_same_bytes(
    one: list[Any], other: dict[str, int]
) -> None:
    same = [(type(a), a) for a in one] == [(type(b), b) for b in other]
    assert (bind(*one) == bind(*other)) == same


def test_moving_a_boundary_changes_the_context() -> None:
    assert bind("ab", "c") != bind("a", "bc")
    assert bind(b"1") != bind("1") != bind(1)


def test_a_signature_fits_its_context_message_and_signer_only() -> None:
    signer = Identity.generate()
    signature = signer.sign(b"round 1", b"keys")
    signer.public.verify(b"round 1", b"keys", signature)
    for context, message, key in (
        (b"round 2", b"keys", signer.public),
        (b"round 1", b"kEys", signer.public),
        (b"round 1", b"keys", Identity.generate().public),
        (b"round 1keys", b"", signer.public),
    ):
        with pytest.raises(AuthenticationError):
            key.verify(context, message, signature)
    with pytest.raises(AuthenticationError):
        signer.public.verify(b"round 1", b"keys", signature[:63])


def test_an_identity_file_is_private_and_loads_again(tmp_path: Path) -> None:
    identity = Identity.generate()
    identity.save(tmp_path / "id.key")
    assert stat.S_IMODE((tmp_path / "id.key").stat().st_mode) == 0o600
    assert Identity.load(tmp_path / "id.key").public == identity.public


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    Identity.generate().save(tmp_path / "id.key")
    (tmp_path / "id.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Identity.load(tmp_path / "id.key")


def test_a_locked_identity_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    identity, path = Identity.generate(), tmp_path / "id.key"
    identity.save(path, "many voices")
    assert Identity.load(path, "many voices").public == identity.public
    assert identity._private.private_bytes_raw() not in path.read_bytes()
    with pytest.raises(ConfigError, match="locked"):
        Identity.load(path)
    with pytest.raises(AuthenticationError):
        Identity.load(path, "one voice")
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(AuthenticationError):
        Identity.load(path, "many voices")


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    identity, path = Identity.generate(), tmp_path / "id.key"
    identity.save(path)
    with pytest.raises(ConfigError, match="kept"):
        Identity.generate().save(path)
    assert Identity.load(path).public == identity.public


@pytest.mark.parametrize("content", [b"", b"nonsense", b"quietchoir identity 1, plain\nshort"])
def test_a_file_that_is_no_identity_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "id.key").write_bytes(content)
    (tmp_path / "id.key").chmod(0o600)
    with pytest.raises(ConfigError):
        Identity.load(tmp_path / "id.key")
    with pytest.raises(ConfigError, match="cannot read"):
        Identity.load(tmp_path / "none.key")


def test_private_bytes_show_nowhere(tmp_path: Path) -> None:
    identity, ephemeral = Identity.generate(), Ephemeral.generate()
    for thing, raw in (
        (identity, identity._private.private_bytes_raw()),
        (ephemeral, ephemeral.private_bytes()),
    ):
        shown = repr(thing) + str(thing)
        assert raw.hex()[:12] not in shown and repr(raw) not in shown
        with pytest.raises(TypeError):
            pickle.dumps(thing)


def test_both_ends_agree_and_each_context_gives_another_key() -> None:
    one, other = Ephemeral.generate(), Ephemeral.generate()
    assert (
        one.agree(other.public, b"x")
        == other.agree(one.public, b"x")
        != one.agree(other.public, b"y")
    )


@pytest.mark.parametrize("weak", [bytes(32), b"\x01" + bytes(31)])
def test_a_public_key_of_small_order_is_refused(weak: bytes) -> None:
    with pytest.raises(AuthenticationError):
        Ephemeral.generate().agree(weak, b"x")


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(0), st.data())
def test_a_changed_box_does_not_open(plaintext: bytes, seed: int, data: st.DataObject) -> None:
    key, associated = os.urandom(32), b"1 to 2"
    box = bytearray(seal_box(key, plaintext, associated))
    assert open_box(key, bytes(box), associated) == plaintext
    box[data.draw(st.integers(0, len(box) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for tried, context in (
        (bytes(box), associated),
        (bytes(box[:-1]), associated),
        (b"", associated),
    ):
        with pytest.raises(AuthenticationError):
            open_box(key, tried, context)


def test_a_box_opens_for_its_receiver_and_context_only() -> None:
    box = seal_box(bytes(32), b"share", b"1 to 2")
    for key, context in ((bytes(31) + b"\x01", b"1 to 2"), (bytes(32), b"1 to 3")):
        with pytest.raises(AuthenticationError):
            open_box(key, box, context)


def test_a_public_identity_has_32_bytes_and_hkdf_any_length() -> None:
    with pytest.raises(AuthenticationError):
        PublicIdentity(bytes(31))
    assert len(hkdf(b"s", b"c", 77)) == 77
    assert bytes(PublicIdentity(bytes(32))) == bytes(32)
