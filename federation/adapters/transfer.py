"""Adapters in and out of the registry: PEFT folders for everybody else's tools, GGUF for llama.cpp.

Knows folders, cards and the model an adapter belongs to. Knows nothing of rounds.
Always: what comes in fits the model's shapes before it is kept, and is marked unsigned unless a
card came with it that fits its content and was signed by a key of the federation that it names;
what goes out is written whole; nothing that is there is overwritten.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import paths
from ...core.errors import (
    ConfigError,
    FederationError,
    IntegrityError,
    ModelFileError,
    ModelNotFoundError,
)
from ..membership import roster
from ..membership.log import Chain
from .registry import CARD, SHOWN, Card, Registry, check_signer, content_hash

if TYPE_CHECKING:
    from ...core.models.weights import Weights


def export_peft(
    registry: Registry, prefix: str, folder: Path, base: str = "", *, personal: bool = False
) -> str:
    """Write a PEFT checkpoint, with its card beside it, into a new or empty folder; return the
    adapter's name.

    Args:
        base: what the configuration calls the base model, for tools that load it by name; empty:
        its digest. personal: the owner says that this one may be a personal adapter.

    Raises:
        ConfigError: something is in the folder, or `check_personal`. As `Registry.load`.

    Hazard: a personal adapter holds what its owner's own examples taught it, unprotected: no noise,
    no sum with others. Whoever has the file and the shared adapter can search it for them.
    """
    from ...core.models.lora.adapter import CONFIG_FILE

    card = check_personal(registry.card(prefix), personal)
    name, adapter = registry.find(prefix), registry.load(prefix)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty and is kept as it is; name a new folder")
    if card.personal:
        paths.private_folder(folder).chmod(0o700)
    adapter.save(folder, mode=card.mode)
    if base:
        config = {**adapter.peft_config(), "base_model_name_or_path": base}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        paths.write_atomically(folder / CONFIG_FILE, text.encode("utf-8"), mode=card.mode)
    paths.write_atomically(folder / CARD, card.text().encode("ascii"), mode=card.mode)
    return name


def check_rows(registry: Registry, prefix: str, weights: Callable[[], "Weights"]) -> bool:
    """Whether the adapter is known to mean the same over its model's folder, which is what PEFT
    adapts; False: it may not, and its model is not here to say.

    Args:
        weights: loads the model, which decides.

    Raises:
        ModelFileError: it does not, so that PEFT would compute it wrongly. As `Registry.load`.
    """
    from ...core.models.architecture import ROPE_PROJECTIONS
    from ...core.models.families import FAMILIES
    from ...core.models.lora.adapter import MODULE

    adapter, card = registry.load(prefix), registry.card(prefix)
    changed = {match[2] for match in map(MODULE.match, adapter.tensors) if match}
    if not adapter.base_digest:
        return True  # another's, which is never changed
    try:
        model = weights()
    except ModelNotFoundError:
        return False
    if model.digest not in (adapter.base_digest, *card.models):
        return False
    family = FAMILIES.get(model.architecture.family)
    if model.architecture.state_spaces:
        raise ModelFileError(
            f"{model.architecture.family}'s folders hold their matrices multiplied or under other "
            f"names than ours, so PEFT would compute adapter {card.adapter[:SHOWN]} wrongly; "
            f"export it with --gguf FILE"
        )
    paired = family is not None and family.hf_interleaved
    if paired and not changed.isdisjoint(ROPE_PROJECTIONS):
        raise ModelFileError(
            f"adapter {card.adapter[:SHOWN]} changes q_proj or k_proj, whose rows stand in another "
            f"order in {model.architecture.family}'s folders than in ours, so PEFT would compute "
            f"it wrongly; export it with --gguf FILE"
        )
    return True


def check_personal(card: Card, allowed: bool) -> Card:
    """The card, if its adapter may leave this node's registry.

    Raises:
        ConfigError: it is personal, and its owner has not said so.
    """
    if card.personal and not allowed:
        raise ConfigError(
            f"adapter {card.adapter[:SHOWN]} is personal: it holds what your own examples taught "
            f"it, in clear; to copy it for "
            "yourself say --personal, to give something away export the "
            "shared one it stands on: " + card.parent[:SHOWN]
        )
    return card


def export_gguf(
    registry: Registry, prefix: str, file: Path, weights: "Weights", *, personal: bool = False
) -> str:
    """Write the file that llama.cpp takes with `--lora`; return the adapter's name.

    Raises:
        ConfigError: the file is there, no room, or `check_personal`. IntegrityError: another model
        than the adapter's. As `Registry.load`.

    Hazard: as `export_peft`.
    """
    from . import gguf_adapter

    card = check_personal(registry.card(prefix), personal)
    name, adapter = registry.find(prefix), registry.load_for(prefix, weights.digest)
    if file.exists():
        raise ConfigError(f"{file}: is there already and is kept; choose another name")
    if adapter.base_digest not in ("", weights.digest):
        raise IntegrityError(
            f"adapter {name[:12]} belongs to model {adapter.base_digest[:12]}…, found "
            f"{weights.digest[:12]}…; name its own "
            "with --model"
        )
    try:
        gguf_adapter.write(file, adapter, weights.architecture, mode=card.mode)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error}); make room") from error
    return name


def bring_in(
    registry: Registry,
    folder: Path,
    weights: "Weights",
    title: str = "",
    chain: Chain | None = None,
) -> tuple[str, Card]:
    """Keep a PEFT checkpoint; return its name and the card that is kept with it.

    Args:
        title: what an unsigned adapter is called here; by default its folder.
        chain: of the federation that its card names; by default what this node accepted of it.

    Raises:
        ModelFileError, ModelNotFoundError: not LoRA as we compute it, or it does not fit the
        model's shapes. IntegrityError: made for another model, or its card is of another adapter.
        FederationError: its card is malformed or wrongly signed, by a key of no part in its
            federation, or of a federation whose file is not here.
    """
    from ...core.models.lora.adapter import Adapter

    adapter, path, card = Adapter.load(folder), folder / CARD, None
    if path.exists():
        card = Card.parse(path.read_text("ascii", "replace"), f"{path}: ", unsigned=True)
    files = card.models if card is not None else ()  # of the adapter's model
    fits = weights.digest in files and adapter.base_digest in files
    if adapter.base_digest not in ("", weights.digest) and not fits:
        raise IntegrityError(
            f"{folder}: made for model {adapter.base_digest[:12]}…, found {weights.digest[:12]}…; "
            f"name its own with --model"
        )
    try:
        adapter.check(weights.architecture)
    except ModelFileError as error:
        raise ModelFileError(f"{folder}: {error}") from None
    if card is not None and card.signer:
        chain = chain or (
            roster.kept_for(registry.home, card.federation) if card.federation else None
        )
        if chain is None:
            raise FederationError(
                f"{path}: signed for federation {card.federation[:SHOWN]}…, whose file is not here "
                f"to check the signer with; "
                f"name it with --federation FED, or remove {CARD} to keep the adapter as unsigned"
            )
        check_signer(card, chain, f"{path}: ")
    if not fits:
        adapter = dataclasses.replace(adapter, base_digest=weights.digest)
    if card is None:
        card = Card.unsigned(content_hash(adapter), title or folder.resolve().name, weights.digest)
    name = registry.put(adapter, card)
    return name, registry.card(name)
