"""What the plain model says by itself: targets that teach an adapter to leave talk as it is.

Knows an engine and sampling. Knows nothing of homes, files or adapters.
Always: the same model, prompts and seed give the same answers; an answer is whole sentences, or it
is left out.

Source: Li and Hoiem 2016, "Learning without Forgetting", arXiv 1606.09282, section 3: old outputs
on new inputs are the targets that keep what was known.
"""

import re
from collections.abc import Sequence

from ..config import EngineConfig
from ..engine.engine import Engine
from ..engine.request import GenerationRequest
from ..engine.sampling.params import SamplingParams
from ..models.weights import Weights

MOST_TOKENS = 40  # of an answer; what is longer ends at its last whole sentence
KV_BYTES = 64 << 20
WHOLE = re.compile(r"^.*?[.!?](?=\s|$)", re.DOTALL)
QUEUE_S = 3600.0  # all wait at once, and nobody waits for them
SENTENCES = 1  # of an answer; the first says what it would say, and costs least to learn


def own_answers(weights: Weights, prompts: Sequence[str], seed: int) -> list[str]:
    """The model's answer to each prompt, as a conversation of one request; "" where it came to no
    whole sentence.
    """
    limits = EngineConfig(
        kv_bytes=KV_BYTES, max_waiting=max(64, len(prompts)), queue_timeout_s=QUEUE_S
    )
    engine = Engine(weights, limits)
    engine.start()
    try:
        asked = [
            engine.submit(
                GenerationRequest(
                    prompt=tuple(
                        weights.tokenizer.encode_chat([{"role": "user", "content": text}])
                    ),
                    sampling_params=SamplingParams(
                        max_tokens=MOST_TOKENS, temperature=0.7, top_p=0.95, seed=seed + place
                    ),
                )
            )
            for place, text in enumerate(prompts)
        ]
        return [first_sentences(generation.text()) for generation in asked]
    finally:
        engine.stop()


def first_sentences(text: str) -> str:
    """At most `SENTENCES` whole sentences at the beginning of `text`; "" if there is none."""
    rest, taken = text.strip(), ""
    for _ in range(SENTENCES):
        found = WHOLE.match(rest)
        if found is None:
            break
        taken, rest = f"{taken} {found[0]}".strip(), rest[found.end() :].strip()
    return taken
