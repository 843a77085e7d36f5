"""A suite in parts: each is measured by itself, is written as it ends, and stops no other.

Knows names, functions and the time that they take. Knows nothing of what they measure.
"""

import resource
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.errors import QuietchoirError
from .figures import Keep


def run_parts(
    parts: Mapping[str, Callable[[], None]],
    only: Sequence[str],
    report: dict[str, Any],
    tell: Callable[[str], None],
    keep: Keep,
) -> None:
    """Run the parts, in their order. One that fails, for whatever reason, is named in the report
    with it, and those after it are run: nobody waits beside them. What each took stands in
    `part_s`, on the wall and of processors.

    Args:
        parts: by name, what each adds to `report`.
        only: which of them; empty: all.
        keep: gets the report after each part.
    """
    chosen = [name for name in parts if not only or name in only]
    report |= {"parts": chosen, "part_s": {}}
    for name in chosen:
        tell(f"part {name}")
        begun, spent = time.perf_counter(), spent_s()
        try:
            parts[name]()
        except Exception as error:  # a fault of ours too, which is shown whole
            what = str(error) if isinstance(error, QuietchoirError) else traceback.format_exc()
            report.setdefault("failed", {})[name] = what.strip()
            tell(f"part {name} failed, the others go on: {what.strip()}")
        report["part_s"][name] = {
            "wall": time.perf_counter() - begun,
            "processor": spent_s() - spent,
        }
        keep(report)


def spent_s() -> float:
    """Processor seconds of this process and of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime
