"""Our engine, whole: queue, scheduler, runner, sampler, text.

Always: an end-of-text token does not end an answer here, because every peer writes the same number
of tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....core.config import EngineConfig
from ....core.engine.engine import Engine
from ....core.engine.request import GenerationRequest
from ....core.engine.sampling.params import SamplingParams
from ....core.models import weights

ADAPTERS = 8
CLIENTS = 32  # most that are answered at once
# By name: how an engine of ours is set beyond that.
SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {},
    "no_compiler": {},
    "balanced": {"precision": "balanced"},
    "long": {"context": 8192},
    "long_q8": {"context": 8192, "kv_type": "q8"},
    "long_q4": {"context": 8192, "kv_type": "q4"},
}


class Ours:
    """See `workload.Peer`."""

    def __init__(self, model: Path, threads: int, name: str = "ours") -> None:
        self.weights = weights.load(model)
        self.weights.tokenizer.stop_tokens = frozenset()
        config = EngineConfig(threads=threads, drafts=0, max_running=CLIENTS, **SETTINGS[name])
        self.engine = Engine(self.weights, config)
        self.engine.start()
        self.names: list[str] = []  # of adapters, once they are asked for

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int, adapters: int = 0) -> None:
        """See `workload.Peer`; prompt i is answered by adapter i of `adapters`."""
        self.shelve(adapters)
        names = self.names[:adapters] * len(prompts) if adapters else [None] * len(prompts)
        generations = [
            self.engine.submit(
                GenerationRequest(
                    prompt=tuple(prompt),
                    sampling_params=SamplingParams(max_tokens=tokens),
                    adapter=name,
                )
            )
            for prompt, name in zip(prompts, names, strict=False)
        ]
        for generation in generations:
            generation.text()
            if generation.completion_tokens != tokens:
                raise RuntimeError(
                    f"{generation.completion_tokens} tokens came, {tokens} were asked for"
                )

    def close(self) -> None:
        """End the engine's thread."""
        self.engine.stop()

    def shelve(self, count: int) -> None:
        """Load adapters of the product's own shape with random content."""
        if len(self.names) >= count:
            return
        import torch  # adapters are what it is needed for

        from ....core.models.lora.adapter import AdapterShape, Layout, assemble

        shape, architecture = AdapterShape(seed=0), self.weights.architecture
        size = Layout(shape, architecture).size
        for index in range(len(self.names), count):
            flat = torch.randn(size, generator=torch.Generator().manual_seed(index)) * 0.01
            self.engine.adapters.load(
                f"a{index}", assemble(shape, architecture, self.weights.digest, flat)
            )
            self.names.append(f"a{index}")
