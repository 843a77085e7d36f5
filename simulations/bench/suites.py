"""Which suites there are, and how one is run.

Knows each suite's module by name. Imports none of them until it is run.
A suite is a module with `measure(quick=, tell=, keep=)`, which returns its report, and
`figures(report)`, the rows of its table; a report has the keys `what`, `seed`, `repeats`, `clock`,
`spread` and `exact` besides its figures. After each part a suite hands what it has so far to
`keep`, so that a run that is cut off keeps what it measured. One that names `PARTS` runs those
alone that `only` names, and leaves the figures of others out. One that says `RESUMES` is given as
`earlier` what such a run kept, and goes on from there.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from ...core.errors import ConfigError
from .. import machine
from .figures import Figure, Keep, look_up, misses, nobody, number, rounded, so_far

SUITES: Mapping[str, str] = {
    "crypto": "masks, ciphertexts and whole cohorts, beside AES alone, Flower's SecAgg+ and plain "
    "TenSEAL",
    "engine": "tokens a second, memory and first token, beside llama.cpp, OpenVINO and "
    "transformers",
    "serve": "whole nodes under 1, 8 and 32 streaming clients, beside llama.cpp's server",
    "block_types": "the same model in every type of file, beside llama.cpp on the same file",
    "families": "does each family of models load, who computes it, and as transformers does: wrong "
    "must be 0",
    "compress": "fewer bits: size, speed and perplexity beside llama.cpp's quantiser; training "
    "that wins back what rounding lost; distilled students",
    "kernels": "one matrix by each instruction set of this processor, beside the memory's own "
    "speed",
    "context": "what of a long conversation reaches the model, beside keeping the newest tokens; "
    "answers that end in a loop",
    "gpu": "13B in 4 bits on one GPU: memory, and speed beside transformers in bfloat16",
    "federation": "rounds, bytes and memory over TLS without training, beside Flower's own "
    "deployment engine; and faults",
    "simulate": "many parties in one process, beside Flower's simulation under Ray and pfl; what "
    "protection does to learning",
    "retrieval": "documents found by words, by meaning and by both, on the FAQs of Python and "
    "Debian; and how fast among 100,000 passages",
    "search": "a private question among 1,000 to 100,000 passages: host, asker, bytes, recall; "
    "beside TenSEAL's product",
    "learn": "three tasks, together by recipes that are fixed or choose themselves, beside alone "
    "and central with its best knobs; training beside peft's loop",
    "assistant": "the right tool, a question before an action, and injections; trains one adapter",
    "confidence": "calls that are carried out unasked: how many are right; part of the suite above",
    "silence": "talk that adapters answer with a call, with and without the router; second "
    "requests",
    "plugins": "what the sandbox adds to a start and a call; idle plugins; real MCP servers that "
    "work in it",
    "attacks": "what attackers try, each beside the same without protection: broken must be 0",
}


def here() -> tuple[str, ...]:
    """The suites that this machine can run: without a GPU there is nothing to measure on one."""
    import torch

    return tuple(name for name in SUITES if name != "gpu" or torch.cuda.is_available())


class Suite(Protocol):
    """What a suite's module offers."""

    def measure(
        self, *, quick: bool, tell: Callable[[str], None], keep: Keep, **only: Sequence[str]
    ) -> dict[str, Any]: ...

    def figures(self, report: dict[str, Any]) -> Sequence[Figure]: ...


def run(
    name: str,
    *,
    quick: bool,
    tell: Callable[[str], None],
    keep: Keep = nobody,
    only: Sequence[str] = (),
    earlier: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[Figure]]:
    """One suite's report, ready for a file, and the rows of its table.

    Args:
        name: a key of `SUITES`.
        tell: hears what is being measured, and each figure as soon as it is there.
        keep: gets the report, ready for a file and marked `unfinished`, after each part.
        only: the parts that are run, where a suite names its `PARTS`; all by default.
        earlier: what an earlier run kept of this suite.

    Raises:
        ConfigError: a part that this suite has not.
    """
    module = importlib.import_module(f".{name}", __package__)
    check_parts(name, only, getattr(module, "PARTS", {}))
    suite = cast(Suite, module)
    head, told = {"suite": name, "quick": quick, "machine": machine.line()}, set[str]()

    def part(report: dict[str, Any]) -> None:
        for row in so_far(report, suite.figures):
            if row.key not in told:
                tell(f"  {row.key} = {number(look_up(report, row.key))} {row.unit} so far")
            told.add(row.key)
        keep(rounded({**head, "unfinished": True, **report}))

    chosen: dict[str, Any] = {"only": only} if only else {}
    if getattr(module, "RESUMES", False):
        chosen["earlier"] = earlier
    found = suite.measure(quick=quick, tell=tell, keep=part, **chosen)
    # of a part that failed, or was left out, there are no rows
    some = only or found.get("failed")
    rows = so_far(found, suite.figures) if some else list(suite.figures(found))
    return rounded({**head, **found, "aims_missed": {} if quick else misses(found, rows)}), rows


def check_parts(name: str, only: Sequence[str], parts: Mapping[str, str]) -> None:
    """Raises: ConfigError: a part that the suite `name` has not."""
    if unknown := [one for one in only if one not in parts]:
        there = "; ".join(f"{part}: {what}" for part, what in parts.items())
        raise ConfigError(
            f"bench {name} has no part {unknown[0]!r:.40}; "
            + (f"there are {there}" if parts else "it runs whole, leave --only out")
        )
