"""What a teacher says of every token of every answer, computed once and kept on disk.

Knows the teacher's forward pass and files of a few hundred examples each. Knows nothing of
students or of training.
Always: one layer of the teacher is dense at a time; a file takes its name when it is whole, so
that what was computed before a kill is not computed again; a file is of one teacher, one data set
and one temperature, whose digest is in its name.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ...errors import DataError, TrainingError
from ...models.transformer import Transformer
from ...models.weights import Weights
from ...paths import make_folder, scratch_file
from ..frozen_layers import cut, dense_linear
from ..packing import TokenExample, input_tokens, plan, shared_start

SHARD_EXAMPLES = 256
LOGIT_ROWS = 128  # rows whose whole vocabulary is in memory at once

OnProgress = Callable[[int, int], None]  # done, in all


@torch.no_grad()
def answer_rows(
    weights: Weights, tokens: Sequence[TokenExample], dtype: torch.dtype, taps: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Hidden rows of all answers behind the last layer, [M, D], and behind each of the layers
    `taps`, [taps, M, D].

    Raises:
        DataError: rows that are not finite in this format.
    """
    shared = shared_start(tokens)
    chunks = cut(list(tokens), shared)
    layouts = [plan(chunk, shared, weights.architecture.windows) for chunk in chunks]
    first = Transformer(weights, dense_linear(dtype), last_layer=0, dtype=dtype)
    hidden = [first.embed(input_tokens(chunk, shared)) for chunk in chunks]

    def answers() -> Tensor:
        return torch.cat([rows.answers(x) for x, rows in zip(hidden, layouts, strict=True)])

    seen = dict[int, Tensor]()
    for layer in range(weights.architecture.num_layers):
        one = Transformer(
            weights, dense_linear(dtype), first_layer=layer, last_layer=layer + 1, dtype=dtype
        )
        hidden = [
            one.layers_forward(x, rows.positions, rows)
            for x, rows in zip(hidden, layouts, strict=True)
        ]
        if layer in taps:
            seen[layer] = answers()
    last = answers()
    if not bool(torch.isfinite(last).all()):
        raise DataError(f"the model's layers overflow in {dtype}; run it in float32")
    tapped = [seen[layer] for layer in taps]
    return last, torch.stack(tapped) if tapped else last.new_zeros(0, *last.shape)


class AnswerHead:
    """Last norm and head of a model, in float32."""

    def __init__(self, weights: Weights) -> None:
        """Decode it: 4 bytes a weight of the vocabulary's matrix."""
        layers = weights.architecture.num_layers
        self.network = Transformer(weights, dense_linear(torch.float32), first_layer=layers)

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Iterator[Tensor]:
        """Hidden rows [M, D] -> logits, float32 [some, V] at a time."""
        for part in torch.split(rows.float(), LOGIT_ROWS):
            yield self.network.logits(part)


def exact_answers(weights: Weights, tokens: Sequence[TokenExample], dtype: torch.dtype) -> int:
    """How many of the answers greedy decoding would give, to the last token."""
    rows, _ = answer_rows(weights, tokens, dtype)
    best = torch.cat([logits.argmax(1) for logits in AnswerHead(weights).logits(rows)])
    said = torch.split(best, [len(example.answer) for example in tokens])
    return sum(
        tuple(one.tolist()) == example.answer for one, example in zip(said, tokens, strict=True)
    )


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """What of the teacher is kept."""

    temperature: float
    top_k: int
    taps: tuple[int, ...]  # of the teacher's layers, whose output is kept as well


class TeacherTargets:
    """The teacher's likelihoods and hidden rows of a data set's answers, read where they are
    needed.
    """

    def __init__(
        self, folder: Path, teacher: str, tokens: Sequence[TokenExample], settings: TargetSettings
    ) -> None:
        """Args: teacher: its digest; folder: where files lie or are written."""
        self.folder, self.tokens, self.settings = folder, tokens, settings
        said = [teacher, settings.temperature, settings.top_k, settings.taps]
        text = json.dumps([*said, [(one.prompt, one.answer) for one in tokens]])
        self.name = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.starts = list(range(0, len(tokens), SHARD_EXAMPLES))

    def path(self, start: int) -> Path:
        """The file of the examples from `start` on."""
        return self.folder / f"teacher-{self.name}-{start // SHARD_EXAMPLES:05}.safetensors"

    @property
    def missing(self) -> list[int]:
        """Files that are to be computed, by their first example."""
        return [start for start in self.starts if not self.path(start).is_file()]

    def compute(
        self, teacher: Weights, dtype: torch.dtype, on_progress: OnProgress = lambda *_: None
    ) -> None:
        """Compute and write what is missing.

        Raises:
            DataError: the teacher overflows. TrainingError: the disk refuses; whole files stay.
        """
        missing = self.missing
        head = AnswerHead(teacher) if missing else None
        for start in missing:
            assert head is not None
            some = self.tokens[start : start + SHARD_EXAMPLES]
            on_progress(start, len(self.tokens))
            found = self.targets_of(teacher, head, some, dtype)
            try:
                make_folder(self.folder)
                with scratch_file(self.path(start)) as scratch:
                    scratch.write_bytes(safetensors.torch.save(found))
            except OSError as error:
                raise TrainingError(
                    f"{self.folder}: the teacher's answers cannot be written ({error}); make room"
                ) from error
        on_progress(len(self.tokens), len(self.tokens))

    def targets_of(
        self, teacher: Weights, head: AnswerHead, some: Sequence[TokenExample], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Of some examples: ids int32 [M, k], likelihoods float32 [M, k], hidden bfloat16
        [taps, M, D].
        """
        settings = self.settings
        last, seen = answer_rows(teacher, some, dtype, settings.taps)
        ids, likelihoods = [], []
        for logits in head.logits(last):
            most = torch.softmax(logits / settings.temperature, dim=1).topk(
                min(settings.top_k, logits.shape[1])
            )
            ids.append(most.indices.int())
            likelihoods.append(most.values)
        found = {"ids": torch.cat(ids), "likelihoods": torch.cat(likelihoods)}
        if settings.taps:
            found["hidden"] = seen.bfloat16()
        return found

    def of(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of the answers of some examples, one behind the other: ids int64 [M, k], likelihoods
        float32 [M, k], hidden [taps, M, D] if any is kept.

        Raises:
            TrainingError: a file is gone or damaged.
        """
        ids, likelihoods, hidden = [], [], []
        for index in indices:
            start = index // SHARD_EXAMPLES * SHARD_EXAMPLES
            before = sum(len(one.answer) for one in self.tokens[start:index])
            rows = slice(before, before + len(self.tokens[index].answer))
            try:
                with safetensors.safe_open(self.path(start), "pt") as file:
                    ids.append(file.get_slice("ids")[rows])
                    likelihoods.append(file.get_slice("likelihoods")[rows])
                    if self.settings.taps:
                        hidden.append(file.get_slice("hidden")[:, rows])
            except (OSError, safetensors.SafetensorError) as error:
                raise TrainingError(
                    f"{self.path(start)}: gone or damaged ({error!s:.200}); delete it, and the "
                    f"same command computes it anew"
                ) from error
        return (
            torch.cat(ids).long(),
            torch.cat(likelihoods).float(),
            torch.cat(hidden, dim=1) if hidden else None,
        )
