"""What an engine counts.

Knows numbers. Knows nothing of how they come about.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counts since the start, and what is going on now."""

    running: int
    waiting: int
    blocks_free: int
    blocks_total: int
    steps: int
    prompt_tokens: int  # that went through the model, recomputed ones included
    completion_tokens: int
    finished: int
    failed: int
    cancelled: int
    preemptions: int
    # prompt tokens that did not go through the model, because the cache already held them
    reused_tokens: int
    blocks_kept: int  # free blocks that still hold something known
    drafted: int  # guessed tokens that were checked
    accepted: int  # and were right
