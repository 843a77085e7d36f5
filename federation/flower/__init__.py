"""Flower, and nothing else: the only folder that imports flwr, written against flwr 1.41.

Reading order: superlink (the one door to the network), link (the coordinator's side), node (a member's side), apps (plain
objects for Flower's own engines). tests/federation/test_flower_contract.py fails when an internal that is used here moves.
"""

import os
import warnings

# Before the first import of flwr: it calls out otherwise.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

with warnings.catch_warnings():
    # flwr 1.41 pins a typer that uses names which click has deprecated: nothing that a user of this project could mend.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(click|typer|flwr)\b")
    import flwr.app
    import flwr.supercore.logger  # noqa: F401
