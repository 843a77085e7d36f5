"""t-of-n decryption of a sum: no member holds the key, and the coordinator neither.

Reading order: `plan` (sizes, noise, limits), `residues` (numbers modulo q, Shamir), `lattice` (SEAL), `ceremony` (the joint
key), `memory` (what is never done twice), `contribution` (what goes up), `partial` (what t members do to open one sum).
Knows no input or output; messages are bytes that the caller carries.
"""

from .ceremony import Ceremony, Holding, letter
from .contribution import REHEARSAL, Contributor, Gathering, request
from .partial import Holder, Reader
from .plan import JointPacking, Plan

__all__ = [
    "REHEARSAL",
    "Ceremony",
    "Contributor",
    "Gathering",
    "Holder",
    "Holding",
    "JointPacking",
    "Plan",
    "Reader",
    "letter",
    "request",
]
