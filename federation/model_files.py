"""Which file of the federation's model this node holds: the model itself, or another quantisation
of it.

Knows names, digests and this disk. Knows nothing of rounds.
Always: weights that leave here came from a file whose digest the federation's owner signed, and
bear the model's own digest: what is trained on them belongs to the model, not to the file, and has
one name in every member. A name only says where to look first; where the file lies on its founder's
disk is nobody's business.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import paths
from ..core.errors import ConfigError, IntegrityError, ModelError, ModelNotFoundError
from .spec.policy import ModelTable, Policy, Variant, digests_of, names_of
from .training.synthetic_task import REHEARSAL_DIGEST

if TYPE_CHECKING:
    from ..core.models.weights import Weights

PLACES_FILE = "model-files.json"  # in the node's home: where a model of one's own lies, by digest


def resident(
    policy: Policy, loaded: "Weights | None" = None, served: str = "", *, named: str = ""
) -> "Weights":
    """The federation's frozen model: the one this process holds, if it is that one, or from this
    node's disk.

    Args:
        served: name or path of what this node's engine serves: looked at first.
        named: name or path that this node's owner gave for this model: no other one is taken.

    Raises:
        ModelNotFoundError: says how to pull it, or how to name its file.
        IntegrityError: another file than the federation agreed on.
        ConfigError: fewer layers than the federation trains, or a federation without a model.
    """
    model = policy.model
    if policy.distillation.on:
        raise ConfigError(
            f"members of {policy.name} bring models of their own; take part with `quietchoir join "
            f"--public FILE --model NAME --data FOLDER`"
        )
    if model.digest == REHEARSAL_DIGEST:
        raise ConfigError(
            f"{policy.name} was founded for rehearsals and names no model; add --rehearse N, or "
            f"have its owner found one with a model (quietchoir federation init --model NAME)"
        )
    if not named and loaded is not None and loaded.digest in digests_of(model):
        return fitting(policy, loaded)
    from ..core.models.weights import load

    path = named_file(model, named) if named else find(model, served)
    weights = load(path)
    if weights.digest not in digests_of(model):
        raise IntegrityError(f"{path}: changed while it was read; start again")
    if named:
        remember(path, weights.digest)
    return fitting(policy, weights)


def named_file(model: ModelTable, named: str) -> Path:
    """What the owner of this node says is the federation's model.

    Raises:
        ModelNotFoundError: nothing is there. IntegrityError: it is another one.
    """
    from ..core.models.hub import catalog
    from ..core.models.weights import digest_of

    path = catalog.find(named)
    if (found := digest_of(path)) not in digests_of(model):
        raise IntegrityError(
            f"--model {named} has sha256 {found[:16]}…, the federation agreed on "
            f"{' or '.join(f'{digest[:16]}…' for digest in digests_of(model))} ({model.name}); "
            f"name the right file"
        )
    return path


def find(model: ModelTable, served: str = "") -> Path:
    """The first file or folder on this disk that is one of the model's: by the names that are
    known, then by digest.

    A name in a federation's file is looked up in the catalog alone: it is somebody else's word, and
    no path of this disk.

    Raises:
        ModelNotFoundError, IntegrityError: as `resident`.
    """
    from ..core.models.hub import catalog
    from ..core.models.weights import digest_of

    agreed, wrong = dict(zip(names_of(model), digests_of(model), strict=True)), ""
    known = {entry.name for entry in catalog.entries()}
    for name in dict.fromkeys(
        (*([served] if served else []), *(one for one in agreed if one in known))
    ):
        try:
            path = catalog.find(name)
            found = digest_of(path)
        except (ModelError, OSError):
            continue
        if found in agreed.values():
            return path
        if name in agreed:
            wrong = wrong or (
                f"model {name} here has sha256 {found[:16]}…, the federation agreed on "
                f"{agreed[name][:16]}…; "
                f"run: quietchoir model pull {name}, or name the right file with --model PATH"
            )
    for path, digest in elsewhere(digests_of(model)):
        if digest in agreed.values():
            return path
    if wrong:
        raise IntegrityError(wrong)
    pull = f"run: quietchoir model pull {model.name}; or " if model.name in known else ""
    others = f" (or one of {', '.join(names_of(model)[1:])})" if model.variants else ""
    raise ModelNotFoundError(
        f"the federation's model {model.name}, sha256 {model.digest[:16]}…{others}, is not on this "
        f"disk; {pull}name its file, "
        "wherever it lies and whatever it is called, with --model PATH"
    )


def elsewhere(digests: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Paths that may be one of these, each with its digest: models of one's own that were named
    once, then all pulled ones.
    """
    from ..core.models.hub import catalog
    from ..core.models.weights import digest_of

    known = places()
    pulled = [
        catalog.place(entry)
        for entry in catalog.entries()
        if entry.kind == "chat" and catalog.is_here(entry)
    ]
    folder = paths.models()
    loose = [
        *folder.glob("*.gguf"),
        *folder.glob("*/*.gguf"),
        *(one.parent for one in folder.glob("*/config.json")),
    ]
    for path in dict.fromkeys(
        (*(known[digest] for digest in digests if digest in known), *pulled, *sorted(loose))
    ):
        try:
            yield path, digest_of(path)
        except (ModelError, OSError):  # gone, or not whole
            continue


def places() -> dict[str, Path]:
    """Where models of one's own were when they were named, by digest; what is damaged is as good
    as empty.
    """
    try:
        table = json.loads((paths.home() / PLACES_FILE).read_text("utf-8"))
        return {str(digest): Path(path) for digest, path in table.items()}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return {}


def remember(path: Path, digest: str) -> None:
    """Look there first for this digest from now on."""
    known = {**places(), digest: path.absolute()}
    content = json.dumps(
        {one: str(where) for one, where in sorted(known.items())}, indent=1
    ).encode("utf-8")
    paths.write_atomically(paths.private_folder(paths.home()) / PLACES_FILE, content, mode=0o600)


def title(given: str) -> str:
    """What the federation calls a model that its founder named so: never a path of the founder's
    disk.
    """
    from ..core.models.hub import catalog

    if given in {entry.name for entry in catalog.entries()}:
        return given
    name = Path(given).name
    return name.removesuffix(".gguf") or given


def name_here(model: ModelTable) -> str:
    """A name or path of the first of the model's files that is on this disk; the model's own
    name if none is.
    """
    try:
        return str(find(model))
    except ModelError:
        return model.name


def fitting(policy: Policy, weights: "Weights") -> "Weights":
    """`weights` under the model's own digest, if they have the layers that are trained. Raises
    ConfigError.
    """
    if policy.adapter.upper_layers > weights.architecture.num_layers:
        raise ConfigError(
            f"the federation trains the upper {policy.adapter.upper_layers} layers, "
            f"{policy.model.name} has "
            f"{weights.architecture.num_layers}; its owner must found it again with fewer "
            f"--upper-layers"
        )
    return (
        weights
        if weights.digest == policy.model.digest
        else dataclasses.replace(weights, digest=policy.model.digest)
    )


def variant_given(model: ModelTable, text: str) -> Variant:
    """What `--variant NAME` or `--variant NAME=SHA256` names; a path is remembered here, and its
    last part alone is told.

    A file on this disk is compared with the model, if that is here too; a digest alone is the
    owner's word.

    Raises:
        ModelNotFoundError: not on this disk. ConfigError: not the same model in another format.
    """
    name, _, digest = text.partition("=")
    if digest:
        return Variant(name=title(name), digest=digest)
    from ..core.models import kinship
    from ..core.models.hub import catalog
    from ..core.models.weights import load

    path = catalog.find(name)
    weights = load(path)
    try:
        main = load(find(model))
    except ModelError:
        main = None
    if (
        main is not None
        and main.digest == model.digest
        and (apart := kinship.distance(main, weights)) > kinship.FAR
    ):
        raise ConfigError(
            f"--variant {name}: its numbers lie {apart:.2f} of their size from those of "
            f"{model.name}, expected at most "
            f"{kinship.FAR}; it is another model, not another quantisation of this one"
        )
    if title(name) != name:
        remember(path, weights.digest)
    return Variant(name=title(name), digest=weights.digest)
