"""A model's graph as an ONNX file, and what ONNX Runtime computes from one.

Knows torch's exporter and ONNX Runtime. Knows nothing of what the engine says.
Always: the graph is `openvino.graph`'s own, with as many tokens and rows as are asked for; weights
are float32, in a file beside it, so that a model may be larger than the 2 GB a graph holds.
"""

import contextlib
import io
import logging
import warnings
from collections import abc
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....errors import ModelError
from ....models.weights import Weights
from ..openvino.graph import INPUTS, OUTPUTS, PromptGraph

FILE = "model.onnx"
WEIGHTS = f"{FILE}.data"  # as torch's exporter calls it
EXAMPLE_TOKENS, EXAMPLE_ROWS = 5, 2  # of the sequence by which the network is walked


def save(weights: Weights, folder: Path) -> Path:
    """Write `folder/model.onnx` and its weights beside it.

    Raises:
        ModelError: a network that is not exported, or the disk refuses. MissingPartError: torch's
            exporter is not installed.
    """
    module = PromptGraph(weights).eval()
    example = (torch.arange(EXAMPLE_TOKENS), torch.arange(EXAMPLE_ROWS))
    lengths = tuple({0: torch.export.Dim(name)} for name in INPUTS)
    path = folder / FILE
    # it tells of packages that none of our models needs
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        # it prints what it does
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                example,
                input_names=[*INPUTS],
                output_names=[*OUTPUTS],
                dynamic_shapes=lengths,
                dynamo=True,
                verbose=False,
            )
            if program is None:
                raise RuntimeError("the exporter gave nothing")
            program.save(path, external_data=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: the graph cannot be written ({reason:.200})") from error
    return path


def logits(path: Path, tokens: abc.Sequence[int]) -> np.ndarray:
    """What ONNX Runtime's processor says behind each token, float32 [N, V]."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {"tokens": np.array(tokens, np.int64), "rows": np.arange(len(tokens))}
    return np.array(session.run([OUTPUTS[0]], given)[0])
