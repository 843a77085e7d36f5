"""llama.cpp through its own C functions: no Python sampler, no text, only `llama_decode` and the
highest logit.

Always: one context of 32 sequences over one unified cache, which measured fastest; batches as
long as it allows.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SEQUENCES, CONTEXT = 32, 4096


class LlamaCpp:
    """See `workload.Peer`."""

    def __init__(self, model: Path, threads: int) -> None:
        from llama_cpp import llama_cpp as api

        self.api: Any = api
        # kept: C holds no reference
        self.silence = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self.silence, None)
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(
            str(model).encode(), api.llama_model_default_params()
        )
        parameters = api.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max, parameters.kv_unified = CONTEXT, SEQUENCES, True
        parameters.n_batch, parameters.n_ubatch = 2048, 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, parameters)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(2048, 0, 1)

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        """See `workload.Peer`."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        rows = [
            (token, place, sequence, place == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        sampled = self.decode(rows)
        for step in range(tokens - 1):
            length = len(prompts[0]) + step
            sampled = self.decode(
                [(token, length, sequence, True) for sequence, token in enumerate(sampled)]
            )

    def close(self) -> None:
        """Give back what C holds."""
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """One pass over (token, position, sequence, wanted) rows; the likeliest next tokens of
        those that are wanted.
        """
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (token, place, sequence, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.logits[index] = token, place, wanted
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        if self.api.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        wanted_rows = [index for index, row in enumerate(rows) if row[3]]
        return [int(np.argmax(self.logits(index))) for index in wanted_rows]

    def logits(self, index: int) -> Any:
        """[V] of row `index`, without a copy."""
        return np.ctypeslib.as_array(
            self.api.llama_get_logits_ith(self.context, index), shape=(self.vocabulary,)
        )


def repacked(
    model: Path, out: Path, file_type: str = "Q4_0", importance: Path | None = None
) -> Path:
    """The same model as another type, written once to `out`; llama.cpp has its fastest kernels for
    Q4_0.

    Args:
        importance: an importance matrix that its quantiser weighs errors by.
    """
    if not out.exists():
        from llama_cpp import llama_cpp as api

        silence = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(silence, None)
        parameters = api.llama_model_quantize_default_params()
        parameters.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{file_type}")
        parameters.allow_requantize = True
        weighed = weighing(api, importance) if importance else None
        if weighed is not None:
            parameters.imatrix = weighed
        part = out.with_suffix(".part")
        if api.llama_model_quantize(str(model).encode(), str(part).encode(), parameters):
            raise RuntimeError(f"llama.cpp could not requantise {model}")
        api.llama_log_set(api.llama_log_callback(), None)  # `silence` ends with this function
        part.rename(out)
    return out


def weighing(api: Any, path: Path) -> Any:
    """An importance matrix as llama.cpp's quantiser takes it: an array whose last entry is empty.
    Whoever has it keeps it alive: C holds no reference.
    """
    import ctypes

    from ....core.models.quantization import importance

    entries = importance.read(path).entries
    array = (api.llama_model_imatrix_data * (len(entries) + 1))()
    array.kept = [means.reshape(-1) for means in entries.values()]
    for place, name, means in zip(array, entries, array.kept, strict=False):
        place.name, place.size = name.encode(), means.size
        place.data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return array


def write_logits(model: Path, threads: int, said: Path, out: Path) -> None:
    """Logits of every row of a text, float32 [N, V], as an array file; the text comes as
    `{"window": N, "tokens": […]}`, and no window knows of another.
    """
    asked = json.loads(said.read_text("utf-8"))
    engine, parts = LlamaCpp(model, threads), []
    for start in range(0, len(asked["tokens"]), asked["window"]):
        window = asked["tokens"][start : start + asked["window"]]
        engine.api.llama_memory_clear(engine.api.llama_get_memory(engine.context), True)
        engine.decode([(token, place, 0, True) for place, token in enumerate(window)])
        parts.append(np.stack([engine.logits(row) for row in range(len(window))]))
    np.save(out, np.concatenate(parts))
    engine.close()
