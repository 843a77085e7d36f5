"""A node that serves a GGUF file with compiled kernels never imports torch: 200 MB of memory and
a second and a half.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from quietchoir.core.engine.backends.native import library

SERVE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not there")

sys.meta_path.insert(0, Refuse())
from pathlib import Path
import quietchoir.node
from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import Constraint, SamplingParams
from quietchoir.core.models import weights

engine = Engine(weights.load(Path(sys.argv[1])), EngineConfig(threads=1, context=256))
engine.start()
prompt = tuple(engine._weights.tokenizer.encode("Count: one two three one two three one"))
asked = [
    {}, {"temperature": 1.0, "seed": 1},
    {"temperature": 0.7, "seed": 1, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"logprobs": 3},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5, "logit_bias": ((5, 1.0),)},
    {"constraint": Constraint("regex", "[0-9]{3}")},
]
requests = [
    GenerationRequest(prompt=prompt, sampling_params=SamplingParams(max_tokens=6, **one))
    for one in asked
]
for generation in [engine.submit(request) for request in requests]:
    generation.text()
    assert generation.completion_tokens
engine.stop()
assert "torch" not in sys.modules
print("served")
"""


@pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled")
def test_a_node_serves_every_kind_of_request_without_torch(model_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(model_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "served\n", done.stderr[-2000:]
