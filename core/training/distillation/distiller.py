"""A student learns to say what its teacher says: one run, in one folder.

    teacher-….safetensors    what the teacher says of the data; once       targets
    run.json                 which run this folder is of
    state.safetensors        weights and moments of the last saved step; while it runs
    student.gguf             the result, written last

Knows steps, their rate and files. Knows nothing of layers or likelihoods.
Always: the same teacher, student, data, settings, precision and thread count give the same student
bit for bit, killed and resumed or not; memory is the student's weights with gradient and moments
(16 bytes each), the embedding, and one batch: not the data's size.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ...errors import ConfigError, TrainingError
from ...models import to_gguf
from ...models.weights import Weights
from ...paths import make_folder, write_atomically
from ..examples import Example
from ..packing import TokenExample, input_tokens, plan, shared_start, tokenize
from ..precision import dtype_name, resolve_dtype
from .loss import DistillationLoss, distance
from .settings import DistillationSettings
from .student import StudentNetwork, evenly, same_words
from .targets import TargetSettings, TeacherTargets

RUN, STATE = "run.json", "state.safetensors"
STUDENT = "student.gguf"
SAVE_STEPS = 50
WARMUP = 0.05  # share of the steps in which the rate rises
LAST_RATE = 0.1  # of the rate, at the last step
MOST_NORM = 1.0  # of a step's whole gradient
MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch's AdamW calls them
TAPS = 4  # layers whose output is compared, where hidden states are


@dataclass(frozen=True, slots=True)
class DistillationProgress:
    """What a run tells."""

    part: str  # "teacher" or "student"
    done: int  # examples of the teacher, steps of the student
    total: int
    loss: float | None = None  # of the step, mean over its tokens


OnDistillation = Callable[[DistillationProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationResult:
    """What a run left."""

    student: Path  # a GGUF file
    steps: int
    resumed: int  # step from which this process went on; 0: from the beginning
    loss: float  # mean of the last tenth of the steps that this process took


class Distiller:
    """One run."""

    def __init__(
        self,
        teacher: Weights,
        student: Weights,
        examples: Sequence[Example],
        settings: DistillationSettings,
        folder: Path,
        *,
        quant_type: str = "Q8_0",
        precision: str = "auto",
        on_progress: OnDistillation = lambda _: None,
        save_steps: int = SAVE_STEPS,
    ) -> None:
        """Look at everything before anything is computed.

        Args:
            student: plain numbers, as `student.kept` makes them.
            quant_type: of the result's matrices, as `to_gguf.save` knows them.

        Raises:
            ModelError: student and teacher do not fit each other, or GGUF cannot hold the student.
            DataError: examples that do not fit the model. ConfigError: the folder is another run's,
                or a finished one's.
        """
        same_words(teacher, student)
        teacher_layers, layers = (one.architecture.num_layers for one in (teacher, student))
        # of the student the layers whose output is compared, never its last: that has the logits
        self.taps = taps_of(layers) if settings.hidden else ()
        if self.taps and teacher.architecture.hidden_size != student.architecture.hidden_size:
            raise ConfigError(
                f"hidden states of {teacher.architecture.hidden_size} numbers cannot be compared "
                f"with {student.architecture.hidden_size}; set hidden to 0"
            )
        metadata, extra = to_gguf.describe(student, quant_type)
        to_gguf.check(student, metadata, extra, list(to_gguf.plan(student, quant_type)))
        self.teacher, self.student, self.settings, self.folder = teacher, student, settings, folder
        self.quant_type, self.on_progress, self.save_steps = quant_type, on_progress, save_steps
        self.dtype = resolve_dtype(precision)
        longest = min(one.architecture.context_length for one in (teacher, student))
        self.tokens = tokenize(examples, teacher.tokenizer, longest=longest)
        self.shared = shared_start(self.tokens)
        # the teacher's layer at the same share of its depth
        deep = tuple(round((tap + 1) / layers * teacher_layers) - 1 for tap in self.taps)
        kept = TargetSettings(settings.temperature, settings.top_k, deep)
        self.targets = TeacherTargets(folder, teacher.digest, self.tokens, kept)
        self.batches = batches_of(len(self.tokens), settings)
        self.claim()

    def claim(self) -> None:
        """Make the folder this run's.

        Raises:
            ConfigError: it is another's, or this one is finished.
        """
        mine = {
            "teacher": self.teacher.digest,
            "student": self.student.digest,
            "data": hashlib.sha256(
                json.dumps([(one.prompt, one.answer) for one in self.tokens]).encode()
            ).hexdigest(),
            "type": self.quant_type,
            "precision": dtype_name(self.dtype),
            **dataclasses.asdict(self.settings),
        }
        path = self.folder / RUN
        if (self.folder / STUDENT).exists():
            raise ConfigError(
                f"{self.folder}: holds a finished student, which is kept; choose another folder"
            )
        if path.exists():
            try:
                found = json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                found = {}
            other = [name for name in mine if found.get(name) != mine[name]]
            if other:
                raise ConfigError(
                    f"{self.folder}: holds a run with another {', '.join(other)}; name what that "
                    f"was begun with, or another folder"
                )
            return
        make_folder(self.folder)
        write_atomically(path, (json.dumps(mine, indent=1) + "\n").encode())

    def run(self) -> DistillationResult:
        """Teacher, steps, file; goes on where the folder's state was left.

        Raises:
            TrainingError: a loss that is not finite, or the disk refuses; what was saved stays.
        """
        self.targets.compute(
            self.teacher,
            self.dtype,
            lambda done, total: self.on_progress(DistillationProgress("teacher", done, total)),
        )
        network = StudentNetwork(self.student, self.dtype)
        moments = Moments(network.trained, self.settings)
        first = moments.load(self.folder / STATE)
        losses = list[float]()
        for number, indices in enumerate(self.batches[first:], start=first + 1):
            moments.rate = self.rate(number)
            losses.append(self.step(network, moments, indices, number))
            self.on_progress(DistillationProgress("student", number, len(self.batches), losses[-1]))
            if number % self.save_steps == 0 and number < len(self.batches):
                moments.save(self.folder / STATE, number)
        last = losses[-max(1, len(losses) // 10) :]
        loss = sum(last) / len(last) if last else math.nan
        to_gguf.save(network.weights(), self.folder / STUDENT, self.quant_type)
        (self.folder / STATE).unlink(missing_ok=True)
        return DistillationResult(
            student=self.folder / STUDENT, steps=len(self.batches), resumed=first, loss=loss
        )

    def step(
        self, network: StudentNetwork, moments: "Moments", indices: Sequence[int], number: int
    ) -> float:
        """One step over some examples; the mean loss of their tokens."""
        some = [self.tokens[index] for index in indices]
        loss = self.loss(network, some, self.targets.of(indices))
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(list(network.trained.values()), MOST_NORM))
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingError(
                f"step {number} of {len(self.batches)}: loss {value}, gradient {norm}, not finite; "
                f"lower lr = {self.settings.lr}"
            )
        moments.step()
        return value

    def loss(
        self,
        network: StudentNetwork,
        some: Sequence[TokenExample],
        targets: tuple[Tensor, Tensor, Tensor | None],
    ) -> Tensor:
        """Mean over the answers' tokens, float32 scalar."""
        ids, likelihoods, hidden = targets
        batch = plan(some, self.shared, network.network.architecture.windows)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            rows, seen = network(input_tokens(some, self.shared), batch, self.taps)
        settings = self.settings
        total: Tensor = DistillationLoss.apply(  # type: ignore[no-untyped-call]
            rows.to(self.dtype),
            network.head,
            ids,
            likelihoods,
            batch.targets,
            settings.temperature,
            settings.hard,
        )
        if hidden is not None:
            apart = [distance(one, wanted) for one, wanted in zip(seen, hidden, strict=True)]
            total = total + settings.hidden * torch.stack(apart).mean()
        return total / len(batch.targets)

    def rate(self, number: int) -> float:
        """The learning rate of a step, from 1: up in a line, then down along a cosine."""
        total = len(self.batches)
        warm = max(1, round(WARMUP * total))
        if number <= warm:
            return self.settings.lr * number / warm
        share = (number - warm) / max(1, total - warm)
        fall = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * share)) / 2
        return self.settings.lr * fall


def taps_of(layers: int) -> tuple[int, ...]:
    """Layers of a student whose output is compared with its teacher's.

    Raises:
        ConfigError: a student of one layer has none.
    """
    if layers < 2:
        raise ConfigError("a student of one layer has no hidden states to compare; set hidden to 0")
    return evenly(layers - 1, min(TAPS, layers - 1)) if layers > 2 else (0,)


def batches_of(count: int, settings: DistillationSettings) -> list[list[int]]:
    """Examples of each step of all epochs: every epoch a new shuffle that follows from the seed."""
    rng = np.random.default_rng([settings.seed])
    batches = []
    for _ in range(settings.epochs):
        shuffled = rng.permutation(count).tolist()
        batches += [
            shuffled[start : start + settings.batch] for start in range(0, count, settings.batch)
        ]
    return batches


class Moments:
    """AdamW over named parameters, which can be written to a file and read back."""

    def __init__(self, trained: dict[str, nn.Parameter], settings: DistillationSettings) -> None:
        self.trained = trained
        self.optimizer = torch.optim.AdamW(
            list(trained.values()),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.rate = settings.lr

    def step(self) -> None:
        """One step at `rate`; gradients are gone afterwards."""
        self.optimizer.param_groups[0]["lr"] = self.rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, path: Path, number: int) -> None:
        """Write weights and moments behind step `number`.

        Raises:
            TrainingError: the disk refuses; what was saved before stays.
        """
        tensors = {name: one.detach() for name, one in self.trained.items()}
        for name, one in self.trained.items():
            kept = self.optimizer.state[one]
            tensors |= {f"{moment}/{name}": kept[moment] for moment in MOMENTS}
        part = path.with_name(f"{path.name}.part")
        try:
            safetensors.torch.save_file(tensors, part, metadata={"step": str(number)})
            part.replace(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise TrainingError(
                f"{path}: cannot be written ({error}); make room, and run the same command again"
            ) from error

    @torch.no_grad()
    def load(self, path: Path) -> int:
        """Take up what was saved; the step behind which it was, 0 if nothing was.

        Raises:
            TrainingError: the file is damaged.
        """
        if not path.is_file():
            return 0
        try:
            with safetensors.safe_open(path, "pt") as file:
                number = int((file.metadata() or {})["step"])
                for name, one in self.trained.items():
                    one.copy_(file.get_tensor(name))
                    self.optimizer.state[one] = {
                        "step": torch.tensor(float(number)),
                        **{
                            moment: file.get_tensor(f"{moment}/{name}").clone()
                            for moment in MOMENTS
                        },
                    }
        except (OSError, KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise TrainingError(
                f"{path}: damaged ({error!s:.200}); delete it, and the same command begins again "
                f"behind the teacher"
            ) from error
        return number
