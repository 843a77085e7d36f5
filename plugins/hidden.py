"""Characters that a reader does not see though a model reads them.

Knows which characters have no picture, and where scripts and emoji need them all the same. Knows
nothing of terminals: `core/screen.py` does.
Always: joiners, selectors and direction marks stay where they stand singly beside letters; a run of
them, which could spell a message, does not. A character that is only newer than Python's tables
stays.

Not covered: texts that are seen and mislead all the same; one selector behind each of many letters.
Source: Unicode's Default_Ignorable_Code_Point; Unicode Technical Standard 51 (emoji sequences);
Boucher et al. 2021, "Bad Characters".
"""

import re

from ..core.screen import visible

# Beside letters: joiners, direction marks, variation selectors.
USEFUL = "\u061c\u200c-\u200f\ufe00-\ufe0f\U000e0100-\U000e01ef"
# Never: soft and zero-width spaces, fillers, invisible operators, tags, private and impossible
# characters, isolates.
USELESS = (
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u206f\u202a-\u202e\u3164"
    "\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
    "\ue000-\uf8ff\U000f0000-\U0010ffff\ufdd0-\ufdef\ufffe\uffff"
)
# of a region, spelled in tags
FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
BESIDE = (
    f"(?<=[^\\s{USEFUL}])[{USEFUL}]{{1,2}}(?![{USEFUL}])"
    f"|(?<![{USEFUL}])[{USEFUL}](?=[^\\s{USEFUL}])"
)
HIDDEN = re.compile(f"(?P<kept>{FLAG}|{BESIDE})|[{USEFUL}{USELESS}]")


def legible(text: str) -> str:
    """`text` without what a reader cannot see and without what a terminal obeys."""
    return HIDDEN.sub(lambda found: found["kept"] or "", visible(text))
