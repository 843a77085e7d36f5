"""Messages in Flower's link state: what is answered is taken out, what is still owed stays, piece
by piece.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from quietchoir.federation.membership.founding import (
    FILE,
    OWNER_KEY,
    TLS_KEY,
    Founding,
    create_federation,
    enroll,
)
from quietchoir.federation.membership.keys import load_or_create
from quietchoir.federation.membership.roster import load
from quietchoir.federation.spec.policy import AdapterTable, ModelTable, ProtectionTable, Recipe
from quietchoir.federation.transport.link import FlowerLink
from quietchoir.federation.transport.records import INLINE_BYTES
from quietchoir.simulations.cluster import free_port
from quietchoir.tests.fakes.federation import DIGEST

LONG = bytes(range(256)) * (INLINE_BYTES // 256 + 1)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[FlowerLink]:
    create_federation(
        tmp_path,
        Founding(
            name="choir",
            address=f"127.0.0.1:{free_port()}",
            model=ModelTable(digest=DIGEST),
            adapter=AdapterTable(),
            protection=ProtectionTable(),
            recipe=Recipe(),
        ),
    )
    for name in ("ann", "ben", "cat"):
        enroll(tmp_path / FILE, tmp_path / OWNER_KEY, name, load_or_create(tmp_path / name).card)
    with FlowerLink(load(tmp_path / FILE), tmp_path / TLS_KEY) as link:
        for node_id in link.ids.values():  # as if they had dialled in
            link.state.activate_node(node_id, 60.0)
        yield link


def test_who_was_left_a_letter_is_not_there_until_it_is_taken_back_and_asks_again(
    link: FlowerLink,
) -> None:
    assert link.present() == {"ann", "ben", "cat"}
    link.leave({"ann": b"train"}, 60.0)
    assert link.present() == {"ben", "cat"} and link.owing() == {"ann"}
    assert list(link.collect(0.0)) == []
    link.cancel()
    assert link.present() == {"ben", "cat"} and not link.owing()  # it may be at work on it still
    link.superlink.caller("ann").idle_at = link.silent["ann"] + 1
    assert link.present() == {"ann", "ben", "cat"}


def test_asking_others_leaves_a_long_letter_whole_and_what_nobody_waits_for_takes_no_memory(
    link: FlowerLink,
) -> None:
    store = link.state.object_store
    link.leave({"ann": LONG}, 60.0)
    (number,) = link.left.pending
    pieces = len(store)
    assert pieces > 1 and all(link.messenger.parts(number).values())
    for message in (b"short", LONG + b"another"):
        # their time is over at once
        assert list(link.ask({"ben": message, "cat": message}, 0.0)) == []
        assert len(store) == pieces and all(link.messenger.parts(number).values())
    link.cancel()
    assert len(store) == 0 and not link.messenger.sent and not link.messenger.heads


def test_a_member_that_goes_away_over_a_letter_is_owed_nothing_more(link: FlowerLink) -> None:
    link.leave({"ann": b"train", "ben": b"train"}, 60.0)
    link.state.deactivate_node(link.ids["ann"])
    assert list(link.collect(0.0)) == [] and link.owing() == {"ben"}
    assert "ann" not in link.present()
