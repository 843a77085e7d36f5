"""Other files of the federation's one model: its quantisations, each by name and digest.

Knows names and digests. Knows nothing of weights (see `federation.model_files`) or of rounds.
Always: what members sign, and what an adapter belongs to, is the model's own digest; a variant is
another file that its owner declared to be the same model, for nodes that hold that one.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .policy import ModelTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One more file of the same model."""

    name: str
    digest: str  # sha256 of that file


def check_variants(model: "ModelTable") -> None:
    """Require different digests. Raises ValueError."""
    digests = digests_of(model)
    for digest in digests:
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError(
                f"a variant's digest = {digest[:16]!r} must be 64 lower-case hexadecimal digits"
            )
    if len(set(digests)) != len(digests):
        raise ValueError("variants: a digest stands twice, or is the model's own")
    if len(set(names_of(model))) != len(digests):
        raise ValueError(
            "variants: a name stands twice, or is the model's own; give the file another name"
        )


def digests_of(model: "ModelTable") -> tuple[str, ...]:
    """The model's digest, then its variants'."""
    return model.digest, *(variant.digest for variant in model.variants)


def names_of(model: "ModelTable") -> tuple[str, ...]:
    """The model's name, then its variants'."""
    return model.name, *(variant.name for variant in model.variants)


def with_variants(model: "ModelTable", added: list[Variant]) -> list[dict[str, str]]:
    """The list of variants with some more, as TOML's types; one of the same name is replaced."""
    kept = {one.name: one for one in (*model.variants, *added)}
    return [dataclasses.asdict(one) for one in kept.values()]
