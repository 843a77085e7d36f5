"""Guessing the next tokens from what was said before.

Knows one sequence's tokens. Knows nothing of the model: a guess is what followed the last time the
same three tokens came.
Always: the same tokens give the same guesses; how often a guess would have been right is counted
whether or not it was checked, so trying again after a bad stretch costs nothing.
Source: Saxena 2023, prompt lookup decoding; Leviathan et al. 2023, equation 1, for the mean run of
right guesses.
"""

from collections.abc import Sequence as Items

LENGTH = 3  # tokens that must recur; two recur by chance, four miss names that stand in new company
FIRST_TRUST = 0.4  # probability that a guess is right, before anything is known
MEMORY = 0.15  # weight of the newest guess in that probability
MARGIN = 1.25  # a guess must be worth this much more than it costs, since both are estimates


class Lookup:
    """Where each three tokens stood last, and how far that has been a good guide."""

    def __init__(self) -> None:
        self.trust = FIRST_TRUST
        # three tokens -> place of the token after them
        self._after: dict[tuple[int, ...], int] = {}
        self._known = 0  # tokens that are looked at

    def draft(self, tokens: Items[int], prompt: int, most: int, price: float) -> tuple[int, ...]:
        """What may follow `tokens`: as many as are worth their price, at most `most`.

        Args:
            prompt: how many of the tokens are not the model's own; they say nothing about its
            habits. price: of checking one guess, as a share of what a token costs.
        """
        self._learn(tokens, prompt)
        length, worth = 0, self.trust
        # the n-th guess counts only if all before it are right
        while length < most and worth > price * MARGIN:
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
