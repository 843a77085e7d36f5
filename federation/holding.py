"""Which file of the federation's model this node holds: the model itself, or another quantisation of it.

Knows names, digests and this disk. Knows nothing of rounds.
Always: weights that leave here came from a file whose digest the federation's owner signed, and bear the model's own digest:
what is trained on them belongs to the model, not to the file, and has one name in every member.
"""

import dataclasses
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, IntegrityError, ModelNotFoundError
from .membership.policy import ModelTable, Policy
from .membership.variants import Variant, digests_of, names_of

if TYPE_CHECKING:
    from ..core.models.weights import Weights


def resident(policy: Policy, loaded: "Weights | None" = None, served: str = "") -> "Weights":
    """The federation's frozen model: the one this process holds, if it is that one, or from this node's disk.

    Args:
        served: what this node's engine is configured to serve; where the federation has variants, it is looked at first.

    Raises:
        ModelNotFoundError: says how to pull it.
        IntegrityError: another file than the federation agreed on.
        ConfigError: fewer layers than the federation trains.
    """
    model = policy.model
    if loaded is not None and loaded.digest in digests_of(model):
        return fitting(policy, loaded)
    names = (served, *names_of(model)) if served and model.variants else names_of(model)
    return fitting(policy, first_held(model, names))


def first_held(model: ModelTable, names: tuple[str, ...]) -> "Weights":
    """The first of these that is on this disk and is one of the model's files.

    Raises:
        ModelNotFoundError, IntegrityError: as `resident`.
    """
    from ..core.models import catalog
    from ..core.models.weights import load

    wrong, missing = None, None
    for name in names:
        try:
            weights = load(catalog.find(name))
        except ModelNotFoundError as error:
            missing = missing or (error if name == model.name else None)
            continue
        if weights.digest in digests_of(model):
            return weights
        if name in names_of(model):
            wrong = wrong or (name, weights.digest)
    if wrong is not None:
        name, found = wrong
        agreed = dict(zip(names_of(model), digests_of(model), strict=True))[name]
        raise IntegrityError(
            f"model {name} here has sha256 {found[:16]}…, the federation agreed on {agreed[:16]}…; "
            f"run: quietchoir model pull {name}"
        )
    others = f" (or one of {', '.join(names_of(model)[1:])})" if model.variants else ""
    raise ModelNotFoundError(f"{missing}{others}")


def name_here(model: ModelTable) -> str:
    """The name of the first of the model's files that is on this disk; the model's own if none is."""
    from ..core.models import catalog

    for name in names_of(model):
        try:
            catalog.find(name)
        except ModelNotFoundError:
            continue
        return name
    return model.name


def fitting(policy: Policy, weights: "Weights") -> "Weights":
    """`weights` under the model's own digest, if they have the layers that are trained. Raises ConfigError."""
    if policy.adapter.upper_layers > weights.architecture.layers:
        raise ConfigError(
            f"the federation trains the upper {policy.adapter.upper_layers} layers, {policy.model.name} has "
            f"{weights.architecture.layers}; its owner must found it again with fewer --upper-layers"
        )
    return weights if weights.digest == policy.model.digest else dataclasses.replace(weights, digest=policy.model.digest)


def variant_given(model: ModelTable, text: str) -> Variant:
    """What `--variant NAME` or `--variant NAME=SHA256` names.

    A file on this disk is compared with the model, if that is here too; a digest alone is the owner's word.

    Raises:
        ModelNotFoundError: not on this disk. ConfigError: not the same model in another format.
    """
    name, _, digest = text.partition("=")
    if digest:
        return Variant(name=name, digest=digest)
    from ..core.models import catalog, kinship
    from ..core.models.weights import load

    weights = load(catalog.find(name))
    try:
        main = load(catalog.find(model.name))
    except ModelNotFoundError:
        main = None
    if main is not None and main.digest == model.digest and (apart := kinship.distance(main, weights)) > kinship.FAR:
        raise ConfigError(
            f"--variant {name}: its numbers lie {apart:.2f} of their size from those of {model.name}, expected at most "
            f"{kinship.FAR}; it is another model, not another quantisation of this one"
        )
    return Variant(name=name, digest=weights.digest)
