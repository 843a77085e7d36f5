"""t-of-n decryption of a sum: no member holds the key, and the coordinator neither.

Reading order: `plan` (sizes, noise, limits), `residues` (numbers modulo q, Shamir), `lattice`
(SEAL), `memory` (what is never done twice), `holding` (what a member has), `ceremony` (the joint
key), `contribution` (what goes up), `veil` (parts that are added in the dark), `partial` (what t
members do to open one sum), `ring` (all of it as a ring for secure aggregation). Knows no input or
output; messages are bytes that the caller carries.
"""

from .contribution import REHEARSAL, Contributor, Gathering, parse, request
from .dkg import Ceremony, check_card, check_opening, letter
from .key_share import KeyShare
from .memory import ThresholdMemory
from .partial import Holder, PartialReader, check_part, together
from .plan import JointPacking, ThresholdPlan
from .ring import Close, JointRing, JointTally, closing, opened_bytes

__all__ = [
    "REHEARSAL",
    "Ceremony",
    "Close",
    "Contributor",
    "Gathering",
    "Holder",
    "JointPacking",
    "JointRing",
    "JointTally",
    "KeyShare",
    "PartialReader",
    "ThresholdMemory",
    "ThresholdPlan",
    "check_card",
    "check_opening",
    "check_part",
    "closing",
    "letter",
    "opened_bytes",
    "parse",
    "request",
    "together",
]
