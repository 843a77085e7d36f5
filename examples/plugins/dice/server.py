"""gretel/dice: rolls dice. Written as a stranger would, for the seed registry."""

import secrets

from quietchoir_sdk import ToolFailure, serve, tool


@tool(read_only=True)
def roll(sides: int = 6, dice: int = 1) -> str:
    "Roll dice and add them up."
    if not (1 <= sides <= 1000 and 1 <= dice <= 100):
        raise ToolFailure("at most 100 dice of at most 1000 sides")
    rolled = [1 + secrets.randbelow(sides) for _ in range(dice)]
    return f"{sum(rolled)} ({', '.join(map(str, rolled))})"


serve("gretel/dice", "1.0.0")
