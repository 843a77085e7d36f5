"""Two pictures of `docs/architecture.md`: the life of a request, the life of an update.

Knows boxes, lanes and arrows. Knows nothing of what the steps do; their numbers are the page's.
Always: the same picture from the same lists.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .round_picture import COLOURS, INK, LINE, PAPER, SOFT, text

WIDTH, LEFT, TOP = 960, 150, 32
COLUMN, LANE = 200, 108  # pixels from one box to the next, to the right and down
BOX_WIDTH, BOX_HEIGHT = 176, 72


@dataclass(frozen=True, slots=True)
class Box:
    """One step: where it stands, and in words."""

    number: str
    column: float
    lane: int
    title: str
    words: str = ""

    @property
    def left(self) -> float:
        """Pixels."""
        return LEFT + self.column * COLUMN

    @property
    def top(self) -> float:
        """Pixels."""
        return TOP + self.lane * LANE


@dataclass(frozen=True, slots=True)
class Picture:
    """Lanes from above to below, steps in order; each leads to the next unless said otherwise."""

    name: str
    label: str
    lanes: tuple[str, ...]
    boxes: tuple[Box, ...]
    leads: tuple[tuple[str, str], ...]

    def draw(self) -> str:
        """As SVG."""
        height = TOP + len(self.lanes) * LANE + 8
        known = {box.number: box for box in self.boxes}
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'font-family="system-ui, sans-serif" role="img" aria-label="{self.label}">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{SOFT}"/>'
            "</marker></defs>",
            f'<rect width="{WIDTH}" height="{height}" rx="14" fill="{PAPER}"/>',
        ]
        for place, lane in enumerate(self.lanes):
            middle = TOP + place * LANE + BOX_HEIGHT / 2
            top = TOP + place * LANE - 16
            parts.append(
                f'<rect x="12" y="{top}" width="{WIDTH - 24}" height="{LANE - 6}" rx="10" '
                f'fill="#f7f9fb" stroke="{LINE}"/>'
            )
            words = lane.split("\n")
            for row, line in enumerate(words):
                y = middle + 5 + (row - (len(words) - 1) / 2) * 17
                parts.append(text(26, y, line, 13, INK, "start", 600 if row == 0 else 400))
        for one, other in self.leads:
            parts.append(lead(known[one], known[other], aside=(other, one) in self.leads))
        parts += [drawn(box) for box in self.boxes]
        return "\n".join([*parts, "</svg>"])


def lead(one: Box, other: Box, aside: bool) -> str:
    """An arrow from the side of one box to that of the next; aside, where another comes back."""
    if one.lane == other.lane:
        ahead = other.column > one.column
        x1, x2 = (one.left + BOX_WIDTH, other.left) if ahead else (one.left, other.left + BOX_WIDTH)
        y1 = y2 = one.top + BOX_HEIGHT / 2
        path = f"M{x1},{y1} L{x2},{y2}"
    else:
        down = other.lane > one.lane
        x1, x2 = one.left + BOX_WIDTH / 2, other.left + BOX_WIDTH / 2
        shift = (24 if down else -24) if aside else 0
        x1, x2 = x1 + shift, x2 + shift
        y1 = one.top + (BOX_HEIGHT if down else 0)
        y2 = other.top + (0 if down else BOX_HEIGHT)
        bend = (y1 + y2) / 2
        path = f"M{x1},{y1} C{x1},{bend} {x2},{bend} {x2},{y2}"
    return (
        f'<path d="{path}" fill="none" stroke="{SOFT}" stroke-width="1.4" marker-end="url(#tip)"/>'
    )


def drawn(box: Box) -> str:
    """A numbered box with one line in bold and up to two below."""
    colour = COLOURS[box.lane % len(COLOURS)]
    rows = box.words.split("\n")
    return "\n".join(
        [
            f'<rect x="{box.left}" y="{box.top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" '
            f'fill="{PAPER}" stroke="{colour}" stroke-width="1.4"/>',
            text(box.left + 10, box.top + 21, box.number, 13, colour, "start", 700),
            text(
                box.left + 14 + 9 * len(box.number), box.top + 21, box.title, 13, INK, "start", 600
            ),
            *(
                text(box.left + 10, box.top + 41 + 16 * row, line, 12, SOFT, "start")
                for row, line in enumerate(rows)
            ),
        ]
    )


def chain(*numbers: str) -> tuple[tuple[str, str], ...]:
    """Each leads to the next."""
    return tuple(pairwise(numbers))


REQUEST = Picture(
    "request",
    "The life of a request: server, assistant, engine thread, and processes of their own.",
    (
        "server\nevent loop",
        "assistant\nevent loop",
        "engine\nits own thread",
        "processes\nconfined",
    ),
    (
        Box("1", 0, 0, "guard", "host, origin, token;\nthen the route"),
        Box("2", 1, 0, "body", "one schema, read once,\nunknown keys refused"),
        Box("8", 3, 0, "answer", "JSON, or one event\na piece of text"),
        Box("3", 1, 1, "prompt", "template, budget,\nwhich tools"),
        Box("7", 3, 1, "text or call", "held back while it\ncould be a call"),
        Box("4", 0, 2, "submit", "queue; shared blocks\nof earlier prompts"),
        Box("5", 1, 2, "step", "plan → forward →\nsample → commit"),
        Box("6", 2, 2, "output", "tokens to whole messages,\nstop texts"),
        Box("4a", 0, 3, "grammar", "a schema compiles in\na worker first"),
        Box("7a", 3, 3, "tool", "a plugin answers in\nits sandbox"),
    ),
    chain("1", "2", "3", "4", "4a", "4", "5", "6", "7", "7a", "7", "8"),
)
UPDATE = Picture(
    "update",
    "The life of an update: coordinator, the wire, member, and the member's trainer.",
    ("coordinator", "on the wire\nsigned messages", "member", "trainer"),
    (
        Box("1", 0, 0, "attempt", "its number on disk,\nprivacy paid, cohort drawn"),
        Box("7", 2, 0, "sum", "masks cancel; never\nover fewer than agreed"),
        Box("8", 3, 0, "step", "optimizer, vote,\none transaction"),
        Box("2", 0, 1, "train", "the adapter, or what\nchanged in it"),
        Box("6", 2, 1, "stages", "keys, shares, masked\nnumbers, survivors"),
        Box("9", 3, 1, "delivery", "the finished adapter,\nits signed card"),
        Box("3", 0, 2, "check", "signature, order, draw,\nthe owner's consent"),
        Box("5", 2, 2, "protect", "clip, whole numbers,\nnoise, masks"),
        Box("10", 3, 2, "keep", "by content; activate,\nroll back"),
        Box("4", 1, 3, "learn", "frozen layers once, LoRA,\nloss on answers alone"),
    ),
    chain("1", "2", "3", "4", "5", "6", "7", "8", "9", "10"),
)


def write(folder: Path) -> list[Path]:
    """Write `request.svg` and `update.svg` into `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in (REQUEST, UPDATE):
        path = folder / f"{picture.name}.svg"
        path.write_text(picture.draw() + "\n", "utf-8")
        written.append(path)
    return written
