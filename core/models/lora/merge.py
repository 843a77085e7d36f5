"""An adapter multiplied into its base: one model that needs no adapter.

Knows products and names. Knows nothing of files. Always: what the adapter does not change is the
base's own object.
"""

import hashlib

from ...errors import ModelFileError
from ..quant.tensor import plain
from ..weights import Weights
from .adapter import Adapter


def merged(weights: Weights, adapter: Adapter, digest: str) -> Weights:
    """`weights` with W + scale * B A in the place of each W that `adapter` changes, float32.

    Args:
        digest: of the adapter's content, which the new model's own follows from.

    Raises:
        ModelFileError: it belongs to another model, or changes more than products.
    """
    if adapter.base_digest and adapter.base_digest != weights.digest:
        raise ModelFileError(
            f"the adapter was trained on the model {adapter.base_digest[:12]}, found "
            f"{weights.digest[:12]}; name that model"
        )
    adapter.check(weights.architecture)
    if not adapter.only_adds:
        raise ModelFileError(
            "the adapter changes biases or magnitudes, which are not merged; use a plain LoRA"
        )
    tensors = dict(weights.tensors)
    for module, (a, b) in adapter.products(weights.tensors)[0].items():
        whole = weights.tensors[f"{module}.weight"].dequantize()
        tensors[f"{module}.weight"] = plain(whole.addmm_(b.T, a.T))
    own = hashlib.sha256(f"{weights.digest} with {digest}".encode()).hexdigest()
    return Weights(weights.architecture, tensors, weights.tokenizer, own, weights.sampling)
