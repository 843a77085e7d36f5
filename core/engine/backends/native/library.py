"""The compiled library: where it is, whether it can be used, which instruction set it runs.

Knows ctypes, one file beside this one and one environment variable. Knows nothing of models,
tensors or threads.
Always: a library that was made from other sources than those beside it is not loaded; whoever asks
gets the reason, with what to do, instead.

`QUIETCHOIR_NATIVE` = `off`, `avx512bf16`, `avx512`, `avxvnni`, `avx2`, `neondot`, `neon`, `plain`
forces a path, for tests and measurements.
"""

import ctypes
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache

from ....errors import ConfigError, EngineError
from . import sources

VARIABLE = "QUIETCHOIR_NATIVE"
OFF = "off"
# in this order, the first that runs here
INSTRUCTION_SETS = ("avx512bf16", "avx512", "avxvnni", "avx2", "neondot", "neon", "plain")
# the numbers of `Kind` in src/matrix.h, as `facts` says
KINDS = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"),
)
# One answer at a time, as `bench engine` measures it (no_compiler beside ours).
TORCH_IS = "8 to 10 times slower"
SLOWER = f"the engine uses torch's own kernels until then, which are {TORCH_IS}"


def available() -> str | None:
    """Why the library cannot be used here, with what to do; None if it can.

    Raises:
        ConfigError: `QUIETCHOIR_NATIVE` asks for what does not exist.
    """
    if forced() == OFF:
        return f"{VARIABLE}={OFF} asks for torch's own kernels; unset it for the compiled ones"
    loaded = _open()
    return loaded if isinstance(loaded, str) else None


def library() -> ctypes.CDLL:
    """The library, loaded once.

    Raises:
        RuntimeError: it is not available; ask `available` first.
    """
    loaded = _open()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


def facts() -> list[list[str]]:
    """What the library counts by number: tokens of a block; kinds, roles and activations in order.

    Python writes the same down where it needs it; a test compares.
    """
    found = library().quietchoir_facts
    found.restype = ctypes.c_char_p
    return [line.split() for line in found().decode("ascii").splitlines()]


def instruction_sets() -> tuple[str, ...]:
    """Those that the library holds and this processor runs, best first."""
    names = library().quietchoir_instruction_sets()
    return tuple(names.decode("ascii").split())


def instruction_set() -> str:
    """The one in use: the best, or the one that `QUIETCHOIR_NATIVE` names.

    Raises:
        ConfigError: that one does not run here.
    """
    wanted, there = forced(), instruction_sets()
    if wanted is None:
        return there[0]
    if wanted not in there:
        raise ConfigError(
            f"{VARIABLE}={wanted}: this processor and library run "
            f"{', '.join(there)}; choose one or unset it"
        )
    return wanted


def forced() -> str | None:
    """What the environment asks for.

    Raises:
        ConfigError: a word that means nothing.
    """
    word = os.environ.get(VARIABLE, "").strip().lower()
    if word and word not in (OFF, *INSTRUCTION_SETS):
        raise ConfigError(
            f"{VARIABLE}={word} is unknown; known: {', '.join((OFF, *INSTRUCTION_SETS))}"
        )
    return word or None


Functions = Mapping[str, tuple[object, tuple[object, ...]]]  # what each returns and takes


def declare(loaded: ctypes.CDLL, functions: Functions) -> ctypes.CDLL:
    """Say what functions take and return; without it a pointer would be cut to 32 bits."""
    for name, (returns, takes) in {**functions, "problem": (ctypes.c_char_p, ())}.items():
        function = getattr(loaded, f"quietchoir_{name}")
        function.restype, function.argtypes = returns, takes
    return loaded


class LibraryObject(ABC):
    """What is built inside the library by calls that it may refuse, and freed once."""

    what = ""  # it is called in a refusal
    _library: ctypes.CDLL
    _handle: int | None

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds; a second call does nothing."""

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def _check(self, worked: bool) -> None:
        if not worked:
            raise EngineError(f"the native engine cannot pack this {self.what}: {self._problem()}")

    def _problem(self) -> str:
        text: bytes = self._library.quietchoir_problem()
        return text.decode("utf-8", "replace")


@cache
def _open() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    path = sources.FOLDER / sources.LIBRARY
    if not path.exists():
        return (
            f"the kernels were not compiled: install a C++ compiler (for example g++) and "
            f"install quietchoir again; {SLOWER}"
        )
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.quietchoir_sources.restype = ctypes.c_char_p
        loaded.quietchoir_instruction_sets.restype = ctypes.c_char_p
        made_of = loaded.quietchoir_sources().decode("ascii")
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded ({error}); install quietchoir again; {SLOWER}"
    if made_of != sources.digest():
        return (
            f"{path} was made from other sources than those beside it; run make setup or "
            f"install again; {SLOWER}"
        )
    return loaded
