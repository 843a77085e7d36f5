"""Members that are away: while a run goes on they are waited for, and at its end they get what came
of it later.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import RoundAborted
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.store.checkpoint import Store, Vector
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.events import tables
from quietchoir.tests.fakes.federation import SilentLink, clients, coordinator, house, trainings
from quietchoir.tests.federation.rounds.test_server import stage_of

SIZE = 200


class SleepyLink(InProcessLink):
    """Parties that are there or not."""

    def __init__(self, parties: Mapping[str, Callable[[bytes], bytes]]) -> None:
        super().__init__(parties)
        self.asleep: set[str] = set()

    def present(self) -> frozenset[str]:
        return super().present() - self.asleep


def link_of(members: Mapping[str, Client]) -> SleepyLink:
    return SleepyLink({name: client.handle for name, client in members.items()})


def awake_after(looks: int, link: SleepyLink) -> Callable[[], None]:
    """What a coordinator does between rounds: everybody wakes after it has looked so often."""
    left = [looks]

    def between() -> None:
        left[0] -= 1
        if not left[0]:
            link.asleep.clear()

    return between


def test_members_that_go_away_are_waited_for_and_nobody_is_asked_meanwhile() -> None:
    home = house(4, recipe={"rounds": 2, "attempts": 1})
    members, heard = clients(home, SIZE), list[dict[str, Any]]()
    link = link_of(members)
    run = coordinator(home, members, SIZE, link=link, patient=True, on_event=tables(heard.append))
    run.learn(1)
    before, starts = run.state, len(trainings(members["ann"]))
    link.asleep, run.between = {"ann", "ben", "cat"}, awake_after(4, link)
    assert run.run().rounds == 2
    assert {"event": "waiting", "present": 1, "minimum": 3, "roster": 4} in heard
    assert len(trainings(members["ann"])) == starts + 1 and before.round == 1


def test_a_round_that_fails_because_members_went_away_is_not_counted() -> None:
    """Four times as often as the recipe allows, and the run goes on."""
    home = house(4, mode="masked", threshold=3, recipe={"rounds": 1, "attempts": 1})
    members, losses = clients(home, SIZE), [8]  # of two members, at once
    link = link_of(members)

    def vanish(name: str) -> Callable[[bytes], bytes]:
        def answer(message: bytes) -> bytes:
            if stage_of(message) == "share" and losses[0]:
                losses[0] -= 1
                link.asleep.add(name)
                raise RoundAborted("gone")
            return members[name].handle(message)

        return answer

    link.parties |= {name: vanish(name) for name in ("ann", "ben")}
    run = coordinator(home, members, SIZE, link=link, patient=True)
    run.between = link.asleep.clear  # they come back
    report = run.run()
    assert report.rounds == 1 and len(report.aborted) == 4 and losses == [0]


def test_at_the_start_too_few_members_end_the_command_after_its_wait() -> None:
    home = house(4)
    members = clients(home, SIZE)
    link = link_of(members)
    link.asleep = {"ann", "ben"}
    with pytest.raises(RoundAborted, match="2 members came within 0 s, need 3"):
        coordinator(home, members, SIZE, link=link, patient=True).run()


def test_a_round_that_fails_while_everybody_is_there_is_counted() -> None:
    home = house(4, recipe={"attempts": 2})
    members = clients(home, SIZE)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name in ("ann", "ben"),
    )
    run = coordinator(home, members, SIZE, link=link, patient=True)
    with pytest.raises(RoundAborted):
        run.run()
    assert len(run.aborted) == 2


class Kept:
    """What members keep, and a coordinator's registry of one."""

    def __init__(self) -> None:
        self.cards: dict[str, str] = {}
        self.flats: dict[str, Vector] = {}
        self.calls = 0

    def keep(self, flat: Vector, evaluation: dict[str, object]) -> tuple[str, str]:
        self.calls += 1
        return "an adapter", f"card {self.calls} {evaluation['rounds']}"

    def adopt(self, name: str) -> Callable[[Vector, str], str]:
        def adopt(flat: Vector, card: str) -> str:
            self.cards[name], self.flats[name] = card, flat.copy()
            return "an adapter"

        return adopt


@pytest.mark.parametrize("recipe", [{}, {"download": "change"}])
def test_who_was_away_at_the_end_gets_the_very_same_adapter_and_card_later(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    home, kept = house(4, mode="masked", recipe={"rounds": 2, **recipe}), Kept()
    members = clients(home, SIZE)
    for name, client in members.items():
        client.adopt = kept.adopt(name)
    link = link_of(members)
    store = Store(tmp_path)
    run = coordinator(home, members, SIZE, link=link, store=store, keep=kept.keep)
    run.learn(1)
    link.asleep = {"dan"}
    report = run.run()
    assert report.delivered == ["ann", "ben", "cat"] and report.members == [
        "ann",
        "ben",
        "cat",
        "dan",
    ]
    store.close()

    link.asleep = {"ann", "ben", "cat"}  # fewer than any round needs
    store, heard = Store(tmp_path), list[dict[str, Any]]()
    later = coordinator(
        home, members, SIZE, link=link, store=store, keep=kept.keep, on_event=tables(heard.append)
    )
    report = later.run()
    assert (
        report.delivered == sorted(members) and report.adapter == "an adapter" and kept.calls == 1
    )
    assert set(kept.cards.values()) == {"card 1 2"}
    assert all(np.array_equal(flat, run.state.server.flat) for flat in kept.flats.values())
    assert [event for event in heard if event["event"] == "delivered"] == [
        {"event": "delivered", "adapter": "an adapter", "members": ["dan"]}
    ]
    # nothing was trained or scored for it
    assert report.rounds == 2 and report.history == run.report(0.0, "").history
    store.close()

    kept.cards.clear()  # and once all have it, nobody is asked anything
    store = Store(tmp_path)
    assert coordinator(home, members, SIZE, link=link, store=store).run(
        stay_s=1000.0
    ).delivered == sorted(members)
    assert not kept.cards
    store.close()


def test_a_member_that_does_not_take_it_is_missing_and_the_others_get_theirs() -> None:
    home = house(4, recipe={"rounds": 1})
    members = clients(home, SIZE)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name == "dan" and stage_of(message) == "adopt",
    )
    run = coordinator(home, members, SIZE, link=link)
    assert run.run().delivered == ["ann", "ben", "cat"]
    # once more, and no more
    assert [stage_of(message) for name, message in link.letters if name == "dan"].count(
        "adopt"
    ) == 2


def test_more_rounds_on_a_finished_run_are_delivered_anew(tmp_path: Path) -> None:
    home = house(4, recipe={"rounds": 1})
    members = clients(home, SIZE)
    store = Store(tmp_path)
    coordinator(home, members, SIZE, store=store).run()
    store.close()
    store = Store(tmp_path)
    run = coordinator(home, members, SIZE, store=store)
    assert list(run.state.delivered) == ["ann", "ben", "cat", "dan"]
    run.learn(2)
    assert not run.delivery.logbook.state.delivered and not run.delivery.logbook.state.finished
    assert run.run(2).delivered == ["ann", "ben", "cat", "dan"]
    store.close()


def test_in_sealed_mode_members_that_hold_the_adapter_must_be_there_too() -> None:
    home = house(4, mode="sealed", threshold=3, recipe={"rounds": 1})
    members, heard = clients(home, SIZE), list[dict[str, Any]]()
    kept = Kept()
    for name, client in members.items():
        client.adopt = kept.adopt(name)
    link = link_of(members)
    run: RoundServer = coordinator(home, members, SIZE, link=link, on_event=tables(heard.append))
    link.asleep = {"dan"}
    assert run.run().delivered == ["ann", "ben", "cat"]
    link.asleep = {"ann", "ben"}  # dan came, and too few of those that hold it stayed
    run.run()
    assert (
        "dan" not in kept.cards
        and heard[-1]["event"] == "undelivered"
        and heard[-1]["members"] == ["dan"]
    )
    link.asleep = set()
    assert run.run().delivered == sorted(members)
    assert kept.cards["dan"] == kept.cards["ann"] and np.array_equal(
        kept.flats["dan"], kept.flats["ann"]
    )
