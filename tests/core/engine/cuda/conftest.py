"""Triton's kernels run in its interpreter here: their arithmetic, without a GPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
