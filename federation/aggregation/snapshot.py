"""A member's half of an attempt as bytes, where the process that answers one stage is not the one
that answers the next.

Knows every mode's half. Knows nothing of where the bytes lie meanwhile (see
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
from ...crypto.secagg.snapshot import read_config, spell_config
from ...crypto.secagg.snapshot import thaw as thaw_client
from ..spec.compatibility import refused
from ..spec.policy import MAX_BITS, Policy
from .base import AggregationClient, ClientContext, Contributors, Values
from .encrypted import EncryptedClient
from .experimental.threshold import ThresholdClient
from .plain import PlainClient
from .rank_masks import rank_masks_of
from .secagg import MaskedClient
from .update import Terms, seed_of

PLAIN = b"p"
KINDS: dict[type[MaskedClient], bytes] = {
    MaskedClient: b"n",
    EncryptedClient: b"s",
    ThresholdClient: b"t",
}
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


def freeze(half: AggregationClient) -> bytes:
    """Everything a half needs to go on.

    Raises:
        ProtocolError: a half of another mode.
    """
    if isinstance(half, PlainClient):
        return PLAIN + half.packed
    if type(half) not in KINDS or not isinstance(half, MaskedClient):
        raise ProtocolError(f"a {type(half).__name__} cannot be kept between two processes")
    check = (
        None
        if half.check is None
        else {"key": half.check.key.hex(), "survivors": half.check.survivors}
    )
    client = b"" if half.client is None or half.check is not None else freeze_client(half.client)
    values = b"" if half.values is None else narrow(half.values)
    shown = b""
    more: dict[str, Any] = {}
    if isinstance(half, EncryptedClient):
        shown = half.sealed_sum or b""
        opened = half.check is not None and half.config is not None
        more["config"] = spell_config(half.config) if opened and half.config else None
        more["requests"] = half.requests if isinstance(half, ThresholdClient) else 0
    header = json.dumps(
        {
            **more,
            "asked": half.context.cohort,
            "ready": half.told.ready,
            "scoring": half.told.scoring,
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
    return KINDS[type(half)] + len(header).to_bytes(4, "big") + header + client + values + shown


def thaw(data: bytes, context: ClientContext) -> AggregationClient:
    """The half that was frozen.

    Args:
        context: of the same place; who was asked and what was told are taken from the bytes.

    Raises:
        ProtocolError: of another session than the federation file's.
    """
    kind, body = data[:1], data[1:]
    if kind == PLAIN:
        half = object.__new__(PlainClient)  # `__init__` would pack values that are packed
        half.packed = body
        return half
    made = next((one for one, mark in KINDS.items() if mark == kind), None)
    if made is None:
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
    count, at = header["values"] or 0, header["client"]
    values = (
        None
        if header["values"] is None
        else np.frombuffer(rest, WORD, count=count, offset=at).astype(np.uint64)
    )
    masked = made(context, np.zeros(0, np.uint64), header["tokens"], header["counted"])
    masked.values, masked.size = values, header["size"]
    masked.told = Contributors(tuple(header["ready"]), tuple(header["scoring"]))
    if isinstance(masked, EncryptedClient):
        masked.sealed_sum = rest[at + count * np.dtype(WORD).itemsize :] or None
        if header["config"] is not None:
            masked.ring(read_config(header["config"]))
    if isinstance(masked, ThresholdClient):
        masked.requests = header["requests"]
    if (check := header["check"]) is not None:
        masked.check = SumCheck(bytes.fromhex(check["key"]), tuple(check["survivors"]))
    if header["client"]:
        kept = rest[: header["client"]]
        masked.client = thaw_client(
            kept, context.name, context.identity, ring_of=masked.ring, ledger=context.sums
        )
    return masked


def terms_of(header: dict[str, Any], context: ClientContext) -> Terms:
    """As far as a half needs them once its values are spelled."""
    asked = tuple(header["asked"])
    shares = (
        rank_masks_of(context.policy, asked, context.place.attempt) if header["counted"] else None
    )
    told, adapter = bytes.fromhex(header["told"]), bytes.fromhex(header["adapter"])
    ranges = tuple(Range(*one) for one in header["ranges"])
    return Terms(
        ranges,
        seed_of(context.policy, context.place),
        told=told,
        start=header["start"],
        shares=shares,
        adapter=adapter,
    )


def narrow(values: Values) -> bytes:
    """Values in as few bytes as they need; the ring widens them again."""
    narrowed = values.astype(WORD)
    if not np.array_equal(narrowed, values):
        raise ProtocolError(
            f"a value needs more than {MAX_BITS} bits; an update does not hold such values"
        )  # our bug
    return narrowed.tobytes()
