"""How many threads torch takes in the engine's own thread.

Always: only the calling thread changes.
"""

import threading

import torch


def compute_alone() -> None:
    """Let torch compute on the calling thread alone; all others keep what they have.

    For a thread whose model brings threads of its own. Torch's would compete with them: they spin for milliseconds after
    the smallest work, such as finding the best of 49,152 logits, and made a step three times as long (measured).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # Torch also remembers the number for threads that come later; a thread of its own sets that back, and no more.
    other = threading.Thread(target=torch.set_num_threads, args=(before,))
    other.start()
    other.join()
