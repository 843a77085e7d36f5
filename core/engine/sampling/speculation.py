"""Guessing the next tokens from what was said before, and how many guesses pay.

Knows one sequence's tokens. Knows nothing of the model: a guess is what followed the last time the
same three tokens came; what checking a guess costs on this machine, from how long steps took; and
how often a small model's guesses were right.
Always: the same tokens give the same guesses; how often a guess would have been right is counted
whether or not it was checked, so trying again after a bad stretch costs nothing. One slow step
changes the cost little, and what was learned from slow ones wears off.
Source: Saxena 2023, prompt lookup decoding; Leviathan et al. 2023, equation 1, for the mean run of
right guesses.
"""

import math
from collections import abc

LENGTH = 3  # tokens that must recur; two recur by chance, four miss names that stand in new company
FIRST_TRUST = 0.4  # probability that a guess is right, before anything is known
MEMORY = 0.15  # weight of the newest guess in that probability
SLOPE = 4.0  # rows that a step's fixed cost is worth, until steps have been measured
FRESH = 0.1  # weight of the newest measurement
FADING = 0.005  # how far each plain step draws a cost back to where it began
DRAFT_TRUST = 0.7  # of a small model's guess, before anything is known
DRAFT_GAIN = 1.05  # so much faster a small model must make an answer
RETRY = 32  # tokens until a small model that did not pay is asked again
MARGIN = 1.25  # a guess must be worth this much more than it costs, since both are estimates


class PromptLookup:
    """Where each three tokens stood last, and how far that has been a good guide."""

    def __init__(self) -> None:
        self.trust = FIRST_TRUST
        # three tokens -> place of the token after them
        self._after: dict[tuple[int, ...], int] = {}
        self._known = 0  # tokens that are looked at

    def propose(
        self, tokens: abc.Sequence[int], prompt: int, most: int, cost: float
    ) -> tuple[int, ...]:
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

    def _learn(self, tokens: abc.Sequence[int], prompt: int) -> None:
        """Look at the tokens that have come since the last time."""
        for place in range(max(self._known, LENGTH), len(tokens)):
            before = tuple(tokens[place - LENGTH : place])
            at = self._after.get(before)
            if at is not None and place >= prompt:
                self.trust += MEMORY * ((tokens[at] == tokens[place]) - self.trust)
            self._after[before] = place
        self._known = len(tokens)


class DraftTrust:
    """How good a guide a small model is for one answer, and how many of its guesses pay.

    Unlike `PromptLookup`'s its guesses cost time before they are checked: where none pays, one is
    made every RETRY tokens, to see whether that has changed.
    """

    def __init__(self) -> None:
        self.trust = DRAFT_TRUST  # probability that a guess is right, those before it being so
        self._without = 0  # tokens since the last guess

    def length(self, most: int, cost: float) -> int:
        """How many guesses to make, at most `most`.

        Args:
            cost: of making and checking one, as a share of what a token costs; infinity: not known.
        """
        best, gain, tokens, worth = 0, DRAFT_GAIN, 1.0, 1.0
        for count in range(1, most + 1):
            worth *= self.trust
            tokens += worth  # Leviathan et al. 2023, equation 1
            if (found := tokens / (1 + count * cost)) > gain:
                best, gain = count, found
        if not best:
            self._without += 1
            best = int(most > 0 and cost < 1 and self._without % RETRY == 0)
        return best

    def learn(self, tried: int, right: int) -> None:
        """Of `tried` guesses the first `right` were right."""
        for _ in range(right):
            self.trust += MEMORY * (1 - self.trust)
        if right < tried:
            self.trust -= MEMORY * self.trust


class SpeculationCost:
    """Seconds of steps in which everybody answers, by how many answer."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}  # answers in a step without guesses -> seconds
        self._draft: dict[int, float] = {}  # answers -> seconds of a step of the small model
        self._row: dict[int, float] = {}  # answers -> cost of one more row, as a share of the step

    def of_row(self, answers: int) -> float:
        """The cost of one more row beside `answers`, as a share of what one answer's token
        costs.
        """
        return self._row.get(answers, _first(answers)) * answers

    def of_guess(self, answers: int) -> float:
        """The cost of a small model's guess for each of `answers`, and of checking it, as a share
        of what one answer's token costs; infinity until a step without guesses was measured.
        """
        plain = self._plain.get(answers)
        if not plain:
            return math.inf
        return self.of_row(answers) + self._draft.get(answers, 0.0) / plain

    def learn_draft(self, answers: int, seconds: float) -> None:
        """One more guess for each of some of `answers` took `seconds`."""
        found = self._draft.get(answers)
        self._draft[answers] = seconds if found is None else found + FRESH * (seconds - found)

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
