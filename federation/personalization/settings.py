"""How a personal change is trained: numbers that the owner may set.

Knows defaults and limits. Always: settings that exist can be trained with; nothing heavy is
imported.
"""

import math
from dataclasses import dataclass

from ...core.config import TrainingConfig
from ...core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalSettings:
    """Not tuned: half the federation's default rate, because the shared adapter is near its
    place already.
    """

    # over the owner's examples; 0: no training, an earlier change is carried over as it is
    epochs: int = 2
    lr: float = 5e-3
    batch: int = 16
    proximal: float = 0.0  # Ditto's lambda: pull towards the shared adapter; 0: none

    def __post_init__(self) -> None:
        finite = math.isfinite(self.lr) and math.isfinite(self.proximal)
        if not finite or self.epochs < 0 or self.batch < 1 or self.lr <= 0 or self.proximal < 0:
            raise ConfigError(
                f"epochs = {self.epochs}, lr = {self.lr}, batch = {self.batch}, proximal = "
                f"{self.proximal}: expected epochs "
                "and proximal at least 0, batch at least 1, lr above 0"
            )

    @staticmethod
    def of(config: TrainingConfig) -> "PersonalSettings":
        """What the owner's file says.

        Raises:
            ConfigError: out of range.
        """
        return PersonalSettings(
            epochs=config.personal_epochs, lr=config.personal_lr, proximal=config.personal_proximal
        )
