"""Guessing the next tokens from what was said before.

Knows one sequence's tokens. Knows nothing of the model: a guess is what followed the last time the
same three tokens came; and what checking a guess costs on this machine, from how long steps took.
Always: the same tokens give the same guesses; how often a guess would have been right is counted
whether or not it was checked, so trying again after a bad stretch costs nothing. One slow step
changes the cost little, and what was learned from slow ones wears off.
Source: Saxena 2023, prompt lookup decoding; Leviathan et al. 2023, equation 1, for the mean run of
right guesses.
"""

from collections.abc import Sequence as Items

LENGTH = 3  # tokens that must recur; two recur by chance, four miss names that stand in new company
FIRST_TRUST = 0.4  # probability that a guess is right, before anything is known
MEMORY = 0.15  # weight of the newest guess in that probability
SLOPE = 4.0  # rows that a step's fixed cost is worth, until steps have been measured
FRESH = 0.1  # weight of the newest measurement
FADING = 0.005  # how far each plain step draws a cost back to where it began
MARGIN = 1.25  # a guess must be worth this much more than it costs, since both are estimates


class PromptLookup:
    """Where each three tokens stood last, and how far that has been a good guide."""

    def __init__(self) -> None:
        self.trust = FIRST_TRUST
        # three tokens -> place of the token after them
        self._after: dict[tuple[int, ...], int] = {}
        self._known = 0  # tokens that are looked at

    def propose(self, tokens: Items[int], prompt: int, most: int, cost: float) -> tuple[int, ...]:
        """What may follow `tokens`: as many as are worth their cost, at most `most`.

        Args:
            prompt: how many of the tokens are not the model's own; they say nothing about its
            habits. cost: of checking one guess, as a share of what a token costs.
        """
        self._learn(tokens, prompt)
        length, worth = 0, self.trust
        # the n-th guess counts only if all before it are right
        while length < most and worth > cost * MARGIN:
            length, worth = length + 1, worth * self.trust
        at = self._after.get(tuple(tokens[-LENGTH:])) if length else None
        return () if at is None else tuple(tokens[at : at + length])

    def _learn(self, tokens: Items[int], prompt: int) -> None:
        """Look at the tokens that have come since the last time."""
        for place in range(max(self._known, LENGTH), len(tokens)):
            before = tuple(tokens[place - LENGTH : place])
            at = self._after.get(before)
            if at is not None and place >= prompt:
                self.trust += MEMORY * ((tokens[at] == tokens[place]) - self.trust)
            self._after[before] = place
        self._known = len(tokens)


class SpeculationCost:
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
        cost = self._row.get(answers, _first(answers))
        if not guesses:
            self._plain[answers] = seconds if plain is None else plain + FRESH * (seconds - plain)
            self._row[answers] = cost + FADING * (_first(answers) - cost)
        elif plain:
            found = min(max((seconds / plain - 1) / guesses, 0.0), 3 * _first(answers))
            self._row[answers] = cost + FRESH * (found - cost)


def _first(answers: int) -> float:
    return 1 / (answers + SLOPE)
