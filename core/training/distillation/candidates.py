"""What models whose vocabularies differ can compare: how likely each holds the answers of a public
set.

Knows questions, candidate answers, and one adapter's likelihoods of them. Knows nothing of rounds
or of whose likelihoods it learns from.
Always: the same file is the same items in the same order, and its digest says which; a score is
bounded, and all of an item's scores together say nothing of how long its answers are.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError, TrainingError
from ..examples import Example
from ..trainer import Trainer
from .settings import MAX_VALUES

MAX_BYTES = 64 << 20  # of a public set's file
ROLES = ("system", "user", "assistant")
BATCH = 8  # items of one step


@dataclass(frozen=True, slots=True)
class PublicItem:
    """A conversation that everybody knows, and answers of which nobody says which is right."""

    messages: tuple[dict[str, str], ...]
    answers: tuple[str, ...]

    def examples(self) -> list[Example]:
        """The conversation with each answer."""
        said = ({"role": "assistant", "content": answer} for answer in self.answers)
        return [Example((*self.messages, answer)) for answer in said]


@dataclass(frozen=True, slots=True)
class PublicSet:
    """Items that all have as many answers, and the digest of the file that they are from."""

    items: tuple[PublicItem, ...]
    digest: str  # sha256, hexadecimal

    @property
    def answers(self) -> int:
        """Of each item."""
        return len(self.items[0].answers)

    @property
    def size(self) -> int:
        """Values that are summed."""
        return len(self.items) * self.answers

    @classmethod
    def read(cls, path: Path) -> "PublicSet":
        """Read lines of {"messages": [{"role", "content"}, …], "answers": ["…", "…"]}.

        Raises:
            DataError: not such a file; names the line.
        """
        try:
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MB; take fewer items")
            content = path.read_bytes()
            lines = content.decode("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read ({error!s:.120}); name a JSONL file"
            ) from error
        items = [
            read_item(path, number, line) for number, line in enumerate(lines, 1) if line.strip()
        ]
        counts = {len(item.answers) for item in items}
        if len(counts) != 1:
            raise DataError(
                f"{path}: {len(items)} items with {sorted(counts)} answers; give every item as many"
            )
        found = cls(tuple(items), hashlib.sha256(content).hexdigest())
        if found.size > MAX_VALUES:
            raise DataError(f"{path}: {found.size} answers in all, {MAX_VALUES} at most")
        return found


def read_item(path: Path, number: int, line: str) -> PublicItem:
    """One line.

    Raises:
        DataError: malformed.
    """
    try:
        row = json.loads(line)
        messages, answers = row["messages"], row["answers"]
        good = (
            set(row) == {"messages", "answers"}
            and len(messages) >= 1
            and all(set(one) == {"role", "content"} for one in messages)
            and all(one["role"] in ROLES and isinstance(one["content"], str) for one in messages)
            and messages[-1]["role"] == "user"
            and len(answers) >= 2
            and all(isinstance(one, str) and one for one in answers)
            and len(set(answers)) == len(answers)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise DataError(
            f'{path}, line {number}: expected {{"messages": [{{"role", "content"}}, …, the last of '
            f'the user], "answers": [two or more different texts]}} and nothing else'
        )
    return PublicItem(tuple(messages), tuple(answers))


class CandidateScorer:
    """One model with one adapter shape, asked about one public set."""

    def __init__(self, trainer: Trainer, public: PublicSet, limit: float) -> None:
        """Run the frozen layers over all answers, once.

        Args:
            limit: no score is farther from 0.

        Raises:
            DataError: an item that does not fit the model.
        """
        self.trainer, self.public, self.limit = trainer, public, limit
        examples = [example for item in public.items for example in item.examples()]
        self.prepared = trainer.prepare(examples)
        sizes = torch.tensor(
            [[float(len(one.encode())) for one in item.answers] for item in public.items]
        )
        self.weights = sizes.mean(1, keepdim=True) / sizes  # [items, answers]

    @torch.no_grad()
    def scores(self, flat_b: Tensor) -> Tensor:
        """Centred logarithms of the likelihoods that an adapter gives each item's answers, cut to
        the limit; float32 [items, answers].
        """
        self.trainer.upper.set(flat_b)
        count = len(self.public.items)
        parts = [
            self._likelihoods(range(start, min(start + BATCH, count)))
            for start in range(0, count, BATCH)
        ]
        logs = torch.log_softmax(torch.cat(parts), dim=1)
        return (logs - logs.mean(1, keepdim=True)).clamp(-self.limit, self.limit)

    def learn(
        self, flat_b: Tensor, agreed: Tensor, *, lr: float, epochs: int, seed: int
    ) -> tuple[Tensor, float]:
        """An adapter that gives answers the shares that `agreed` [items, answers] says, as `scores`
        are; with the mean divergence of an item on the way.

        Source: Hinton, Vinyals and Dean 2015, over answers instead of tokens, at temperature 1.

        Raises:
            TrainingError: a loss that is not finite.
        """
        upper, rng = self.trainer.upper, np.random.default_rng([seed])
        shares = torch.softmax(agreed, dim=1)
        master = flat_b.detach().to(torch.float32).clone()
        optimizer = torch.optim.AdamW([master], lr=lr, weight_decay=0.0, fused=True)
        total, steps = 0.0, 0
        for _ in range(epochs):
            order = rng.permutation(len(self.public.items)).tolist()
            for start in range(0, len(order), BATCH):
                items = order[start : start + BATCH]
                upper.set(master)
                own = torch.log_softmax(self._likelihoods(items), dim=1)
                wanted = shares[items]
                loss = (wanted * (wanted.clamp_min(1e-9).log() - own)).sum(1).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                if not bool(torch.isfinite(loss) & torch.isfinite(upper.grad).all()):
                    raise TrainingError(
                        f"learning from the others: loss {float(loss)}, not finite; lower lr = {lr}"
                    )
                master.grad = upper.grad.float()
                optimizer.step()
                total, steps = total + float(loss.detach()), steps + 1
        return master.detach(), total / max(1, steps)

    def _likelihoods(self, items: Sequence[int]) -> Tensor:
        """Logarithm of the likelihood of each whole answer, a byte of it on average, times the
        bytes of the item's average answer, float32 [items, answers]: a model that knows nothing
        would else hold the shortest answer for right.

        Source: per byte, Gao et al. 2021 (lm-evaluation-harness), so that vocabularies compare.
        """
        answers = self.public.answers
        indices = [item * answers + answer for item in items for answer in range(answers)]
        x, batch = self.prepared.batch(indices)
        rows = self.trainer.upper.answers(x, batch)
        logits = (rows @ self.trainer.upper.head.T).float()
        tokens = torch.log_softmax(logits, dim=1).gather(1, batch.targets[:, None])[:, 0]
        whole = torch.zeros(len(indices)).index_add(0, batch.owner, tokens)
        return whole.view(len(items), answers) * self.weights[list(items)]
