"""The model families that are computed: one file of this folder each, found by looking.

Knows that each file has one `FAMILY`. Knows none of them.
Always: a family that is not here is refused, never guessed; no name stands for two.
"""

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from ..family import Family


def find() -> tuple[dict[str, Family], dict[str, Family]]:
    """Every family, by GGUF's name of it and by config.json's `model_type`."""
    by_name: dict[str, Family] = {}
    by_type: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        family = import_module(f"{__name__}.{module.name}").FAMILY
        types = (*family.hf_defaults, *family.hf_nested)
        if (
            not isinstance(family, Family)
            or family.name in by_name
            or not by_type.keys().isdisjoint(types)
        ):
            raise RuntimeError(f"families/{module.name}.py: no family, or one that is there twice")
        by_name[family.name] = family
        by_type |= dict.fromkeys(types, family)
    return by_name, by_type


FAMILIES: Mapping[str, Family]
MODEL_TYPES: Mapping[str, Family]
FAMILIES, MODEL_TYPES = find()
