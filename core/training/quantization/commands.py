"""The verb `model quantize`: a model to fewer bits, with what that costs and saves.

Knows flags and sentences. Imports nothing heavy until it runs.
Always: the file takes its name only when it is whole; what is there already is kept; a run that was
killed goes on where it was, from the folder beside the file to be.
"""

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...models.quantization.importance import ImportanceMatrix
    from ...models.weights import Weights
    from .qat import QatResult
    from .quality import ModelQuality

TARGETS = ("q4_0", "q4_k", "q5_k", "q6_k", "q8_0")
QAT = ("full", "norms", "adapters")
EVALUATED = 2048  # tokens of the text that perplexity is measured on


def register(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `quantize`."""
    verb = actions.add_parser(
        "quantize",
        help="a model to fewer bits, measured before and after",
        description="Write a model as a GGUF file of fewer bits a weight, which llama.cpp reads "
        "too. With --calibrate each matrix is rounded so that the text's predictions change least.",
    )
    verb.add_argument(
        "model", metavar="SRC", help="a model folder, a GGUF file of more bits, or a model's name"
    )
    verb.add_argument("--to", required=True, choices=TARGETS, help="of most matrices")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .gguf to write")
    verb.add_argument(
        "--calibrate",
        type=Path,
        metavar="DATA",
        help="a text, conversations (.jsonl), or an importance matrix of llama.cpp's (.dat, .gguf)",
    )
    verb.add_argument(
        "--tokens",
        type=int,
        default=8192,
        metavar="N",
        help="of the text that are used, spread evenly (default 8192)",
    )
    verb.add_argument(
        "--size",
        type=float,
        metavar="MB",
        help="of the file at most: matrices that feel rounding most get more bits",
    )
    verb.add_argument(
        "--imatrix", type=Path, metavar="FILE", help="also write the importance matrix there"
    )
    verb.add_argument(
        "--qat",
        choices=QAT,
        help="then train it to say what the original says: all weights as they are rounded, norms "
        "alone, or an adapter beside the file",
    )
    verb.add_argument(
        "--steps",
        type=int,
        default=60,
        metavar="N",
        help="of that training at most; it ends when it no longer helps (default 60)",
    )
    verb.add_argument(
        "--rank", type=int, default=16, metavar="R", help="of the adapter (default 16)"
    )
    verb.add_argument(
        "--evaluate",
        type=Path,
        metavar="TEXT",
        help="for perplexity; one that is not calibrated on (default: Python's language reference)",
    )
    verb.set_defaults(run=run, needs="train")


def run(arguments: Namespace) -> None:
    """Quantise, write, and say what it cost.

    Raises:
        ConfigError: flags that do not go together, or a file that is there already.
        ModelError: another program makes this file.
        ModelFileError: a model that has so few bits already, or that GGUF cannot hold.
    """
    from ...models.quantization import quantizer

    check(arguments)
    with quantizer.alone(arguments.out):
        quantise(arguments)


def quantise(arguments: Namespace) -> None:
    """`run`, while nobody else writes the file."""
    from ...errors import ConfigError
    from ...models import to_gguf, weights
    from ...models.hub import catalog
    from ...models.quantization import importance, quantizer
    from . import quality

    out: Path = arguments.out
    source = catalog.find(arguments.model)
    original = weights.load(source)
    texts: Sequence[Sequence[int]] = ()
    matrix: ImportanceMatrix | None = None
    if arguments.calibrate is not None:
        if importance.is_importance(arguments.calibrate):
            matrix = importance.read(arguments.calibrate)
        else:
            texts = quality.read_texts(
                arguments.calibrate, original.tokenizer, original.context_length, arguments.tokens
            )
    if not texts and (arguments.qat or arguments.size or arguments.imatrix):
        raise ConfigError(
            "--qat, --size and --imatrix need --calibrate with a text: they are measured on it"
        )
    held_out = evaluated(arguments.evaluate, original)
    before = quality.measure(source, held_out, quality.size_of(source))
    print(f"before  {before.line()}")
    if arguments.imatrix is not None:
        quantizer.measure_importance(original, texts, arguments.calibrate.name, tell).write(
            arguments.imatrix
        )
        print(f"{arguments.imatrix}: the importance matrix, in llama.cpp's format")
    request = quantizer.QuantizationRequest(
        quant_type=arguments.to.upper(),
        size=int((arguments.size or 0) * 1e6),
        texts=texts,
        importance=matrix,
    )
    journal = quantizer.QuantizationJournal(quantizer.journal_of(out), request.digest(original))
    made = quantizer.quantize(original, request, journal, tell)
    if arguments.qat is None:
        to_gguf.save(made, out)
    else:
        trained(arguments, made, original, texts, held_out, journal.folder)
    journal.clear()
    after = quality.measure(out, held_out, quality.size_of(out))
    print(f"after   {after.line()}")
    print(f"{out}: {told(before, after)}")


def check(arguments: Namespace) -> None:
    """Raises: ConfigError: what can be seen from the flags and files alone."""
    from ...errors import ConfigError
    from ...models.quantization import importance, quantizer

    if arguments.out.exists():
        journal = quantizer.journal_of(arguments.out)
        left = (
            f", and delete {journal}, which a run left that was killed" if journal.exists() else ""
        )
        raise ConfigError(
            f"{arguments.out}: is there already and is kept; choose another name{left}"
        )
    beside, made = beside_of(arguments.out), quantizer.journal_of(arguments.out) / quantizer.MADE
    if arguments.qat == "adapters" and beside.exists() and not made.exists():
        raise ConfigError(f"{beside}: is there already and is kept; choose another --out")
    if arguments.out.suffix != ".gguf":
        raise ConfigError(f"{arguments.out}: the file is a GGUF file; let its name end in .gguf")
    for flag, least in (("tokens", 2), ("steps", 1), ("rank", 1)):
        if getattr(arguments, flag) < least:
            raise ConfigError(f"--{flag} {getattr(arguments, flag)}: must be {least} at least")
    if arguments.size is not None and not 0 < arguments.size < 1e9:
        raise ConfigError(f"--size {arguments.size}: must be a number of megabytes")
    if arguments.calibrate is not None and not arguments.calibrate.is_file():
        raise ConfigError(f"{arguments.calibrate}: no such file; give a text to calibrate on")
    if (matrix := arguments.imatrix) is not None:
        if matrix.suffix not in importance.ENDINGS:
            raise ConfigError(f"--imatrix {matrix}: let its name end in .dat or .gguf")
        if matrix == arguments.out or (matrix.exists() and not importance.is_sound(matrix)):
            raise ConfigError(
                f"--imatrix {matrix}: is another file, which is kept; choose another name"
            )


def beside_of(out: Path) -> Path:
    """Where the adapter of a trained file lies."""
    return out.with_suffix(".adapter")


def evaluated(path: Path | None, original: "Weights") -> list[int]:
    """Tokens of the text that nobody calibrates on."""
    from ...models.quantization.calibration import pieces
    from . import quality

    if path is not None:
        texts = quality.read_texts(path, original.tokenizer, original.context_length, EVALUATED)
    else:
        # letters enough for so many tokens, in any language's tokenizer
        text = quality.held_out_text()[: 8 * EVALUATED]
        texts = pieces(original.tokenizer.encode(text)[:EVALUATED])
    return [token for text in texts for token in text]


def trained(
    arguments: Namespace,
    quantised: "Weights",
    original: "Weights",
    texts: Sequence[Sequence[int]],
    held_out: Sequence[int],
    folder: Path,
) -> None:
    """Train, write the file (and the adapter), and say what of rounding's loss it won back."""
    from ...models import to_gguf, weights
    from ...models.quantization import quantizer
    from . import qat, quality

    settings = qat.QatSettings(mode=arguments.qat, steps=arguments.steps, rank=arguments.rank)
    result = qat.train(quantised, original, texts, settings, folder=folder, on_step=tell_step)
    made = folder / quantizer.MADE
    to_gguf.save(result.weights, made)
    print(f"qat     {told_training(result, settings.steps)}")
    if result.adapter:
        beside = beside_of(arguments.out)
        qat.save_adapter(result, settings.rank, weights.digest_of(made), beside)
        print(f"{beside}: the adapter (PEFT); `quietchoir adapter import` takes it in")
    made.replace(arguments.out)  # last: a file that is there has its adapter
    exact, rounded, won = (
        quality.text_loss(model, held_out, adapter)
        for model, adapter in (
            (original, None),
            (quantizer.plainly(original, quantised), None),
            (result.weights, result.adapter),
        )
    )
    lost = rounded - exact
    print(
        f"        plain rounding to these types loses {lost:.4f} nats a token on the text for "
        f"perplexity" + (f", {(rounded - won) / lost:.0%} of them are won back" if lost > 0 else "")
    )


def told_training(result: "QatResult", steps: int) -> str:
    """Which state is kept, and why."""
    first, last = result.distance
    kept = (
        f"the state after step {result.kept} is kept"
        if result.kept
        else "the start is kept, no step made it better"
    )
    ended = f"; ended after {result.steps} of {steps}: {result.ended}" if result.ended else ""
    return (
        f"{first:.4f} nats a token from the original at the start, {last:.4f} at last, on text "
        f"held out of the training: {kept}, the best of {len(result.judged)} judged{ended}"
    )


def told(before: "ModelQuality", after: "ModelQuality") -> str:
    """What changed."""
    faster = after.tokens_per_s / before.tokens_per_s
    return (
        f"{1 - after.bytes / before.bytes:.0%} smaller, perplexity "
        f"{after.perplexity / before.perplexity - 1:+.1%}, {faster:.1f} times as fast"
    )


def tell(words: str) -> None:
    """On the way, to standard error."""
    import sys

    print(f"… {words}", file=sys.stderr, flush=True)


def tell_step(step: int, steps: int, distance: float) -> None:
    """Every tenth step."""
    if step % 10 == 0 or step in (1, steps):
        tell(f"step {step} of {steps}: {distance:.4f} nats a token from the original")
