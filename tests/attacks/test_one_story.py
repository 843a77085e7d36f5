"""Whatever one member is told otherwise than the rest, in whatever message and mode: no sum is
opened with it.
"""

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quietchoir.core.errors import QuietchoirError, RoundAborted
from quietchoir.federation.aggregation import encrypted, secagg, state_transfer
from quietchoir.federation.aggregation.experimental import dkg_client, threshold
from quietchoir.federation.rounds import model_broadcast
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.rounds.scheduler import FOR_NOBODY
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.spec.policy import ScheduleTable
from quietchoir.federation.wire import messages
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.federation import House, TickingClock, clients, house
from quietchoir.tests.fakes.joint import CRYPTO_WORKER
from quietchoir.tests.fakes.liar import Liar, Secretive
from quietchoir.tests.fakes.sealed import sealed_clients

SIZE = 60
NAMES = ("ann", "ben", "cat", "dan", "eve")
EXAMPLES = {"shared": 15, "threshold": 8}  # ceremonies and ciphertexts take their time


def scene(kind: str) -> tuple[House, dict[str, Client], RoundServer]:
    """A federation of this kind, its members, its coordinator."""
    mode = "masked" if kind in ("adapter", "change", "tensor", "buffered") else "sealed"
    recipe: dict[str, Any] = {
        "attempts": 1,
        "download": "change" if kind == "change" else "adapter" if mode == "masked" else "auto",
    }
    if kind == "tensor":
        recipe["ranges"] = "tensor"
    tables = (
        {"schedule": ScheduleTable(rounds="buffered", patience_s=300.0)}
        if kind == "buffered"
        else {}
    )
    key = "threshold" if kind == "threshold" else "shared"
    home = house(5, mode=mode, recipe=recipe, tables=tables, bits=8, threshold=3, key=key)
    seeds = {name: number for number, name in enumerate(home.members)}
    learner = lambda name: Secretive(SIZE, seeds[name])  # noqa: E731
    members = (
        clients(home, SIZE, learner)
        if mode == "masked"
        else sealed_clients(home, SIZE, learner, crypto_worker=CRYPTO_WORKER)
    )
    link = InProcessLink({name: client.handle for name, client in members.items()})
    more: dict[str, Any] = {"crypto_worker": CRYPTO_WORKER} if mode == "sealed" else {}
    waiting = dataclasses.replace(FOR_NOBODY, clock=TickingClock())
    run = RoundServer(home.policy, home.coordinator, link, size=SIZE, waiting=waiting, **more)
    return home, members, run


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value can be changed: every field, every item of every list, and every list
    as a whole.
    """
    if isinstance(value, dict):
        return [place for key in sorted(value) for place in leaves(value[key], (*at, key))]
    if isinstance(value, list):
        return [
            at,
            *(place for index in range(len(value)) for place in leaves(value[index], (*at, index))),
        ]
    return [at]


def other(value: Any, pick: int) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return (
            value + (1, -1, 0.5 * value)[pick % 3]
            if isinstance(value, float)
            else value + (1, -1)[pick % 2]
        )
    if isinstance(value, list):
        return value[:-1] if value and pick % 2 else [*value, value[-1] if value else "zoe"]
    return value[:-1] + ("x" if not value.endswith("x") else "y")


def changed(header: dict[str, Any], pick: int) -> dict[str, Any]:
    """`header` with one thing in it changed."""
    found, places = copy.deepcopy(header), leaves(header)
    place = places[pick % len(places)]
    at: Any = found
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = other(at[place[-1]], pick // len(places))
    return found


def bytes_changed(payload: bytes, pick: int) -> bytes:
    """One bit turned, or a byte more or less."""
    if not payload or pick % 7 == 0:
        return payload + b"\0"
    at = pick % (8 * len(payload))
    return payload[: at // 8] + bytes([payload[at // 8] ^ 1 << at % 8]) + payload[at // 8 + 1 :]


def spelled(fields: dict[str, Any], rest: bytes) -> bytes:
    """A work's bytes with this header."""
    header = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return len(header).to_bytes(4, "big") + header + rest


def otherwise(stage: str, payload: bytes, pick: int) -> bytes:
    """The payload of this stage with one thing in it changed, in a form that is still one where
    that can be.
    """
    # a version stands before the work
    buffered = 8 if stage == messages.TRAIN and not payload[:4].strip(b"\0") else 0
    if stage in (messages.TRAIN, messages.SCORE) and pick % 3:
        told, rest = payload[:buffered], payload[buffered:]
        order, values = messages.split_work(rest)
        # another adapter, by a lot or in the last bit
        if pick % 3 == 1 and len(values) == 4 * SIZE:
            flat = np.frombuffer(values, "<f4").copy()
            flat[pick % SIZE] = np.nextafter(flat[pick % SIZE], np.float32(9)) if pick % 2 else 2.0
            return told + messages.encode_work(dataclasses.replace(order, flat=flat))
        return told + spelled(changed(order.header(), pick // 3), values)
    if stage in (messages.GROUP, "advertise") and pick % 3:
        return json.dumps(
            changed({"it": json.loads(payload)}, pick // 3)["it"],
            sort_keys=True,
            separators=(",", ":"),
        ).encode()
    return bytes_changed(payload, pick)


KINDS = ("adapter", "change", "tensor", "buffered", "shared", "threshold")
STAGES = {
    **dict.fromkeys(
        ("adapter", "change", "tensor"),
        (messages.TRAIN, messages.SCORE, *secagg.STAGES, secagg.ATTEST),
    ),
    "buffered": (messages.TRAIN, messages.GROUP, messages.SCORE, *secagg.STAGES),
    "shared": (messages.TRAIN, messages.SCORE, *encrypted.STAGES),
    "threshold": (messages.TRAIN, messages.SCORE, *threshold.STAGES),
}
OPENED_LATER = (
    "consistency",
    "unmask",
    "attest",
    "witness",
    "apply",
    "open",
)  # after the contribution left, which it cannot change


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_was_told_something_else_is_in_no_sum(kind: str) -> None:
    @settings(
        max_examples=EXAMPLES.get(kind, 30), deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        stage=st.sampled_from(STAGES[kind]),
        victim=st.sampled_from(NAMES),
        pick=st.integers(0, 1 << 30),
    )
    def tell_otherwise(stage: str, victim: str, pick: int) -> None:
        in_no_sum(kind, stage, victim, pick)

    tell_otherwise()


def in_no_sum(kind: str, stage: str, victim: str, pick: int) -> None:
    """One round, or one vote, in which the victim is told something else in every message of one
    stage.
    """
    _, members, run = scene(kind)
    run.insist = lambda attempt, *retry: attempt()  # type: ignore[method-assign]
    before = run.state.server.flat.tobytes()
    meant: dict[bytes, bytes] = {}

    def lie(asked: str, payload: bytes) -> bytes | None:
        return (
            None if asked != stage else meant.setdefault(payload, otherwise(stage, payload, pick))
        )

    liar = Liar(run, (victim,), lie)
    try:
        if stage == messages.SCORE:
            if kind in ("shared", "threshold"):
                run.train_round()  # members need a key first
            run.score_round()
        elif run.policy.schedule.buffered:
            run.learn(1)
        else:
            run.train_round()
    except RoundAborted:
        pass
    entry = run.state.history[-1] if run.state.history else None
    if not liar.lied or entry is None or victim not in entry["parties"] or stage in OPENED_LATER:
        return
    learner = members[victim].learner
    assert isinstance(learner, Secretive)
    same = (
        all(
            messages.split_work(one)[0].header() == messages.split_work(other)[0].header()
            for one, other in meant.items()
        )
        if kind == "change"
        else False
    )
    assert same and set(learner.told) == {before}, (
        f"{victim} is in a sum of {kind}, told otherwise in {stage}: {meant}"
    )


def test_every_stage_is_in_exactly_one_table() -> None:
    """Whoever adds a stage says what binds it."""
    stages = {
        *messages.STAGES, messages.GROUP, model_broadcast.HOLDS, "send",
        *secagg.STAGES, secagg.ATTEST,
        *encrypted.STAGES, *threshold.STAGES, *state_transfer.STAGES, *dkg_client.STAGES,
    }  # fmt: skip
    tables = (
        messages.HASHED,
        messages.BOUND_LATER.keys(),
        messages.MAY_DIFFER.keys() - {"recipient", "path"},
    )
    assert sorted(stages) == sorted(stage for table in tables for stage in table)
    assert messages.HEADERS[messages.Task].keys() - {"recipient"} == set(messages.OWN)
    assert "confess" not in messages.KNOWN


def test_every_field_of_work_and_of_a_group_changes_the_digest() -> None:
    order = messages.Work(flat=np.zeros(3, np.float32))
    base = messages.work_digest("train", order.header(), order.flat)
    seen = {base, messages.work_digest("score", order.header(), order.flat)}
    seen |= {
        messages.work_digest("train", changed(order.header(), pick), order.flat)
        for pick in range(len(order.header()))
    }
    seen.add(messages.work_digest("train", order.header(), np.array([0, -0.0, 0], np.float32)))
    assert len(seen) == 3 + len(order.header())
    group = messages.Group(
        version=1,
        members=(("ann", 0), ("ben", 1)),
        adapters=((0, "00" * 32, ""), (1, "01" * 32, "ab")),
    )
    fields = json.loads(messages.encode_group(group))
    others = {
        messages.group_digest(json.dumps(changed(fields, pick)).encode())
        for pick in range(len(leaves(fields)))
    }
    assert len(others) == len(leaves(fields)) and group.broadcast_digest not in others


def test_a_letter_of_a_stage_that_nobody_bound_is_refused() -> None:
    home, members, _ = scene("adapter")
    task = messages.Task(
        round_id=messages.RoundId("0a" * 16, 1, 1), stage="confess", recipient="ann", payload=b""
    )
    with pytest.raises(QuietchoirError, match="which no member answers"):
        members["ann"].handle(messages.encode_task(task, home.policy, home.coordinator))
