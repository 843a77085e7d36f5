"""The household plugin: carries out what an assistant asks of a home, and remembers the state.

Its tools are the manifest's: names, descriptions and arguments of `home-assistant-intents`, written
there by `python -m quietchoir.plugins.builtin.derive`. Runs inside a sandbox, on the standard
library and the kit.
Always: a refused request changes nothing that is stored.
"""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quietchoir_sdk import SERVER, Storage, ToolFailure, config  # type: ignore[import-not-found]

from . import devices, notes
from .house import House, Refusal, Slots, furnish

ACTS = devices.ACTS | notes.ACTS


def carry_out(act: Callable[[House, Slots], str], storage: Any) -> Callable[..., str]:
    """One tool: the house as it is now, the act, the new state."""

    def run(**slots: Any) -> str:
        try:
            house = furnish(config("home.json"), copy.deepcopy(storage.value), time.time)
            said = act(house, slots)
        except Refusal as refusal:
            raise ToolFailure(str(refusal)) from None
        if house.state != (storage.value or {}):
            storage.save(house.state)
        return said

    return run


def main() -> None:
    """Offer every tool of the manifest and answer."""
    terms = json.loads(Path(__file__).with_name("manifest.json").read_text("utf-8"))
    storage = Storage()
    for tool in terms["tools"]:
        SERVER.add(
            carry_out(ACTS[tool["name"]], storage),
            name=tool["name"],
            description=tool["description"],
            schema=tool["inputSchema"],
            read_only=tool["annotations"]["readOnlyHint"],
        )
    SERVER.serve(terms["id"], terms["version"])


if __name__ == "__main__":
    main()
