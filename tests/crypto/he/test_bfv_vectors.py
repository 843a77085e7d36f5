"""Known answers of sealed and threshold mode, made by `tests/vectors/sealed_reference.py`, which
shares no code with us.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.crypto.experimental.threshold import residues
from quietchoir.crypto.experimental.threshold.plan import PRIMES
from quietchoir.crypto.he.bfv import Packing, key_id, uniform
from quietchoir.crypto.he.parameters import SEALED
from quietchoir.crypto.ring import Range, encode
from quietchoir.tests.vectors import sealed_reference

KNOWN = json.loads((Path(__file__).parents[2] / "vectors" / "sealed.json").read_text())


def test_the_file_is_what_the_reference_makes() -> None:
    assert json.loads(json.dumps(sealed_reference.vectors())) == KNOWN
    assert (
        sealed_reference.SEALED_T % (2 * SEALED.degree) == 1
        and tuple(PRIMES[:3]) == sealed_reference.JOINT_PRIMES
    )


def test_a_key_has_the_same_name_everywhere() -> None:
    assert key_id(bytes.fromhex(KNOWN["key_id"]["seed"])).hex() == KNOWN["key_id"]["id"]


@pytest.mark.parametrize("case", KNOWN["below"], ids=lambda case: f"modulo {case['modulus']}")
def test_masks_below_a_modulus(case: dict[str, Any]) -> None:
    assert (
        uniform(bytes.fromhex(case["key"]), len(case["numbers"]), case["modulus"]).tolist()
        == case["numbers"]
    )


def test_fields_of_a_slot() -> None:
    case = KNOWN["slot"]
    length = len(case["fields"]) * SEALED.degree  # the first slot's fields lie a whole row apart
    packing, values = (
        Packing(length=length, bits=case["bits"], parties=case["parties"]),
        np.zeros(length, np.uint64),
    )
    values[:: SEALED.degree] = case["fields"]
    assert (
        packing.rows == 1
        and packing.parameters is SEALED
        and packing.modulus == sealed_reference.SEALED_T
    )
    assert packing.pack(values)[0, 0] == case["slot"]


def test_residues_and_weights() -> None:
    made = residues.random(bytes.fromhex(KNOWN["residues"]["key"]), 3)
    assert made[:, :10].tolist() == KNOWN["residues"]["first"]
    points = KNOWN["weights"]["points"]
    assert {str(x): residues.weights(points, x, 3) for x in points} == KNOWN["weights"]["of"]


@pytest.mark.parametrize("case", KNOWN["rounding"], ids=lambda case: f"{case['bits']} bits")
def test_rounding(case: dict[str, Any]) -> None:
    ranges = [Range(0, len(case["values"]), case["scale"])]
    found = encode(np.array(case["values"]), ranges, case["bits"], key=bytes.fromhex(case["key"]))
    assert found.tolist() == case["integers"]
