"""What a federation's rounds may cost in privacy: paid before the work, by every member and by the
coordinator.

Knows the federation's noise and one account. Knows nothing of messages or training.
Always: nothing is paid where the file names no noise; a round that cannot be paid raises before
anything else happens.

Every attempt is paid for by itself. An attempt that ends without a sum costs as much as one with: a
member that fell silent after it had sent its masked contribution cannot know whether the others
opened the sum with it, and the next attempt, with other members, would show it once more. An
attempt that is worked twice (a message replayed to a member that lost its record of what it
answered) is paid twice. So the cost is never too low; it is too high by the attempts that came to
nothing.
"""

from collections.abc import Iterable
from contextlib import nullcontext

from ...core.errors import FederationError
from ...crypto.privacy.accountant import Account, Budget, PrivacyStep, Spent, compose
from ..aggregation.update import noise_of
from ..spec.policy import Policy
from ..store.database import Database
from ..store.privacy_book import PrivacyBook
from ..wire.messages import RoundId

ANY = "any member"  # whose account a coordinator keeps that asks whoever the draw gives


class PrivacyAccountant:
    """One member's privacy in one federation; or, at the coordinator, any member's that took part
    in every attempt.

    Args:
        size: values of an update.
        whose: a member's name, or "any member".
        database: where the history lies; None keeps it in memory (simulations).
        alone: no other account lies there.
    """

    def __init__(
        self,
        policy: Policy,
        size: int,
        whose: str,
        database: Database | None = None,
        *,
        alone: bool = True,
    ) -> None:
        """Take up the history where it was left.

        Raises:
            ConfigError: a history of somebody else, or noise that does not fit the federation's
            bits.
        """
        self.step: PrivacyStep | None = None
        noise = noise_of(policy, size)
        if noise is None:
            return
        self.step = PrivacyStep.of(noise)
        budget = Budget(epsilon=policy.privacy.epsilon, delta=policy.privacy.delta)
        book = None if database is None else PrivacyBook(database, alone=alone)
        self.account = Account(budget, scope=f"{policy.federation.hex()} {whose}", book=book)
        if database is not None:
            database.forget.append(self.account.reread)

    def charge(self, round_id: RoundId) -> Spent | None:
        """Pay for one attempt; what is spent with it, None where there is no noise.

        Raises:
            BudgetError: it would go past the budget; nothing was changed.
            QuietchoirError: the disk refused; nothing was changed.
        """
        if self.step is None:
            return None
        return self.account.charge(f"{round_id.run}/{round_id.round}/{round_id.attempt}", self.step)

    def affords(self) -> bool:
        """Could one more attempt be paid for now?"""
        if self.step is None:
            return True
        steps = [step for _, step in self.account.history]
        return (
            compose([*steps, self.step], self.account.budget.delta).epsilon
            <= self.account.budget.epsilon
        )

    def spent(self) -> dict[str, object] | None:
        """Epsilon with its delta, unit, sampling assumption, steps and method, and the budget;
        None where there is no noise.
        """
        if self.step is None:
            return None
        return {**self.account.epsilon().record(), "budget": self.account.budget.epsilon}


class PrivacyAccountants:
    """The coordinator's books where it chooses whom it sums: an account for each member, as that
    member keeps its own.

    Args:
        database: where the histories lie; None keeps them in memory (simulations).
    """

    def __init__(self, policy: Policy, size: int, database: Database | None = None) -> None:
        """Take up the histories where they were left.

        Raises:
            ConfigError: as `PrivacyAccountant`.
        """
        self.policy, self.size, self.database = policy, size, database
        self.each: dict[str, PrivacyAccountant] = {}
        for member in policy.members:
            self.of(member.name)

    def of(self, name: str) -> PrivacyAccountant:
        """One member's; a new one for a member that came later."""
        if name not in self.each:
            self.each[name] = PrivacyAccountant(
                self.policy, self.size, name, self.database, alone=False
            )
        return self.each[name]

    def charge(self, names: Iterable[str], round_id: RoundId) -> Spent | None:
        """Pay for one attempt of these members; what the one who has spent most has spent, None
        where there is no noise.

        Raises:
            BudgetError: one of them cannot; ask `affords` before.
            QuietchoirError: the disk refused; nobody has paid.
        """
        with nullcontext() if self.database is None else self.database.step():
            for name in names:
                self.of(name).charge(round_id)
        worst = self.worst()
        return None if worst.step is None else worst.account.epsilon()

    def worst(self) -> PrivacyAccountant:
        """Of the member that has spent most."""
        return max(
            self.each.values(),
            key=lambda one: 0.0 if one.step is None else one.account.epsilon().epsilon,
        )

    def part(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Members that could pay for one more attempt, and those that could not."""
        can = {name: self.of(name).affords() for name in names}
        return [name for name, good in can.items() if good], [
            name for name, good in can.items() if not good
        ]


def check_books(database: Database, *, buffered: bool) -> None:
    """Require that a run's privacy was accounted for as it will be: one account for any member, or
    one for each.

    Raises:
        FederationError: the schedule has changed within a run.
    """
    accounts = database.rows("SELECT DISTINCT account FROM charges")
    if any(account.endswith(f" {ANY}") == buffered for (account,) in accounts):
        raise FederationError(
            f"{database.path}: this run's privacy was accounted for under another schedule.rounds; "
            "a run keeps its own: finish it under the file it began with, or choose another --state"
        )
