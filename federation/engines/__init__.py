"""Flower's own engines: `flwr run` on a stock SuperLink or under Ray.

Reading order: apps (what Flower calls), stateless_client (a member for one message), grid (our link
over Flower's). What travels is `../transport/records`.
"""

# Before the first import of flwr: it sets what flwr reads then.
from .. import transport  # noqa: F401
