"""A model to fewer bits: which type each matrix gets, and each matrix rounded so that a text's
predictions change least.

Knows types, calibration and a journal on disk. Knows nothing of perplexity, speed or terminals;
`to_gguf` writes the file.
Always: matrices come one layer after the other, each given what the rounded layers before it made;
each is on disk before the next begins, so that a run that was killed goes on; the same model, text
and settings give the same bytes. A model is only ever brought to fewer bits.

Source: Frantar et al. 2022 (GPTQ) for the order of work; `sensitivity.py` for the mixture.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ... import paths
from ...errors import ConfigError, ModelError, ModelFileError
from ...paths import exclusively, make_folder, write_atomically
from .. import to_gguf
from ..quant.feedback import Compensation, compensation, encode_with_feedback
from ..quant.grid import GRIDS, encode_weighted
from ..quant.quantize import ENCODERS, ENDS, ROUTER, SLAB_ROWS, encoded
from ..quant.tensor import PLAIN, QuantTensor
from ..quant.types import GROUP, QUANT_TYPES
from ..to_gguf import TensorPlan
from ..weights import Weights
from . import calibration, sensitivity
from .calibration import CalibrationPass, Gram
from .importance import ImportanceMatrix

TARGETS = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
# What stands in for a type of 256 columns where a matrix has others, as llama.cpp has it.
NARROW = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# What a mixture is made of, the smallest first.
LADDERS = {GROUP: ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), 256: ("Q4_K", "Q5_K", "Q6_K", "Q8_0")}
WHOLE = ("model.embed_positions.weight",)  # tables that no matrix product reads
FISHER_WINDOWS = 4  # of the text, on which sensitivity is measured
FORMAT = 3  # of the journal
PLAN, PART, MADE = "plan.json", ".bin", "made.gguf"  # files of a journal, or how they end
CHECKPOINT = "qat.safetensors"  # and that of a training behind it
OWN, SCRATCH = (f"*{PART}", CHECKPOINT, MADE, PLAN), f"{paths.SCRATCH}*"  # the plan goes last
DIGEST_BYTES = 32  # before a part
LARGEST = 65504.0  # of a weight that is rounded: what float16, of which steps are, reaches
LEAST_IMPORTANCE = 1e-6  # of a matrix's largest: what no text reached is not thrown away

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRequest:
    """What is asked for."""

    quant_type: str  # of `TARGETS`
    size: int = 0  # most bytes of the file; 0: whatever the type takes
    texts: Sequence[Sequence[int]] = field(default=(), repr=False)  # tokens, for calibration
    importance: ImportanceMatrix | None = None  # in place of a text

    def digest(self, weights: Weights) -> str:
        """What a journal must be of, to be gone on with."""
        texts = hashlib.sha256(json.dumps([list(text) for text in self.texts]).encode())
        said = (FORMAT, weights.digest, self.quant_type, self.size, texts.hexdigest())
        found = hashlib.sha256(json.dumps(said).encode())
        for name, means in self.importance.entries.items() if self.importance else ():
            found.update(hashlib.sha256(name.encode()).digest())
            found.update(hashlib.sha256(means.tobytes()).digest())
        return found.hexdigest()


class QuantizationJournal:
    """The matrices that are done, each in a file of its own behind the digest of what it is, of
    which work, and what it holds: bytes that somebody or the disk changed are made again.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        """Go on with what is there, if it is of the same digest and whole, or begin anew.

        Raises:
            ModelError: the folder cannot be written, or is none of ours.
        """
        self.folder, self.digest, self.plan = folder, digest, folder / PLAN
        self.types: dict[str, str] | None = None  # by the file's names
        try:
            if folder.exists() and not self.plan.exists() and any(folder.glob("[!.]*")):
                raise FileExistsError(f"it has no {PLAN}")
            make_folder(folder)
            self.types = self.kept_types()
            if self.types is None:
                for path in self.own_files():
                    path.unlink()
        except OSError as error:
            raise ModelError(
                f"{folder}: holds what this program did not leave there, or cannot be written "
                f"({error}); move it away"
            ) from error

    def kept_types(self) -> dict[str, str] | None:
        """Those that were noted; None where they are of other work, or not as they were written."""
        try:
            kept = json.loads(self.plan.read_bytes())
            types = {str(name): str(kind) for name, kind in kept["types"].items()}
            return types if kept["digest"] == self.digest_of_types(types) else None
        except (
            FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
        ):  # fmt: skip
            return None

    def digest_of_types(self, types: Mapping[str, str]) -> str:
        """What a plan with these types is of."""
        return hashlib.sha256(f"{self.digest}{json.dumps({**types})}".encode()).hexdigest()

    def own_files(self) -> list[Path]:
        """What this program wrote there, halves of it too; of the folder's other files none."""
        kinds = (*(f".{name}.*" for name in OWN), SCRATCH, *OWN)
        return [path for kind in kinds for path in self.folder.glob(kind)]

    def begin(self, types: Mapping[str, str]) -> None:
        """Note which type each tensor gets."""
        self.types = dict(types)
        said = {"digest": self.digest_of_types(types), "types": self.types}
        write_atomically(self.plan, json.dumps(said, indent=1).encode())

    def get(self, name: str, shape: tuple[int, int], quant_type: str) -> QuantTensor | None:
        """One of our tensors, if it is done and as it was written; mapped, not held."""
        path, size = self.folder / f"{name}{PART}", sensitivity.bytes_as(shape, quant_type)
        if not path.is_file() or path.stat().st_size != DIGEST_BYTES + size:
            return None
        # copy-on-write: torch warns of memory that cannot be written
        whole = np.memmap(path, np.uint8, "c")
        held = whole[DIGEST_BYTES:].reshape(shape[0], size // shape[0])
        if whole[:DIGEST_BYTES].tobytes() != self.digest_of(name, quant_type, held):
            return None
        return QuantTensor(quant_type, shape, np.asarray(held))

    def put(self, name: str, blocks: QuantTensor) -> QuantTensor:
        """Keep one; returns it as `get` does."""
        memory = np.ascontiguousarray(blocks.memory).reshape(blocks.shape[0], -1)
        digest = self.digest_of(name, blocks.quant_type, memory)
        write_atomically(self.folder / f"{name}{PART}", digest + memory.tobytes())
        kept = self.get(name, blocks.shape, blocks.quant_type)
        if kept is None:
            raise ModelError(
                f"{self.folder}: {name} was written and is not there as it was; look at the disk, "
                f"and run the same command again"
            )
        return kept

    def digest_of(self, name: str, quant_type: str, held: np.ndarray) -> bytes:
        """Of one tensor of this work."""
        said = hashlib.sha256(json.dumps([self.digest, name, quant_type, held.shape]).encode())
        said.update(np.ascontiguousarray(held).data)
        return said.digest()

    def clear(self) -> None:
        """The work is done."""
        for path in self.own_files():
            path.unlink()
        with suppress(OSError):  # somebody put something else there
            self.folder.rmdir()


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """One quantisation at a time that writes `out`: a second one would take its journal away.

    Raises:
        ModelError: another one is under way, or there is no room or permission.
    """
    with ExitStack() as held:
        try:
            make_folder(out.parent)
            held.enter_context(exclusively(out.with_name(f".{out.name}.lock")))
        except BlockingIOError:
            raise ModelError(
                f"{out}: is being made already, by another program; wait for it, or name another "
                f"file"
            ) from None
        except OSError as error:
            raise ModelError(f"{out}: cannot be written ({error}); name another place") from error
        yield


def journal_of(out: Path) -> Path:
    """Where the journal of a file to be lies."""
    return out.with_name(f"{out.name}.journal")


def quantize(
    weights: Weights,
    request: QuantizationRequest,
    journal: QuantizationJournal,
    tell: Tell = lambda words: None,
) -> Weights:
    """The same model with its matrices as blocks of few bits, mapped from the journal.

    Args:
        tell: hears, now and then, what is being done.

    Raises:
        ConfigError: the size cannot be kept, or a type that is not written.
        ModelFileError: a model that has so few bits already, that GGUF cannot hold, or whose
        numbers are not finite. DataError: a calibration text without two tokens.
    """
    plans = prepared(weights, request)
    if journal.types is None:
        journal.begin(chosen_types(weights, request, plans, tell))
    kinds = changing(weights, plans, journal.types or {})
    if not any(kind in GRIDS for kind in kinds.values()):
        held = weights.tensors["model.layers.0." + first_matrix(weights)].quant_type
        raise ModelFileError(
            f"its matrices are {held} already, and {request.quant_type} is not fewer bits; start "
            f"from the original model, or choose a smaller type"
        )
    made = LayerRounding(weights, kinds, journal, tell).all(request, plans)
    tensors = {**weights.tensors, **made}
    if is_tied(weights):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return replace(weights, tensors=tensors)


def plainly(weights: Weights, like: Weights) -> Weights:
    """The same model rounded to the types of another one, no text asked: what there is to win."""
    made = {
        id(blocks): encoded(weights.tensors[name], blocks.quant_type)
        for name, blocks in like.tensors.items()
        if blocks.quant_type in GRIDS and blocks is not weights.tensors[name]
    }
    tensors = {
        name: made.get(id(blocks), weights.tensors[name]) for name, blocks in like.tensors.items()
    }
    return replace(weights, tensors=tensors)


def is_tied(weights: Weights) -> bool:
    """Whether the embedding is the head."""
    return weights.tensors["lm_head.weight"] is weights.tensors["model.embed_tokens.weight"]


def first_matrix(weights: Weights) -> str:
    """The name of one of a layer's matrices."""
    own = weights.architecture.layer_shapes(0)
    return next(name for name, shape in own.items() if is_matrix(name, shape))


def changing(
    weights: Weights, plans: Sequence[TensorPlan], types: Mapping[str, str]
) -> dict[str, str]:
    """The types of those of our tensors that will be held otherwise than they are."""
    found = {name: types[one.name] for one in plans for name in one.parts if one.name in types}
    return {name: kind for name, kind in found.items() if weights.tensors[name].quant_type != kind}


def prepared(weights: Weights, request: QuantizationRequest) -> list[TensorPlan]:
    """Every tensor of the file to be, once all is checked that can be before the work begins."""
    if request.quant_type not in TARGETS:
        raise ConfigError(f"no type {request.quant_type}; choose one of {', '.join(TARGETS)}")
    to_gguf.describe(weights, request.quant_type)  # refuses what is not written
    return list(to_gguf.plan(weights, None))


def is_matrix(name: str, shape: tuple[int, int]) -> bool:
    """Whether a tensor is rounded at all: vectors, routers and tables of positions are kept."""
    return shape[0] > 1 and not name.endswith((ROUTER, ".bias")) and name not in WHOLE


def bits(quant_type: str) -> float:
    """Of a weight."""
    form = QUANT_TYPES[quant_type]
    return 8 * form.size / form.columns


def type_for(name: str, shape: tuple[int, int], quant_type: str) -> str:
    """What a tensor becomes without a budget: the network's ends 6 or 8 bits at least, what fits no
    block float16.
    """
    if not is_matrix(name, shape):
        return "F32" if shape[0] == 1 or name.endswith(ROUTER) else "F16"
    if name in ENDS and quant_type in ("Q4_0", "Q4_K", "Q5_K"):
        quant_type = "Q6_K"
    if shape[1] % QUANT_TYPES[quant_type].columns:
        quant_type = NARROW.get(quant_type, "F16")
    return "F16" if shape[1] % GROUP else quant_type


def chosen_types(
    weights: Weights, request: QuantizationRequest, plans: Sequence[TensorPlan], tell: Tell
) -> dict[str, str]:
    """A type for each tensor of the file."""

    def shape(one: TensorPlan) -> tuple[int, int]:
        return weights.tensors[one.parts[0]].shape

    found = {one.name: type_for(one.parts[0], shape(one), request.quant_type) for one in plans}
    # what has no more bits than it would get stays as it is: nothing is rounded to more
    held = {one.name: weights.tensors[one.parts[0]].quant_type for one in plans}
    found |= {
        name: kind
        for name, kind in held.items()
        if kind not in PLAIN and bits(kind) <= bits(found[name])
    }
    if not request.size:
        return found
    if not request.texts:
        raise ConfigError("--size needs --calibrate with a text: sensitivity is measured on it")
    tell("sensitivity: one pass forth and back over the text")
    fisher = sensitivity.measure(weights, spread(request.texts, FISHER_WINDOWS))
    if is_tied(weights):
        fisher["model.embed_tokens.weight"] = fisher.pop("lm_head.weight")
    choices, left = [], request.size - overhead(weights, plans)
    for one in plans:
        parts = [(weights.tensors[name], fisher.get(name)) for name in one.parts]
        own = held[one.name]
        if found[one.name] not in GRIDS or any(factors is None for _, factors in parts):
            left -= sum(sensitivity.bytes_as(part.shape, found[one.name]) for part, _ in parts)
            continue
        kinds = [*ladder(shape(one)[1], request.quant_type)]
        if own not in PLAIN:
            kinds = [*(kind for kind in kinds if bits(kind) < bits(own)), own]
        sizes = {
            kind: sum(sensitivity.bytes_as(part.shape, kind) for part, _ in parts) for kind in kinds
        }
        costs = {
            kind: sum(factors.cost(part, kind) for part, factors in parts if factors)
            for kind in kinds
            if kind != own
        }
        choices.append(sensitivity.TypeChoice(one.name, sizes, {own: 0.0} | costs))
    return found | sensitivity.mixture(choices, left)


def ladder(columns: int, quant_type: str) -> tuple[str, ...]:
    """The types that a matrix may get under a budget; none has fewer bits than the target."""
    kinds = LADDERS[GROUP if columns % 256 or quant_type == "Q4_0" else 256]
    return tuple(kind for kind in kinds if bits(kind) >= bits(quant_type))


def overhead(weights: Weights, plans: Sequence[TensorPlan]) -> int:
    """Bytes of a file beside its tensors' own: a little more than it will be."""
    metadata, extra = to_gguf.describe(weights, "Q4_0")

    def size(value: object) -> int:
        if isinstance(value, str):
            return 8 + len(value.encode())
        return 12 + sum(map(size, value)) if isinstance(value, list) else 8

    keys = sum(12 + len(key) + size(value) for key, value in metadata.items())
    tensors = sum(64 + len(one.name) + 32 for one in plans)
    return keys + tensors + sum(96 + blocks.memory.size for blocks in extra.values())


def spread(texts: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
    """At most so many of them, evenly far from each other."""
    longer = [text for text in texts if len(text) > 1]
    if len(longer) <= count:
        return longer
    return [longer[int(place)] for place in np.linspace(0, len(longer) - 1, count)]


@dataclass(frozen=True, slots=True)
class LayerRounding:
    """One run through all matrices."""

    weights: Weights
    kinds: Mapping[str, str]  # by our names
    journal: QuantizationJournal
    tell: Tell

    def all(
        self, request: QuantizationRequest, plans: Sequence[TensorPlan]
    ) -> dict[str, QuantTensor]:
        """Every tensor that changes, by our name."""
        weighed = importance_of(request.importance, plans, self.weights)
        made: dict[str, QuantTensor] = {}
        if request.texts:
            passed = calibration.begin(self.weights, request.texts)
            for layer in calibration.passes(passed):
                own = [name for name in self.kinds if name.startswith(f"model.layers.{layer}.")]
                changed = self.kept(own)
                if len(changed) < len(own):
                    self.tell(f"layer {layer + 1} of {self.weights.architecture.num_layers}")
                    changed |= self.layer(own, changed, passed)
                passed.go_on(changed)
                made |= changed
            squares = passed.head_inputs().squares
            weighed |= dict.fromkeys(ENDS if is_tied(self.weights) else ENDS[1:], squares)
        for name in self.kinds:
            if name not in made:
                made |= self.kept([name]) or {name: self.one(name, weighed.get(name))}
        return made

    def kept(self, names: Sequence[str]) -> dict[str, QuantTensor]:
        """What an earlier run did."""
        found = {
            name: self.journal.get(name, self.weights.tensors[name].shape, self.kinds[name])
            for name in names
        }
        return {name: blocks for name, blocks in found.items() if blocks is not None}

    def layer(
        self, names: Sequence[str], done: Mapping[str, QuantTensor], passed: CalibrationPass
    ) -> dict[str, QuantTensor]:
        """Those of a layer that are not done; matrices of one input are rounded together."""
        grams, made = passed.observe(), {}
        together: dict[tuple[int, str], list[str]] = {}
        for name in names:
            gram = grams.get(name.removesuffix(".weight"))
            if name in done:
                continue
            if gram is None or self.kinds[name] not in GRIDS:
                made[name] = self.one(name, None)
            else:
                together.setdefault((id(gram), self.kinds[name]), []).append(name)
        factors: dict[int, Compensation] = {}
        for (key, kind), group in together.items():
            gram = grams[group[0].removesuffix(".weight")]
            if key not in factors:
                factors[key] = self.sound(group[0], gram)
            matrices = [self.finite(name) for name in group]
            raw = encode_with_feedback(torch.cat(matrices), factors[key], kind)
            parts = torch.split(raw, [len(matrix) for matrix in matrices])
            for name, own in zip(group, parts, strict=True):
                made[name] = self.journal.put(
                    name, QuantTensor(kind, self.weights.tensors[name].shape, own.contiguous())
                )
        return made

    def sound(self, name: str, gram: Gram) -> Compensation:
        """`compensation`, with the name of who could not have it."""
        try:
            return compensation(gram.sum, gram.rows)
        except ValueError as error:
            raise ModelFileError(f"{name}: {error}; choose another text or model") from error

    def one(self, name: str, importance: Tensor | None) -> QuantTensor:
        """A tensor by itself: each weight to the nearest point."""
        blocks, kind = self.weights.tensors[name], self.kinds[name]
        if kind not in GRIDS:  # a vector, or what fits no block
            return QuantTensor(kind, blocks.shape, ENCODERS[kind](self.finite(name)))
        weight = torch.ones(blocks.shape[1])
        if importance is not None and (most := float(importance.max())) > 0:
            weight = (importance / most).clamp_min(LEAST_IMPORTANCE)
        slabs = [
            encode_weighted(self.finite(name, start), weight, kind)[0]
            for start in range(0, blocks.shape[0], SLAB_ROWS)
        ]
        return self.journal.put(name, QuantTensor(kind, blocks.shape, torch.cat(slabs)))

    def finite(self, name: str, start: int | None = None) -> Tensor:
        """A tensor's numbers, float32, or a slab of its rows.

        Raises:
            ModelFileError: they are not finite, or too large for a block.
        """
        blocks = self.weights.tensors[name]
        if start is not None:
            blocks = blocks.part(start, min(start + SLAB_ROWS, blocks.shape[0]))
        rows = blocks.dequantize()
        most = torch.finfo(torch.float32).max if self.kinds[name] == "F32" else LARGEST
        if not bool((rows.abs() <= most).all()):  # also where it is no number
            raise ModelFileError(
                f"{name}: it has weights that are not finite, or beyond {most:g}; choose another "
                f"model"
            )
        return rows


def importance_of(
    matrix: ImportanceMatrix | None, plans: Sequence[TensorPlan], weights: Weights
) -> dict[str, Tensor]:
    """Mean squares [columns] by our names.

    Raises:
        ModelFileError: the matrix is of another model.
    """
    found: dict[str, Tensor] = {}
    for one in plans if matrix is not None else ():
        means = matrix.entries.get(one.name) if matrix is not None else None
        if means is None:
            continue
        columns = weights.tensors[one.parts[0]].shape[1]
        if means.size % columns or means.size // columns not in (1, len(one.parts)):
            raise ModelFileError(
                f"{one.name} has {means.size} numbers in the importance matrix and {columns} "
                f"columns in the model; give the matrix that was measured with this model"
            )
        rows = torch.from_numpy(means.reshape(-1, columns).copy())
        found |= {name: rows[min(index, len(rows) - 1)] for index, name in enumerate(one.parts)}
    if matrix is not None and not found:
        raise ModelFileError(
            "the importance matrix names no matrix of this model; give the one that was measured "
            "with it"
        )
    return found


def measure_importance(
    weights: Weights, texts: Sequence[Sequence[int]], dataset: str, tell: Tell = lambda words: None
) -> ImportanceMatrix:
    """Mean squares of what every matrix of the plain model is given, under the file's names."""
    entries: dict[str, np.ndarray] = {}
    names = dict(shared_names(to_gguf.plan(weights, None)))
    passed = calibration.begin(weights, texts)
    rows = passed.rows
    for layer in calibration.passes(passed):
        tell(f"importance: layer {layer + 1} of {weights.architecture.num_layers}")
        grams = passed.observe(advance=True)
        for theirs, parts in names.items():
            own = [grams.get(part.removesuffix(".weight")) for part in parts]
            if all(gram is not None for gram in own):
                squares = [gram.squares for gram in own if gram is not None]
                alike = own.count(own[0]) == len(own)
                stacked = torch.stack(squares[:1] if alike else squares)
                entries[theirs] = stacked.numpy().astype(np.float32)
    head = passed.head_inputs().squares[None].numpy().astype(np.float32)
    entries |= {theirs: head for theirs in names if theirs == "output.weight"}
    return ImportanceMatrix(
        entries=entries,
        chunks=len(texts),
        chunk_size=max(1, rows // max(len(texts), 1)),
        datasets=(dataset,),
    )


def shared_names(plans: Iterator[TensorPlan]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The file's name of each matrix, and ours."""
    for one in plans:
        if one.parts[0].endswith(".weight"):
            yield one.name, one.parts
