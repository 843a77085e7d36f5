"""What strangers stand before: a founded federation, and its coordinator's door.

Knows how both are made. Knows nothing of attacks. Always: in a folder and on a port of their own,
on loopback.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...federation.membership import founding
from ...federation.membership.keys import load_or_create
from ...federation.spec.policy import AdapterTable, ModelTable, Policy, ProtectionTable, Recipe
from ...federation.transport.superlink import SuperLink
from ..cluster import free_port

HOST = "127.0.0.1"


@contextlib.contextmanager
def federation() -> Iterator[tuple[Path, Policy]]:
    """A founded federation with one member, in a folder of its own."""
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there) / "fed"
        founding.create_federation(
            folder,
            founding.Founding(
                name="target",
                address=f"{HOST}:{free_port()}",
                model=ModelTable(digest="ab" * 32),
                adapter=AdapterTable(),
                protection=ProtectionTable(),
                recipe=Recipe(),
            ),
        )
        file = folder / founding.FILE
        card = load_or_create(Path(there) / "ann").card
        yield file, founding.enroll(file, folder / founding.OWNER_KEY, "ann", card)


@contextlib.contextmanager
def opened() -> Iterator[tuple[SuperLink, Policy]]:
    """A coordinator's door."""
    with federation() as (file, policy):
        link = SuperLink(policy, file.parent / founding.TLS_KEY)
        link.start()
        try:
            yield link, policy
        finally:
            link.stop()
