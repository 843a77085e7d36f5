"""One engine in a process of its own: orders as JSON lines on standard input, answers on standard
output.

    python -m quietchoir.simulations.bench.peers NAME MODEL --threads N
        [--first | --repack FILE [--type TYPE] [--importance MATRIX] | --logits TOKENS OUT]

`--first` ends after the first token of one prompt: what a cold start costs. `--repack` writes the
model by llama.cpp's quantiser, as it likes it best or as TYPE, in this process, for whatever kills
an engine kills its quantiser too. `--logits` writes llama.cpp's logits over a text.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .workload import PREFILL, PROMPT, Peer, Prompts, answer_speed, decode_speed, prefill_speed

COLD_TOKENS = 1


def load(name: str, model: Path, threads: int) -> Peer:
    """The engine `name` with its model; imports it and no other."""
    if name == "llamacpp":
        from .llamacpp import LlamaCpp

        return LlamaCpp(model, threads)
    if name == "openvino":
        from .openvino import OpenVino

        return OpenVino(model, threads)
    if name == "transformers":
        from .reference import Transformers

        return Transformers(model, threads)
    from .ours import Ours

    return Ours(model, threads, name)


class Adapted:
    """Our engine with `count` different adapters at work."""

    def __init__(self, peer: Any, count: int) -> None:
        self.peer, self.count = peer, count

    def generate(self, prompts: Any, tokens: int) -> None:
        """See `workload.Peer`."""
        self.peer.generate(prompts, tokens, adapters=self.count)

    def close(self) -> None:
        """See `workload.Peer`; the engine goes on without adapters."""


def obey(peer: Peer, prompts: Prompts, order: Mapping[str, Any]) -> float:
    """One order's figure: tokens a second, or megabytes."""
    if order["what"] == "peak_mb":
        return peak_mb()
    if order["what"] == "prefill":
        return prefill_speed(peer, prompts, order.get("prompt", PREFILL))
    if order["what"] == "answer":
        return answer_speed(peer, prompts, order["tokens"], order["prompt"])
    adapted = Adapted(peer, order["adapters"]) if order.get("adapters") else peer
    return decode_speed(
        adapted, prompts, order["batch"], order["tokens"], order.get("prompt", PROMPT)
    )


def peak_mb() -> float:
    """Most resident memory that this process ever had: its own and what it touched of mapped
    files, whoever it is.
    """
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main() -> None:
    """Load, say so, obey."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--repack", type=Path, metavar="FILE")
    parser.add_argument("--type", default="Q4_0")
    parser.add_argument("--importance", type=Path, metavar="MATRIX")
    parser.add_argument("--logits", type=Path, nargs=2, metavar=("TOKENS", "OUT"))
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    if arguments.repack:
        from .llamacpp import repacked

        written = repacked(arguments.model, arguments.repack, arguments.type, arguments.importance)
        print(written, file=answers, flush=True)
        return
    if arguments.logits:
        from .llamacpp import write_logits

        write_logits(arguments.model, arguments.threads, *arguments.logits)
        print(arguments.logits[1], file=answers, flush=True)
        return
    peer, prompts = (
        load(arguments.name, arguments.model, arguments.threads),
        Prompts(arguments.seed),
    )
    if arguments.first:
        peer.generate(prompts.take(1, PROMPT), COLD_TOKENS)
    print("ready", file=answers, flush=True)
    if arguments.first:
        peer.close()
        return
    for line in sys.stdin:
        print(json.dumps(obey(peer, prompts, json.loads(line))), file=answers, flush=True)
    peer.close()


if __name__ == "__main__":
    main()
