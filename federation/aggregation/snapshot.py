"""A member's half of an attempt as bytes, where the process that answers one stage is not the one
that answers the next.

Knows the plain and the masked half. Knows nothing of where the bytes lie meanwhile (see
store/attempt_snapshot).
Always: what is thawed goes on where it was frozen, in the same session; values that have been
masked are not in the bytes.

Hazard: as `crypto.secagg.snapshot`, and until stage `mask` the bytes also hold the update itself.
"""

import dataclasses
import json
from typing import Any

import numpy as np

from ...core.errors import ConfigError, ProtocolError
from ...crypto.ring import Range
from ...crypto.secagg.client import SumCheck
from ...crypto.secagg.snapshot import freeze as freeze_client
from ...crypto.secagg.snapshot import thaw as thaw_client
from ..spec.compatibility import refused
from ..spec.policy import MAX_BITS, Policy
from .base import PartyContext, PartyHalf, Values
from .plain import PlainParty
from .rank_masks import shares_of
from .secagg import MaskedParty
from .update import Terms

PLAIN, MASKED = b"p", b"n"
WORD = "<u2"  # of a value; 16 bits are as many as a federation may have
assert MAX_BITS <= 16


def check_freezable(policy: Policy) -> None:
    """Require a federation whose members can stop between two letters.

    Raises:
        ConfigError: sealed, or with buffered rounds.
    """
    axes = dataclasses.replace(policy.axes, engines=True)
    if (rule := refused(axes)) is not None:
        raise ConfigError(f"federation {policy.name}: {rule.sentence(axes)}")


def freeze(half: PartyHalf) -> bytes:
    """Everything a half needs to go on.

    Raises:
        ProtocolError: a half of another mode.
    """
    if isinstance(half, PlainParty):
        return PLAIN + half.packed
    # a sealed half is one, with more to it
    if not isinstance(half, MaskedParty) or type(half) is not MaskedParty:
        raise ProtocolError(
            f"a {type(half).__name__} cannot be kept between two processes; only "
            f"plain and masked halves can"
        )
    check = (
        None
        if half.check is None
        else {"key": half.check.key.hex(), "survivors": half.check.survivors}
    )
    client = b"" if half.client is None or half.check is not None else freeze_client(half.client)
    values = b"" if half.values is None else narrow(half.values)
    header = json.dumps(
        {
            "asked": half.context.cohort,
            "vouch": half.context.vouch,
            "relies": half.context.relies,
            "told": half.context.terms.told.hex(),
            "adapter": half.context.terms.adapter.hex(),
            "scores": half.context.scores,
            "subjects": [subject.hex() for subject in half.context.subjects],
            "start": half.context.terms.start,
            "ranges": [dataclasses.astuple(one) for one in half.context.terms.ranges],
            "tokens": half.tokens,
            "counted": half.counted,
            "check": check,
            "size": half.size,
            "client": len(client),
            "values": None if half.values is None else half.values.size,
        }
    ).encode("ascii")
    return MASKED + len(header).to_bytes(4, "big") + header + client + values


def thaw(data: bytes, context: PartyContext) -> PartyHalf:
    """The half that was frozen.

    Args:
        context: of the same place; who was asked and what was told are taken from the bytes.

    Raises:
        ProtocolError: of another session than the federation file's.
    """
    kind, body = data[:1], data[1:]
    if kind == PLAIN:
        half = object.__new__(PlainParty)  # `__init__` would pack values that are packed
        half.packed = body
        return half
    if kind != MASKED:
        raise ProtocolError(
            "what was put aside is of another version of quietchoir; it is not taken up, the next "
            "attempt begins anew"
        )
    end = 4 + int.from_bytes(body[:4], "big")
    header, rest = json.loads(body[4:end]), body[end:]
    context = dataclasses.replace(
        context,
        terms=terms_of(header, context),
        cohort=tuple(header["asked"]),
        vouch=header["vouch"],
        relies=header["relies"],
        scores=header["scores"],
        subjects=tuple(bytes.fromhex(subject) for subject in header["subjects"]),
    )
    values = (
        None
        if header["values"] is None
        else np.frombuffer(rest, WORD, offset=header["client"]).astype(np.uint64)
    )
    masked = MaskedParty(context, np.zeros(0, np.uint64), header["tokens"], header["counted"])
    masked.values, masked.size = values, header["size"]
    if (check := header["check"]) is not None:
        masked.check = SumCheck(bytes.fromhex(check["key"]), tuple(check["survivors"]))
    if header["client"]:
        kept = rest[: header["client"]]
        masked.client = thaw_client(
            kept, context.name, context.identity, ring_of=masked.ring, ledger=context.sums
        )
    return masked


def terms_of(header: dict[str, Any], context: PartyContext) -> Terms:
    """As far as a half needs them once its values are spelled."""
    asked = tuple(header["asked"])
    shares = shares_of(context.policy, asked, context.place.attempt) if header["counted"] else None
    told, adapter = bytes.fromhex(header["told"]), bytes.fromhex(header["adapter"])
    ranges = tuple(Range(*one) for one in header["ranges"])
    return Terms(ranges, told=told, start=header["start"], shares=shares, adapter=adapter)


def narrow(values: Values) -> bytes:
    """Values in as few bytes as they need; the ring widens them again."""
    narrowed = values.astype(WORD)
    if not np.array_equal(narrowed, values):
        raise ProtocolError(
            f"a value needs more than {MAX_BITS} bits; an update does not hold such values"
        )  # our bug
    return narrowed.tobytes()
