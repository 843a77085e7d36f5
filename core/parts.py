"""Which optional parts of the product are installed, and the one sentence where one is missing;
and whether the product that runs is still the one on the disk.

Knows which extra of the package brings which library, and its own modules' files. Knows nothing of
what they are for, and imports none of them.
Always: a library that belongs to an extra is asked for by that extra's name, never with a
traceback.
"""

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MissingPartError

# Extra → the modules that it brings and that the product imports. What is not here comes with the
# plain package.
EXTRAS = {
    "train": (
        *("torch", "peft", "transformers", "hassil", "home_assistant_intents", "gguf"),
        *("detect_secrets", "faker", "phonenumbers", "pyap", "stdnum"),
    ),
    "federation": ("flwr", "tenseal", "scipy", "dp_accounting", "tomli_w", "uvicorn"),
    "documents": ("sqlcipher3", "mammoth", "openpyxl", "pypdf", "markdown_it"),
    "plugins": ("icalendar", "PIL", "pint", "recurring_ical_events", "trafilatura"),
    "keyring": ("keyring",),
    "bench": ("matplotlib",),
    "scale": ("ray",),
    "openvino": ("openvino",),
    "onnx": ("onnxscript", "onnxruntime"),
    "peers": ("llama_cpp", "openvino_genai", "xllamacpp"),
    "dev": ("triton",),
}
STANDS_ON = {"federation": ("train",)}  # members train
PACKAGE = __name__.partition(".")[0]
UPDATED = (
    "the program on the disk was changed while this process ran, and the two do not go together; "
    "stop nodes before you update, and start this one again"
)
STARTED = time.time()  # seconds since 1970; of this process, near enough


def modules(extra: str) -> tuple[str, ...]:
    """What an extra brings, with what it stands on."""
    return (
        *EXTRAS[extra],
        *(name for lower in STANDS_ON.get(extra, ()) for name in modules(lower)),
    )


def missing(extra: str) -> list[str]:
    """The modules of `extra` that are not installed here; nothing is imported."""
    return [name for name in modules(extra) if importlib.util.find_spec(name) is None]


def require(extra: str, what: str) -> None:
    """Look before anything is begun.

    Args:
        what: needs it, as its owner calls it: "quietchoir join".

    Raises:
        MissingPartError: a module of it is not installed; nothing was begun.
    """
    if lacking := missing(extra):
        raise MissingPartError(sentence(what, lacking[0], extra))


@contextmanager
def wanted(what: str) -> Iterator[None]:
    """Around what may import an optional library deep inside.

    Raises:
        MissingPartError: such a library is not installed. Other imports that fail are our fault and
        stay as they are.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        extra = next((extra for extra, names in EXTRAS.items() if name in names), None)
        if extra is None:
            raise
        raise MissingPartError(sentence(what, name, extra)) from error


def sentence(what: str, module: str, extra: str) -> str:
    """What was wanted, what is not there, what to do."""
    return (
        f"{what} needs {module}, which is not installed here; install it with: pip install "
        f"'quietchoir[{extra}]'"
    )


def updated() -> bool:
    """Was the product on the disk changed since this process started from it?

    Then what it imports late, and its workers that start anew, are of another version than what it
    holds.
    """
    files = [
        Path(str(module.__file__))
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == PACKAGE and getattr(module, "__file__", None)
    ]
    return any(not file.exists() or file.stat().st_ctime > STARTED for file in files)


def told_updated(error: Exception) -> str:
    """Why something failed in a process over which the product was updated, and what to do."""
    return f"{UPDATED} ({type(error).__name__}: {error!s:.200})"
