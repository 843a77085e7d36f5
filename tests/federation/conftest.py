"""Loads flwr by our own door first: it quiets the deprecations that flwr's pinned typer raises
on import.
"""

import quietchoir.federation.transport  # noqa: F401
