"""A sentence embedder's folder as sentence-transformers writes it: which parts, how texts become
one vector, how long they may be.

Knows its JSON files. Knows nothing of encoders or tokens.
Always: a part that is not known here is refused: a vector without it would be another model's.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import ModelFileError, ModelNotFoundError
from .architecture import Pooling

PULL = "quietchoir model pull minilm-l6-v2"
POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
Role = Literal["query", "document", ""]  # of a text: it is asked, it is looked through, neither
DOCUMENT = ("document", "passage", "corpus")  # what prompts of texts to look through are called
IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True, slots=True)
class EmbedderParts:
    """What stands behind the encoder."""

    pooling: Pooling | None  # None: the family's own
    dense: tuple[Path, ...]  # folders of matrices that the vector goes through, in order


def read_parts(folder: Path) -> EmbedderParts:
    """Read modules.json, where there is one.

    Raises:
        ModelFileError: a part that is not known here.
    """
    path = folder / "modules.json"
    if not path.exists():
        return EmbedderParts(None, ())
    pooling: Pooling | None = None
    dense = []
    for name, place in modules(path):
        match name:
            case "Transformer" | "Normalize":
                pass
            case "Pooling":
                pooling = read_pooling(place / "config.json")
            case "Dense":
                if (
                    used := read_json(place / "config.json").get("activation_function")
                ) != IDENTITY:
                    raise ModelFileError(
                        f"{place}: activation_function is {used!r:.60}, only {IDENTITY!r} is "
                        f"supported; choose another embedding model"
                    )
                dense.append(place)
            case _:
                raise ModelFileError(
                    f"{path}: a part {name!r:.60} is not known; choose another embedding model"
                )
    return EmbedderParts(pooling, tuple(dense))


def read_prompts(folder: Path) -> dict[Role, str]:
    """What stands before a text that is asked, one that is looked through, and any other; without
    those that are empty.

    Raises:
        ModelFileError: prompts that are no texts, a default that is none of them, or prompts that
        the model's pooling leaves out.

    Source: sentence-transformers' `encode_query`, `encode_document` and `encode`.
    """
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.exists() else {}
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(one, str) for one in prompts.values()):
        raise ModelFileError(f"{path}: prompts are {prompts!r:.80}, expected texts; {advice()}")
    if default is not None and default not in prompts:
        raise ModelFileError(
            f"{path}: default_prompt_name is {default!r:.40}, expected one of "
            f"{', '.join(map(repr, prompts))}; {advice()}"
        )
    other = str(prompts.get(default, ""))
    document = (prompts[name] for name in DOCUMENT if name in prompts)
    found: dict[Role, str] = {
        "query": str(prompts.get("query", other)),
        "document": next(document, other),
        "": other,
    }
    return {role: prompt for role, prompt in found.items() if prompt}


def modules(path: Path) -> Iterator[tuple[str, Path]]:
    """Each part's class, without its module, and its folder."""
    try:
        entries = json.loads(path.read_bytes())
        for entry in entries:
            place = (path.parent / entry["path"]).resolve()
            if place != path.parent.resolve() and path.parent.resolve() not in place.parents:
                raise ValueError(f"{entry['path']} is outside the folder")
            yield str(entry["type"]).rpartition(".")[2], place
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelFileError(f"{path}: not a list of parts ({error!s:.100}); {advice()}") from error


def read_pooling(path: Path) -> Pooling:
    """Raises: ModelFileError: not exactly one kind, or one that is not known here."""
    config = read_json(path)
    chosen = [
        key for key, value in config.items() if key.startswith("pooling_mode_") and value is True
    ]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ModelFileError(
            f"{path}: {', '.join(chosen) or 'no pooling'} is chosen, expected one of "
            f"{', '.join(POOLINGS)}; choose another embedding model"
        )
    if config.get("include_prompt") is False:
        raise ModelFileError(
            f"{path}: prompts take no part in its vectors, which is not supported; choose another "
            f"embedding model"
        )
    return POOLINGS[chosen[0]]


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ModelNotFoundError: no such file.
        ModelFileError: not a JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(f"{path}: no such file; {advice('run')}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not readable JSON ({error!s:.200}); {advice()}") from error
    if not isinstance(found, dict):
        raise ModelFileError(
            f"{path}: holds a {type(found).__name__}, expected an object; {advice()}"
        )
    return found


def advice(do: str = "") -> str:
    """What to do about a folder that is not whole."""
    return f"run: {PULL}" if do else "pull the model again"
