"""Take part in a federation from Python, with what you consent to train on, until it has finished.

python examples/join_a_federation.py FEDERATION.json --data FOLDER [--home DIR]
python examples/join_a_federation.py FEDERATION.json --rehearse 1000    no model, no data: a trial

The same as `quietchoir join --once`. FEDERATION.json is what its owner hands out once the card of
this node's key (`quietchoir federation identity`) stands in it.
"""

import argparse
from pathlib import Path

from quietchoir.core import config
from quietchoir.federation.client_node import ClientOptions, default_home, join
from quietchoir.federation.events import FederationEvent


def show(event: FederationEvent) -> None:
    """One line an event: what it is, then its numbers."""
    fields = event.table().items()
    print(event.name, *(f"{name}={value}" for name, value in fields if name != "event"), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="the federation, as its owner signed it")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--home", type=Path, default=default_home(), help="keys and adapters")
    parser.add_argument("--rehearse", type=int, default=0, metavar="N", help="N pretended values")
    asked = parser.parse_args()
    consent = config.load()  # what this node's owner allows: a federation below it is refused
    join(ClientOptions(once=True, **vars(asked)), consent, show)
