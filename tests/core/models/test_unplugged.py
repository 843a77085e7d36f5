"""After a pull, the network may be unplugged: loading, one forward pass and one embedding need
none.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Runs in a process of its own, in which every way to the network is closed before the product is
# imported.
SCRIPT = """
import socket, sys

def refuse(*_, **__):
    raise RuntimeError("reached for the network")

for way in ("connect", "connect_ex", "sendto", "sendmsg"):
    setattr(socket.socket, way, refuse)
for way in ("create_connection", "getaddrinfo", "gethostbyname"):
    setattr(socket, way, refuse)

import torch
from quietchoir.core.engine.embedder import SentenceEmbedder
from quietchoir.core.models import weights
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.hub import catalog
from quietchoir.core.models.transformer import Transformer

def make_linear(blocks):
    linear = torch.nn.Linear(blocks.shape[1], blocks.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(blocks.dequantize(), requires_grad=False)
    return linear

loaded = weights.load(catalog.find("smollm2-135m-instruct"))
question = {"role": "user", "content": "What is the capital of France?"}
tokens = torch.tensor(loaded.tokenizer.encode_chat([question]))
network = Transformer(loaded, make_linear)
with torch.inference_mode():
    places, attention = torch.arange(len(tokens)), packed_attention([len(tokens)])
    rows = network.layers_forward(network.embed(tokens), places, attention)
    print(loaded.tokenizer.decode([int(network.logits(rows[-1:]).argmax())]))
print(SentenceEmbedder.load(catalog.find("minilm-l6-v2")).embed(["hello"]).shape)
assert catalog.pull("minilm-l6-v2") == catalog.find("minilm-l6-v2")
"""


def unshare() -> list[str]:
    """Command that starts a program in a network namespace without any interface, where this
    machine allows it.
    """
    command = ["unshare", "--user", "--map-root-user", "--net"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], capture_output=True).returncode
    ):
        return []
    return command


def test_everything_runs_unplugged_after_a_pull(model_path: Path, embedder_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")
    }
    result = subprocess.run(
        [*unshare(), sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["The", "(1, 384)"]


def test_the_refusal_would_notice() -> None:
    """The test above can fail: a program that does reach out is stopped."""
    reaching = SCRIPT.split("import torch")[0] + (
        "import urllib.request; urllib.request.urlopen('http://192.0.2.1/', timeout=1)"
    )
    result = subprocess.run(
        [sys.executable, "-c", reaching], capture_output=True, text=True, timeout=60
    )
    assert result.returncode and "reached for the network" in result.stderr
