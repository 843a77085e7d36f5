"""What checking a guessed token costs on this machine.

Knows how long steps took. Knows nothing of tokens.
Always: one slow step changes little, and what was learned from slow ones wears off.
"""

SLOPE = 4.0  # rows that a step's fixed cost is worth, until steps have been measured
FRESH = 0.1  # weight of the newest measurement
FADING = 0.005  # how far each plain step draws a price back to where it began


class Price:
    """Seconds of steps in which everybody answers, by how many answer."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}  # answers in a step without guesses -> seconds
        self._row: dict[int, float] = {}  # answers -> cost of one more row, as a share of the step

    def of_row(self, answers: int) -> float:
        """The cost of one more row beside `answers`, as a share of what one answer's token
        costs.
        """
        return self._row.get(answers, _first(answers)) * answers

    def learn(self, answers: int, guesses: int, seconds: float) -> None:
        """A step of `answers` rows and `guesses` more took `seconds`."""
        plain = self._plain.get(answers)
        price = self._row.get(answers, _first(answers))
        if not guesses:
            self._plain[answers] = seconds if plain is None else plain + FRESH * (seconds - plain)
            self._row[answers] = price + FADING * (_first(answers) - price)
        elif plain:
            found = min(max((seconds / plain - 1) / guesses, 0.0), 3 * _first(answers))
            self._row[answers] = price + FRESH * (found - price)


def _first(answers: int) -> float:
    return 1 / (answers + SLOPE)
