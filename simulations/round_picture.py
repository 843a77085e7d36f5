"""The picture of one round: four voices, four noises, one sum.

Knows how to draw. The noises drawn are real: each curve is the voice plus masks that cancel in the
sum.
Always: the same picture from the same seed.
"""

from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 960, 470
INK, SOFT, PAPER, LINE = "#1d2530", "#5b6675", "#ffffff", "#d5dbe3"
COLOURS = ("#2f6fdb", "#d9792b", "#2f9e6d", "#a04bc4")
ROWS = (96, 186, 276, 366)  # the nodes' heights on the page
POINTS = 120
RING = 4.0  # the drawn numbers live in [-2, 2) and wrap around, as the real ones do in theirs


def voices(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Four smooth updates and four masks that add up to nothing modulo 4; both [4, POINTS]."""
    x = np.linspace(0, 2 * np.pi, POINTS)
    smooth = np.stack(
        [np.sin(x * (i + 1) / 2 + i) + 0.5 * np.cos(x * (3 - i % 3)) for i in range(4)]
    )
    masks = rng.uniform(-RING / 2, RING / 2, (4, POINTS))
    masks[3] = -masks[:3].sum(0)
    return smooth, masks


def curve(
    values: np.ndarray, left: float, middle: float, width: float, height: float, colour: str
) -> str:
    """One line through `values` in a box of the page."""
    x = left + np.linspace(0, width, len(values))
    y = middle - values / 2 * height / 2
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8" '
        f'stroke-linejoin="round"/>'
    )


def box(left: float, top: float, width: float, height: float) -> str:
    return (
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="10" fill="#f7f9fb" '
        f'stroke="{LINE}"/>'
    )


def text(
    x: float,
    y: float,
    words: str,
    size: int = 13,
    colour: str = SOFT,
    anchor: str = "middle",
    weight: int = 400,
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{words}</text>'
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    bend = (x1 + x2) / 2
    return (
        f'<path d="M{x1},{y1} C{bend},{y1} {bend},{y2} {x2},{y2}" fill="none" stroke="{SOFT}" '
        'stroke-width="1.3" marker-end="url(#tip)"/>'
    )


def draw(seed: int = 3) -> str:
    """The whole picture as SVG text."""
    clear, masks = voices(np.random.default_rng(seed))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" '
        'role="img" aria-label="One round: each node adds masks to its update; they cancel in the '
        'sum.">',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{SOFT}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="{PAPER}"/>',
        text(150, 36, "in the node", 15, INK, weight=600),
        text(150, 54, "what it learned, never sent"),
        text(445, 36, "on the wire", 15, INK, weight=600),
        text(445, 54, "update + masks, modulo 2^k"),
        text(800, 36, "at the coordinator", 15, INK, weight=600),
        text(800, 54, "the masks cancel in the sum"),
    ]
    for row, middle in enumerate(ROWS):
        parts += [
            box(40, middle - 36, 220, 72),
            curve(clear[row], 55, middle, 190, 52, COLOURS[row]),
            arrow(264, middle, 332, middle),
            box(336, middle - 36, 220, 72),
            curve(
                (clear[row] + masks[row] + RING / 2) % RING - RING / 2, 351, middle, 190, 52, SOFT
            ),
            arrow(560, middle, 684, 231 + (row - 1.5) * 16),
        ]
    parts += [
        box(688, 166, 230, 130),
        curve(clear.sum(0) * 0.4, 705, 224, 196, 96, INK),
        text(803, 286, "only this is ever opened", 12),
        f'<path d="M803,300 C803,420 760,440 640,440 L150,440 C150,440 150,430 150,412" '
        f'fill="none" stroke="{SOFT}" '
        'stroke-width="1.3" stroke-dasharray="5 4" marker-end="url(#tip)"/>',
        text(445, 458, "the new shared adapter, back to every node", 13),
        "</svg>",
    ]
    return "\n".join(parts)


def write(folder: Path) -> Path:
    """Write `round.svg` into `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "round.svg"
    path.write_text(draw() + "\n", "utf-8")
    return path
