"""The same sources on other processors and under sanitizers: a tape of calls, played by
`check.cpp` without Python.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.engine.backends.native import sources
from quietchoir.core.engine.backends.native.library import KINDS
from quietchoir.core.models.embedding.torch_encoder import TorchEncoder
from quietchoir.tests.fakes.blocks import PLAIN, block_size, expected_product, meaning, random_rows
from quietchoir.tests.fakes.player import (
    STEP,
    Tape,
    Tiny,
    build,
    play,
    random_encoder,
    record_encoder,
)

# sets that fuse products with sums; plain does not
FUSED = {"avx512bf16", "avx512", "avx2", "avxvnni", "evex", "neon", "neondot"}
SANITIZERS = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MIXED = Tiny(
    kinds=(
        ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q4_1", "F16"),
        ("BF16", "F32", "Q4_0", "Q4_1", "Q6_K", "Q5_K", "Q4_K"),
        ("Q2_K", "Q3_K", "Q5_0", "Q5_1", "IQ3_XXS", "IQ3_S", "IQ4_NL"),
        ("IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "Q2_K", "Q8_0", "Q3_K"),
    )
)
NORMED = Tiny(
    kinds=(("Q4_0", "Q8_0", "Q4_1", "Q4_0", "Q8_0", "Q4_0", "Q8_0"),) * 2,
    head="Q8_0",
    hidden_size=96,
    ffn=64,
    num_kv_heads=4,
    head_dim=16,
    vocab_size=37,
    window=24,
    activation=1,
    normed=True,
    biased=True,
    wide_norms=True,
    threads=3,
    kv_type="q8",
)
MIXTURE = Tiny(
    kinds=(("Q4_0", "Q8_0", "Q4_1", "Q5_0", "Q4_0", "Q8_0", "Q5_1"), ("F32",) * 7),
    head="Q8_0",
    hidden_size=96,
    ffn=32,
    num_kv_heads=4,
    head_dim=16,
    vocab_size=37,
    experts=5,
    rope_dim=12,
    threads=3,
)
LONG = Tiny(
    kinds=(("F32", "F16", "BF16", "F32", "F16", "BF16", "F32"),),
    head="BF16",
    hidden_size=24,
    ffn=40,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    vocab_size=17,
    blocks=40,
    kv_type="q4",
)


@dataclass
class Scene:
    """A tape, and where on its output each part stands."""

    tape: Tape = field(default_factory=Tape)
    checks: list[tuple[slice, Callable[[np.ndarray], bool]]] = field(default_factory=list)
    length: int = 0
    products: int = 0  # of these, products of one matrix; whole steps follow

    def expect(self, count: int, check: Callable[[np.ndarray], bool]) -> None:
        self.checks.append((slice(self.length, self.length + count), check))
        self.length += count


def near(wanted: np.ndarray, bound: np.ndarray) -> Callable[[np.ndarray], bool]:
    return lambda found: bool((np.abs(found - wanted.ravel()) <= bound.ravel()).all())


def finite(found: np.ndarray) -> bool:
    return bool(np.isfinite(found).all())


def products(scene: Scene, rng: np.random.Generator) -> None:
    """Every kind, with rows and activations that fill no strip and no panel."""
    for kind in KINDS:
        for terms in (1, 2, 3):
            rows, count = int(rng.integers(1, 50)), int(rng.integers(1, 18))
            columns = (
                int(rng.integers(1, 40))
                if kind in PLAIN
                else block_size(kind)[0] * int(rng.integers(1, 4))
            )
            raw, x = (
                random_rows(kind, rows, columns, rng),
                rng.standard_normal((count, columns)).astype(np.float32),
            )
            wanted, bound = expected_product(kind, raw, x, 1 if kind in PLAIN else terms)
            scene.expect(
                scene.tape.multiply(kind, (rows, columns), raw, x, terms), near(wanted, bound)
            )
        row = random_rows(kind, 1, 256, rng)
        scene.expect(scene.tape.decode(kind, 256, row), near(meaning(kind, row), np.zeros(256)))


def steps(scene: Scene, rng: np.random.Generator) -> None:
    """Models: a mixture with adapters, one with norms behind and a window, and one with a
    context that is cut in pieces.
    """
    MIXED.record(scene.tape, rng)
    MIXED.adapter(scene.tape, 3, ("query", "down"), rng)
    MIXED.adapter(scene.tape, 20, ("gate", "value", "output"), rng)
    scene.expect(MIXED.step(scene.tape, [(5, 0, 1, [3], -1), (19, 0, 2, [0, 5], 0)], rng), finite)
    scene.expect(
        MIXED.step(scene.tape, [(1, 5, 1, [3], -1), (1, 19, 1, [0, 5], 0), (3, 0, 3, [7], 1)], rng),
        finite,
    )
    refused_steps(scene.tape)
    NORMED.record(scene.tape, rng)
    NORMED.adapter(scene.tape, 1, ("key", "up"), rng)
    scene.expect(NORMED.step(scene.tape, [(40, 0, 1, [1, 0, 6], 0)], rng), finite)
    scene.expect(
        NORMED.step(scene.tape, [(1, 40, 1, [1, 0, 6], 0), (2, 0, 0, [2], -1)], rng), finite
    )
    MIXTURE.record(scene.tape, rng)
    scene.expect(MIXTURE.step(scene.tape, [(21, 0, 2, [4, 0], -1)], rng), finite)
    spans = [(1, 21, 1, [4, 0], -1), (9, 0, 9, [7], -1)]
    scene.expect(MIXTURE.step(scene.tape, spans, rng), finite)
    LONG.record(scene.tape, rng)
    table = rng.permutation(LONG.blocks).tolist()
    scene.expect(LONG.step(scene.tape, [(600, 0, 0, table, -1)], rng), finite)
    scene.expect(LONG.step(scene.tape, [(1, 600, 1, table, -1)], rng), finite)


def refused_steps(tape: Tape) -> None:
    """What a caller may get wrong; the player fails where one of them runs."""
    good = {"span": [2, 0, 1, 0, 1], "tokens": [1, 2], "tables": [0]}
    wrong = (
        {"span": [0, 0, 0, 0, 1], "tokens": []},
        {"span": [2, -1, 1, 0, 1]},
        {"span": [2, 0, 3, 0, 1]},
        {"span": [2, 0, -1, 0, 1]},
        {"span": [2, 0, 1, 0, 2]},
        {"span": [2, 0, 1, -1, 1]},
        {"span": [2, 0, 1, 2**31 - 1, 1]},
        {"span": [2, 15, 1, 0, 1]},
        {"span": [2, 2**31 - 2, 1, 0, 1]},
        {"span": [3, 0, 1, 0, 1]},
        {"tokens": [1, 50]},
        {"tokens": [1, -1]},
        {"tables": [8]},
        {"tables": [-1]},
    )
    for change in wrong:
        said = good | change
        arrays = (np.array(said[name], dtype=np.int32) for name in ("span", "tokens", "tables"))
        tape.add(STEP, (1, 1, 50), *arrays, np.array([-1], dtype=np.int32))


def encoders(scene: Scene, rng: np.random.Generator) -> None:
    """Encoders in float32: BERT's order, a gated one with windows and rope, and a causal one with
    norms on both sides.
    """
    texts = [[3], rng.integers(0, 40, 37).tolist(), rng.integers(0, 40, 17).tolist()]
    for traits in (
        {"activation": "gelu", "learned_positions": True, "norm_sums": True},
        {"activation": "gelu_tanh", "gated": True, "thetas": (1e4, 1e5), "reaches": (5, 0)},
        {
            **{"activation": "silu", "gated": True, "rms_norms": True, "causal": True},
            **{"pooling": "last", "thetas": (1e4, 1e4), "embedding_scale": 8.0},
        },
    ):
        weights = random_encoder(rng, **traits)
        wanted = TorchEncoder(weights).encode(texts)
        count = record_encoder(scene.tape, weights, texts)
        scene.expect(count, near(wanted, np.full(wanted.shape, 1e-3 * np.abs(wanted).max())))


def whole_scene() -> Scene:
    """Every kind and every model on one tape."""
    made, rng = Scene(), np.random.default_rng(1)
    products(made, rng)
    made.products = made.length
    steps(made, rng)
    encoders(made, rng)
    return made


@pytest.fixture(scope="module")
def scene() -> Scene:
    return whole_scene()


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The player for this machine, with sanitizers; its objects beside it."""
    folder = tmp_path_factory.mktemp("sanitized")
    return build(folder, "g++", *SANITIZERS, also=(Path(__file__).parent / "evex.cpp",))


@pytest.fixture(scope="module")
def here(sanitized: Path, scene: Scene) -> dict[str, np.ndarray]:
    """What each set of this machine makes of the tape."""
    return play([str(sanitized)], scene.tape, sanitized.parent)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> dict[str, np.ndarray]:
    """What AArch64 makes of it: cross-compiled with the flags that ship, linked statically,
    emulated.
    """
    missing = [name for name in ("aarch64-linux-gnu-g++", "qemu-aarch64") if not shutil.which(name)]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(missing)}; make system-packages brings them")
    folder = tmp_path_factory.mktemp("aarch64")
    return play(
        ["qemu-aarch64", str(build(folder, "aarch64-linux-gnu-g++", "-static"))], scene.tape, folder
    )


def fits(scene: Scene, found: np.ndarray) -> bool:
    """Whether all that came out is right; a set that plays products alone stops behind them."""
    played = [(place, check) for place, check in scene.checks if place.stop <= len(found)]
    return len(found) in (scene.products, scene.length) and all(
        check(found[place]) for place, check in played
    )


def test_sanitizers_find_nothing_in_any_instruction_set_and_the_numbers_are_right(
    here: dict[str, np.ndarray], scene: Scene
) -> None:
    assert {"plain"} < set(here)
    assert all(fits(scene, found) for found in here.values())


def test_neon_with_and_without_dot_products_gives_the_right_numbers(
    emulated: dict[str, np.ndarray], scene: Scene
) -> None:
    assert set(emulated) == {"neondot", "neon", "plain"}
    assert all(fits(scene, found) for found in emulated.values())


def test_all_instruction_sets_agree(
    here: dict[str, np.ndarray], emulated: dict[str, np.ndarray], scene: Scene
) -> None:
    """Products to the bit where sums are fused; whole steps nearly, because sines come from each
    system's own library.
    """
    found = [*here.items(), *emulated.items()]
    reference = next(numbers for name, numbers in found if name in FUSED)
    for name, numbers in found:
        if name in FUSED:
            assert np.array_equal(numbers[: scene.products], reference[: scene.products]), name
        for place, _ in scene.checks:
            there, wanted = numbers[place], reference[place][: len(numbers[place])]
            assert np.abs(there - wanted).max(initial=0) <= 0.02 * np.abs(wanted).max(
                initial=1e-6
            ), name


def test_units_of_one_instruction_set_share_no_code_that_the_linker_could_mix(
    sanitized: Path,
) -> None:
    """Compiled without inlining, so that every function that could become shared is there to be
    seen.
    """
    for unit in sources.units():
        if unit.name.startswith("forward_"):
            listed = subprocess.run(
                ["nm", "-C", sanitized.parent / f"{unit.stem}.o"],
                capture_output=True,
                text=True,
                check=True,
            )
            weak = [line for line in listed.stdout.splitlines() if " W " in line or " u " in line]
            assert not weak, f"{unit.name}: {weak[:3]}"
