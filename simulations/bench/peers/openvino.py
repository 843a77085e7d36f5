"""OpenVINO GenAI, reading the same GGUF file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class OpenVino:
    """See `workload.Peer`."""

    def __init__(self, model: Path, threads: int) -> None:
        import openvino
        import openvino_genai

        self.tensor: Any = openvino.Tensor
        self.genai: Any = openvino_genai
        self.pipe = openvino_genai.LLMPipeline(
            str(model), "CPU", {"INFERENCE_NUM_THREADS": threads}
        )

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        """See `workload.Peer`."""
        ids = np.array(prompts, np.int64)
        inputs = self.genai.TokenizedInputs(self.tensor(ids), self.tensor(np.ones_like(ids)))
        config = self.genai.GenerationConfig(
            max_new_tokens=tokens, ignore_eos=True, do_sample=False
        )
        self.pipe.generate(inputs, config)

    def close(self) -> None:
        """Let go of the pipeline, which ends its threads."""
        del self.pipe
