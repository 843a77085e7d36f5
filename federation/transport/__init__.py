"""Flower, and nothing else: with `engines` the only folder that imports flwr, as of flwr 1.41.

Reading order: records (what travels), proof, listener and fleet_endpoint (what the network reaches,
and requests for work that wait), superlink (Flower behind it), messenger, pending_deliveries,
refusals and link (the coordinator's side), reach, connection and node (a member's side). Flower's
own engines: `../engines`. tests/federation/transport/test_flower_contract.py fails when an internal
that is used here moves.

A message of up to 4 MiB costs two requests: it comes with the answer to a held request for work,
and its answer goes in the message that announces it. A longer one travels as Flower's objects,
chunks of 5 MiB named by their content, and goes on where it was after an interruption. A node that
asks for work while it owes an answer never got its message (or has died since): it is handed it
again, and what it has done already its ledger refuses to do twice.
"""

import os
import warnings

# Before the first import of flwr: it calls out otherwise.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

with warnings.catch_warnings():
    # flwr 1.41 pins a typer that uses names which click has deprecated: nothing that a user of this
    # project could mend.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(click|typer|flwr)\b")
    import flwr.app
    import flwr.supercore.logger  # noqa: F401
