"""Known answers, made by `tests/vectors/secagg_reference.py`, which shares no code with us."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.crypto import shamir
from quietchoir.crypto.identity.keys import Ephemeral, PublicIdentity, bind
from quietchoir.crypto.ring import expand
from quietchoir.crypto.secagg import SecAggConfig
from quietchoir.crypto.secagg.client import _Vectors
from quietchoir.crypto.secagg.session import Graph, Session, mask_pair, mask_self
from quietchoir.tests.vectors import secagg_reference

FOLDER = Path(__file__).parents[2] / "vectors"
KNOWN = json.loads((FOLDER / "secagg.json").read_text())


def test_the_file_is_what_the_reference_makes() -> None:
    assert json.loads(json.dumps(secagg_reference.vectors())) == KNOWN


def test_the_reference_knows_the_published_vectors() -> None:
    """FIPS 197 (C.3), RFC 7748 (5.2) and RFC 5869 (A.3), so that two wrong implementations
    cannot agree.
    """
    block = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert (
        secagg_reference.aes_block(secagg_reference.key_schedule(bytes(range(32))), block).hex()
        == "8ea2b7ca516745bfeafc49904b496089"
    )
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert (
        secagg_reference.x25519(scalar, point).hex()
        == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    )
    assert (
        secagg_reference.hkdf(b"\x0b" * 22, b"", 42)
        .hex()
        .startswith("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d")
    )


def test_contexts_streams_and_agreements() -> None:
    assert bind(*KNOWN["bind"]["fields"]).hex() == KNOWN["bind"]["bytes"]
    first = bytes.fromhex(KNOWN["stream"]["first"])
    assert expand(bytes.fromhex(KNOWN["stream"]["key"]), len(first)) == first
    case = {key: bytes.fromhex(value) for key, value in KNOWN["agree"].items()}
    own = Ephemeral(case["private"])
    assert own.public == case["public"] and own.agree(case["peer"], case["context"]) == case["key"]


def test_shares_and_graph() -> None:
    points = [int(point) for point in KNOWN["shamir"]["shares"]]
    shares = [bytes.fromhex(share) for share in KNOWN["shamir"]["shares"].values()]
    assert shamir.join(shares, shamir.weights(points)).hex() == KNOWN["shamir"]["secret"]
    case = KNOWN["graph"]
    graph = Graph(range(case["parties"]), case["degree"], bytes.fromhex(case["seed"]))
    assert {str(party): list(graph.neighbours(party)) for party in range(case["parties"])} == case[
        "neighbours"
    ]


@pytest.mark.parametrize("case", KNOWN["uploads"], ids=lambda case: f"{case['bits']} bits")
def test_a_masked_upload(case: dict[str, Any]) -> None:
    members = {name: PublicIdentity(bytes.fromhex(key)) for name, key in case["members"].items()}
    agreed = {
        key: case[key]
        for key in ("round", "attempt", "threshold", "min_cohort", "min_tokens", "length", "bits")
    }
    federation, context = bytes.fromhex(case["federation"]), bytes.fromhex(case["context"])
    session = Session(
        SecAggConfig(federation=federation, context=context, members=members, **agreed)
    )
    assert session.id.hex() == case["session"]
    vectors = _Vectors(session, np.array(case["values"], np.uint32), case["tokens"])
    mask_self(vectors, session, bytes.fromhex(case["seed"]), subtract=False)
    for peer, public in case["peers"].items():
        own = Ephemeral(bytes.fromhex(case["mask_key"]))
        mask_pair(
            vectors, session, own, session.numbers[case["me"]], int(peer), bytes.fromhex(public)
        )
    assert vectors.close("values").hex() == case["masked"]
    assert vectors.close("tokens").hex() == case["masked_tokens"]
