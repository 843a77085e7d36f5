"""The broadcast digest: what all members of one attempt were told alike, as 32 bytes that their
masks follow from.

Knows which parts of messages may differ between members, and why that is harmless. Knows nothing of
masks, training or links.
Always: a member hashes what *it* was told, as it decoded and checked it, never a digest that came
in a message. Whatever is not named in `MAY_DIFFER` is in the digest, in `crypto.secagg`'s own
(`BOUND_LATER`), or compared with the member's own file (`OWN`), so members that were told different
things are in different sessions and their contributions never meet in a sum. A stage that nobody
put into one of these tables is refused by every member.

Source: Pasquini, Francati, Ateniese 2022, "Eluding secure aggregation in federated learning via
model inconsistency", section 7 (a hash of the model goes into what the masks follow from).
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from ...crypto.identity.keys import digest
from ..spec.policy import canonical

PROTOCOL = "quietchoir broadcast 1"

# Stages whose messages are hashed here, whole but for what MAY_DIFFER names.
HASHED = frozenset({"train", "score", "group", "advertise"})

# Fields of a message's own header that every member compares with what it has.
OWN = {
    "kind": "a task",
    "federation": "of the member's own file",
    "policy": "of the member's own file",
    "model": "of the member's own file",
    "run": "in the session, and the one that the member is in",
    "round": "in the session, and later than any before it",
    "attempt": "in the session, and later than any before it",
    "stage": "in the digest, or the one that comes next",
}

# Stages that come once the session stands, and what binds them.
BOUND_LATER = {
    "share": "the list of keys is in every later signature, and the graph follows from it",
    "mask": "who shared is in every later signature; the boxes are each member's own, sealed and "
    "named by sender and receiver",
    "consistency": "each survivor signs the list that it was shown; the threshold must have signed "
    "the very same",
    "unmask": "signatures over that list: whichever of them a member is shown, enough of them "
    "prove the same survivors",
    "attest": "the opened sum with its tag: a member signs it if it fits what it helped to open, "
    "and no other fits",
    "witness": "each survivor signs the encrypted sum that it was shown; the threshold must have "
    "signed the very same",
    "apply": "signatures over that sum: whichever of them a member is shown, enough of them prove "
    "the same sum",
    "open": "as apply; parts are given for the survivors that this member signed, and for nobody "
    "else",
}

# What members of one attempt may be told differently, and why it is harmless.
MAY_DIFFER = {
    "recipient": "each message is for one member; who is asked is hashed, as the cohort",
    "way": "the steps to the adapter that is meant: where they end is hashed, whatever they "
    "started from",
    "holds": "asks for names of states, says nothing, changes nothing",
    "adopt": "no sum follows from it; it has a place of its own",
    "undo": "no sum follows from it; the adapter that it leads to is in the state's tag, which "
    "later work names",
    "greet": "asks for a greeting, says nothing",
    "deal": "boxes are asked for: their receivers' signed greetings, no two alike",
    "take": "one member's box; the key in it is in the session's ring",
    "hand": "boxes are asked for: their receivers' signed greetings, no two alike",
    "follow": "one member's box; the adapter in it is in the state's tag, which the work names and "
    "the ring holds",
    "commit": "who makes a joint key; the key that comes of it is in the session's ring",
    "reveal": "everybody's signed commitments, compared in the ceremony",
    "finish": "one member's boxes of a ceremony; its rehearsal fails if they do not fit",
    "settle": "parts of the rehearsal; the key that comes of it is in the session's ring",
    "send": "plain mode: the coordinator reads every contribution anyway, there is nothing to bind",
}


# Stages of which one of the tables says what binds them, or why nothing need.
KNOWN = HASHED | BOUND_LATER.keys() | MAY_DIFFER.keys()


def of_work(stage: str, header: dict[str, Any], flat: npt.NDArray[np.float32]) -> bytes:
    """The digest of work.

    Args:
        header: everything but the vector, as JSON's types: all of `Work.header`, whatever it has.
        flat: the adapter as this side was told it, or arrived at it [n]; [0] in sealed mode, where
            the header's `state` is a keyed tag, compared with that of the member's own adapter.
    """
    return digest(
        PROTOCOL, "work", stage, canonical(header), hashlib.sha256(bits_of(flat)).digest()
    )


def of_group(call: bytes) -> bytes:
    """The digest of a call for a group, which holds the digests of the work behind each
    contribution.
    """
    return digest(PROTOCOL, "group", call)


def context(told: bytes, ready: bytes) -> bytes:
    """What goes into the session: the digest of the work or group, and the list of who is ready,
    as it was told.
    """
    return digest(PROTOCOL, "session", told, ready)


def bits_of(vector: npt.NDArray[np.float32]) -> memoryview:
    """All bits of a vector [n], 4 bytes a value, little-endian; without a copy where there need be
    none.
    """
    return np.ascontiguousarray(vector, "<f4").data
