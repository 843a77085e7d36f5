"""Models of other makers by name: where a hub has them, and what is known of each before it comes.

Knows repositories, licences and shapes as their makers publish them. Knows no hash: those come
from the hub when a model is pulled (`catalog.offer`), and no file name but through it.
"""

from dataclasses import dataclass
from typing import Literal

# Licences, as hubs write them, whose terms ask nothing of who runs a model at home.
OPEN_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "0bsd", "zlib"),
        *("cc0-1.0", "cc-by-4.0", "cc-by-3.0", "unlicense", "wtfpl", "odc-by", "pddl"),
        *("gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl-2.1", "lgpl-3.0", "mpl-2.0", "ecl-2.0"),
    }
)


def is_open(licence: str) -> bool:
    """Whether a licence, as a hub or SPDX writes it, is one that asks nothing."""
    return licence.lower() in OPEN_LICENCES


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """One model, as its makers describe it."""

    name: str
    repository: str  # on the hub, with GGUF files
    licence: str  # as the hub writes it
    family: str  # ours, of `families/`
    parameters: float  # weights, in thousands of millions
    gigabytes: float  # of the file that is to be taken, to the nearest 2 %
    layers: int
    kv_heads: int
    head_dim: int
    context: int  # tokens, as published; a node takes [engine] context of them
    quantisation: str = "Q4_K_M"  # the one to take, unless the owner names another
    # "answers": this very file is loaded, measured and asked by our tests and benchmarks;
    # "family": models of its family, small and of random weights, give transformers' logits here,
    # and this one was never loaded by us
    tested: Literal["answers", "family"] = "family"

    @property
    def bytes(self) -> int:
        """About the size of its file."""
        return int(self.gigabytes * 1e9)


def model(
    name: str, repository: str, licence: str, family: str, shape: str, **more: str
) -> KnownModel:
    """One line of the table; `shape` is "weights gigabytes layers kv_heads head_dim
    context".
    """
    weights, gigabytes, *sizes = shape.split()
    layers, kv_heads, head_dim, context = map(int, sizes)
    return KnownModel(
        name=name,
        repository=repository,
        licence=licence,
        family=family,
        parameters=float(weights),
        gigabytes=float(gigabytes),
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        **more,  # type: ignore[arg-type]  # fields by their names
    )


# Source: each repository's model card, list of files, and config.json; as its makers publish them.
KNOWN_MODELS = (
    model(
        *("smollm2-360m-instruct", "bartowski/SmolLM2-360M-Instruct-GGUF", "apache-2.0", "llama"),
        "0.362 0.27 32 5 64 8192",
    ),
    model(
        *("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct-GGUF", "apache-2.0", "qwen2"),
        "0.494 0.49 24 2 64 32768",
    ),
    model(
        *("qwen3-0.6b", "Qwen/Qwen3-0.6B-GGUF", "apache-2.0", "qwen3"),
        "0.596 0.64 28 8 128 40960",
        quantisation="Q8_0",
    ),
    model(
        *("gemma-3-1b-it", "ggml-org/gemma-3-1b-it-GGUF", "gemma", "gemma3"),
        "1.0 0.81 26 1 256 32768",
    ),
    model(
        *("llama-3.2-1b-instruct", "bartowski/Llama-3.2-1B-Instruct-GGUF", "llama3.2", "llama"),
        "1.236 0.81 16 8 64 131072",
    ),
    model(
        *("qwen2.5-1.5b-instruct", "Qwen/Qwen2.5-1.5B-Instruct-GGUF", "apache-2.0", "qwen2"),
        "1.544 1.12 28 2 128 32768",
    ),
    model(
        *("smollm2-1.7b-instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", "apache-2.0"),
        *("llama", "1.711 1.06 24 32 64 8192"),
    ),
    model(
        *("qwen3-1.7b", "Qwen/Qwen3-1.7B-GGUF", "apache-2.0", "qwen3"),
        "1.721 1.83 28 8 128 40960",
        quantisation="Q8_0",
    ),
    model(
        *("granite-3.3-2b-instruct", "ibm-granite/granite-3.3-2b-instruct-GGUF", "apache-2.0"),
        *("granite", "2.534 1.55 40 8 64 131072"),
    ),
    model(
        *("gemma-2-2b-it", "bartowski/gemma-2-2b-it-GGUF", "gemma", "gemma2"),
        "2.614 1.71 26 4 256 8192",
    ),
    model(
        *("smollm3-3b", "ggml-org/SmolLM3-3B-GGUF", "apache-2.0", "smollm3"),
        "3.075 1.92 36 4 128 65536",
    ),
    model(
        *("qwen2.5-3b-instruct", "Qwen/Qwen2.5-3B-Instruct-GGUF", "qwen-research", "qwen2"),
        "3.086 2.1 36 2 128 32768",
    ),
    model(
        *("llama-3.2-3b-instruct", "bartowski/Llama-3.2-3B-Instruct-GGUF", "llama3.2", "llama"),
        "3.213 2.02 28 8 128 131072",
    ),
    model(
        *("phi-4-mini-instruct", "bartowski/microsoft_Phi-4-mini-instruct-GGUF", "mit", "phi3"),
        "3.836 2.49 32 8 128 131072",
    ),
    model(
        *("gemma-3-4b-it", "ggml-org/gemma-3-4b-it-GGUF", "gemma", "gemma3"),
        "3.88 2.49 34 4 256 131072",
    ),
    model(*("qwen3-4b", "Qwen/Qwen3-4B-GGUF", "apache-2.0", "qwen3"), "4.022 2.5 36 8 128 40960"),
    model(
        *("mistral-7b-instruct-v0.3", "bartowski/Mistral-7B-Instruct-v0.3-GGUF", "apache-2.0"),
        *("llama", "7.248 4.37 32 8 128 32768"),
    ),
    model(
        *("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct-GGUF", "apache-2.0", "qwen2"),
        "7.616 4.68 28 4 128 32768",
    ),
    model(
        *("llama-3.1-8b-instruct", "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "llama3.1"),
        *("llama", "8.03 4.92 32 8 128 131072"),
    ),
    model(*("qwen3-8b", "Qwen/Qwen3-8B-GGUF", "apache-2.0", "qwen3"), "8.191 5.03 36 8 128 40960"),
    model(
        *("gemma-3-12b-it", "ggml-org/gemma-3-12b-it-GGUF", "gemma", "gemma3"),
        "11.77 7.3 48 8 256 131072",
    ),
    model(
        *("mistral-nemo-instruct-2407", "bartowski/Mistral-Nemo-Instruct-2407-GGUF", "apache-2.0"),
        *("llama", "12.248 7.48 40 8 128 131072"),
    ),
    model(
        *("olmo-2-1124-13b-instruct", "allenai/OLMo-2-1124-13B-Instruct-GGUF", "apache-2.0"),
        *("olmo2", "13.716 8.35 40 40 128 4096"),
    ),
)
BY_NAME = {known.name: known for known in KNOWN_MODELS}
