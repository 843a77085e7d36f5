"""Adapters in and out of the registry: PEFT folders for everybody else's tools, GGUF for llama.cpp.

Knows folders, cards and the model an adapter belongs to. Knows nothing of rounds.
Always: what comes in fits the model's shapes before it is kept, and is marked unsigned unless a card that fits its content came
with it; what goes out is written whole; nothing that is there is overwritten.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import paths
from ...core.errors import ConfigError, IntegrityError, ModelFileError
from .registry import CARD, Card, Registry, content_hash

if TYPE_CHECKING:
    from ...core.models.weights import Weights


def export_peft(registry: Registry, prefix: str, folder: Path, base: str = "") -> str:
    """Write a PEFT checkpoint, with its card beside it, into a new or empty folder; return the adapter's name.

    Args:
        base: what the configuration calls the base model, for tools that load it by name; empty: its digest.

    Raises:
        ConfigError: something is in the folder. As `Registry.load`.
    """
    from ...core.models.adapter import CONFIG_FILE

    name, adapter = registry.find(prefix), registry.load(prefix)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty and is kept as it is; name a new folder")
    adapter.save(folder)
    if base:
        config = {**adapter.peft_config(), "base_model_name_or_path": base}
        paths.write_atomically(folder / CONFIG_FILE, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("utf-8"))
    paths.write_atomically(folder / CARD, registry.card(name).text().encode("ascii"))
    return name


def export_gguf(registry: Registry, prefix: str, file: Path, weights: "Weights") -> str:
    """Write the file that llama.cpp takes with `--lora`; return the adapter's name.

    Raises:
        ConfigError: the file is there. IntegrityError: another model than the adapter's. As `Registry.load`.
    """
    from . import gguf_adapter

    name, adapter = registry.find(prefix), registry.load(prefix)
    if file.exists():
        raise ConfigError(f"{file}: is there already and is kept; choose another name")
    if adapter.base_digest not in ("", weights.digest):
        raise IntegrityError(
            f"adapter {name[:12]} belongs to model {adapter.base_digest[:12]}…, found {weights.digest[:12]}…; name its own "
            "with --model"
        )
    gguf_adapter.write(file, adapter, weights.architecture)
    return name


def bring_in(registry: Registry, folder: Path, weights: "Weights", title: str = "") -> tuple[str, Card]:
    """Keep a PEFT checkpoint; return its name and its card.

    Args:
        title: what an unsigned adapter is called here; by default its folder.

    Raises:
        ModelFileError, ModelNotFoundError: not LoRA as we compute it, or it does not fit the model's shapes.
        IntegrityError: made for another model, or its card is of another adapter.
        FederationError: its card is malformed or wrongly signed.
    """
    from ...core.models.adapter import Adapter

    adapter = Adapter.load(folder)
    if adapter.base_digest not in ("", weights.digest):
        raise IntegrityError(
            f"{folder}: made for model {adapter.base_digest[:12]}…, found {weights.digest[:12]}…; name its own with --model"
        )
    try:
        adapter.check(weights.architecture)
    except ModelFileError as error:
        raise ModelFileError(f"{folder}: {error}") from None
    adapter = dataclasses.replace(adapter, base_digest=weights.digest)
    path = folder / CARD
    if path.exists():
        card = Card.parse(path.read_text("ascii", "replace"), f"{path}: ", unsigned=True)
    else:
        card = Card.unsigned(content_hash(adapter), title or folder.resolve().name, weights.digest)
    return registry.put(adapter, card), card
