"""How many threads torch takes in the engine's own thread.

Always: only the calling thread changes.
"""

import sys
import threading


def compute_alone() -> bool:
    """Let torch compute on the calling thread alone; all others keep what they have. False while
    nobody has imported torch.

    For a thread whose model brings threads of its own. Torch's would compete with them: they spin
    for milliseconds after the smallest work, such as finding the best of 49,152 logits, and made a
    step three times as long (measured).
    """
    if "torch" not in sys.modules:
        return False
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # Torch also remembers the number for threads that come later; a thread of its own sets that
    # back, and no more.
    other = threading.Thread(target=torch.set_num_threads, args=(before,))
    other.start()
    other.join()
    return True


def compute_with(threads: int) -> None:
    """Let torch take so many threads for what the calling thread computes."""
    import torch

    torch.set_num_threads(threads)
