"""What a federation's rounds may cost in privacy: paid before the work, by every member and by the coordinator.

Knows the federation's noise and one account. Knows nothing of letters or training.
Always: nothing is paid where the file names no noise; a round that cannot be paid raises before anything else happens.

Every attempt is paid for by itself. An attempt that ends without a sum costs as much as one with: a member that fell silent
after it had sent its masked contribution cannot know whether the others opened the sum with it, and the next attempt, with
other members, would show it once more. So the cost is never too low; it is too high by the attempts that came to nothing.
"""

from pathlib import Path

from ...crypto.accountant import Account, Budget, Spent, Step
from ..exchange.messages import Place
from ..membership.policy import Policy
from ..protection.terms import noise_of


class Purse:
    """One member's privacy in one federation; or, at the coordinator, any member's that took part in every attempt.

    Args:
        size: values of an update.
        whose: a member's name, or "any member".
        path: the history's file; None keeps it in memory (simulations).
    """

    def __init__(self, policy: Policy, size: int, whose: str, path: Path | None = None) -> None:
        """Take up the history where its file left it.

        Raises:
            ConfigError: a history of somebody else, or noise that does not fit the federation's bits.
        """
        self.step: Step | None = None
        noise = noise_of(policy, size)
        if noise is None:
            return
        self.step = Step.of(noise)
        budget = Budget(epsilon=policy.privacy.epsilon, delta=policy.privacy.delta)
        self.account = Account(budget, scope=f"{policy.federation.hex()} {whose}", path=path)

    def pay(self, place: Place) -> Spent | None:
        """Pay for one attempt; what is spent with it, None where there is no noise.

        Raises:
            BudgetError: it would go past the budget; nothing was changed.
            QuietchoirError: the disk refused; nothing was changed.
        """
        if self.step is None:
            return None
        return self.account.charge(f"{place.run}/{place.round}/{place.attempt}", self.step)

    def spent(self) -> dict[str, object] | None:
        """Epsilon with its delta, unit, sampling assumption, steps and method, and the budget; None where there is no noise."""
        if self.step is None:
            return None
        return {**self.account.epsilon().record(), "budget": self.account.budget.epsilon}
