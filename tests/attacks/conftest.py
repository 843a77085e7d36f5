"""Loads flwr by our own door first, as tests/federation does: its pinned typer warns on import."""

import quietchoir.federation.transport  # noqa: F401
