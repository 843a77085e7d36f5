"""The coordinator put together: its keys, its door, its run, its state, and the file that may
change while it runs.

Knows how the organs fit. Knows nothing of what they do inside.
Always: the federation file that a run goes on under is the newest on the chain it knows; it changes
between rounds only.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..core.errors import ConfigError, RosterError
from ..core.worker import Worker
from ..crypto.he.encrypted_ring import AdderService
from ..crypto.identity.keys import Identity
from .adapters.registry import Registry, content_hash, make_card
from .aggregation.clipping import carried_stops
from .aggregation.ranges import tensor_stops
from .events import FederationEvent, OnEvent, OpenEvent, PageEvent, RenewedEvent, StartingEvent
from .membership import roster
from .membership.founding import COORDINATOR_KEY, TLS_KEY
from .membership.ownership import settle
from .membership.unlock import Asked
from .membership.update import UpdateSender, Watched, needs_restart
from .model_files import resident
from .rounds.report import RunReport
from .spec.policy import Policy
from .store.checkpoint import Vector
from .wire.link import Link

if TYPE_CHECKING:
    from ..core.models.weights import Weights
    from .monitor.run_status import RunStatus
    from .rounds.server import RoundServer
    from .transport.link import FlowerLink


Keep = Callable[[Vector, dict[str, object]], tuple[str, str]]
Carry = Callable[[Policy], AbstractContextManager[Link]]
STAY_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorOptions:
    """What the coordinator's operator decides."""

    file: Path
    state: Path
    keys: Path  # folder with coordinator.key and tls.key
    home: Path
    rounds: int | None = None
    rehearse: int = 0
    # at the start, until the minimum is there; later the minimum is waited for without end
    wait_s: float = 600.0
    grace_s: float = 30.0
    # at the end, for members without the adapter; None: `STAY_S` if it was the end before
    stay_s: float | None = None
    listen: str = ""  # HOST:PORT, if members reach us under another address than ours
    page: int | None = None  # port of the page on this machine; 0 takes a free one; None: no page
    # name or path of the federation's model on this disk; empty: found by its digest
    model: str = ""
    # rounds between adapters that are kept as they come; 0: only the finished one
    keep_every: int = 0


def coordinate(
    coordinating: CoordinatorOptions, on_event: OnEvent, carry: "Carry | None" = None
) -> RunReport:
    """Run the federation's rounds.

    Args:
        carry: opens another way to the members than our own door; a later federation file then
        waits for the next start.

    Raises:
        RosterError, ConfigError, FederationError, RoundAborted: each says what to do.
    """
    from .rounds.privacy_accountant import check_books
    from .rounds.scheduler import Waiting
    from .rounds.server import RoundServer
    from .store.checkpoint import Store

    policy = roster.load(coordinating.file)
    settle(coordinating.keys, policy)
    signer = Identity.load(coordinating.keys / COORDINATOR_KEY, Asked())
    check_members(policy, coordinating.file)
    loads = f"the model {policy.model.name}"
    if coordinating.rehearse:
        loads = f"nothing: a rehearsal of {coordinating.rehearse} values"
    elif policy.distillation.on:
        loads = f"nothing: {policy.distillation.size} scores of a public set are compared"
    on_event(StartingEvent(federation=policy.name, version=policy.version, loads=loads))
    compared = policy.distillation.size  # of members whose models differ, none of which is here
    modelless = bool(coordinating.rehearse or compared)
    weights = None if modelless else resident(policy, named=coordinating.model)
    keep, size = None, coordinating.rehearse or compared
    # in sealed mode for the size alone: such a coordinator never has an adapter to keep
    if weights is not None:
        keep, size = keeper(policy, weights, signer, Registry(coordinating.home))
    store, crypto_worker = Store(coordinating.state), Worker(AdderService)
    try:
        if store.database is not None:
            check_books(store.database, buffered=policy.schedule.buffered)
        on_event, status, watching = watch(coordinating, policy, on_event)
        # never back, never to a branch
        watched = Watched(coordinating.file, coordinating.state / roster.FILE, on_event)
        with (
            watching,
            carry(policy)
            if carry is not None
            else open_door(coordinating, policy, on_event) as link,
        ):
            run = RoundServer(
                policy,
                signer,
                link,
                size=policy.carried(size),
                stops=carried_stops(policy, tensor_stops(policy.adapter, weights)),
                store=store,
                keep=keep,
                on_event=on_event,
                waiting=Waiting(
                    wait_s=coordinating.wait_s, grace_s=coordinating.grace_s, patient=True
                ),
                crypto_worker=crypto_worker,
            )
            if carry is None:
                status.presence = lambda: len(cast("FlowerLink", link).online())
                run.between = renewing(watched, run, cast("FlowerLink", link), on_event)
            if keep is not None and coordinating.keep_every:
                goal = coordinating.rounds or policy.recipe.rounds
                run.between = both(run.between, keeping(run, keep, coordinating.keep_every, goal))
            stay_s = coordinating.stay_s
            # started once more on a run that had ended: to hand its adapter out, what else
            if stay_s is None:
                stay_s = STAY_S if run.state.finished else 0.0
            return run.run(coordinating.rounds, stay_s=stay_s)
    finally:
        crypto_worker.close()
        store.close()


def open_door(coordinating: CoordinatorOptions, policy: Policy, on_event: OnEvent) -> "FlowerLink":
    """Our own way to the members: a door of this process, open from here on."""
    from .transport.link import FlowerLink

    link = FlowerLink(
        policy, coordinating.keys / TLS_KEY, listen=coordinating.listen, on_event=on_event
    )
    on_event(OpenEvent(address=policy.coordinator.address))
    return link


def check_members(policy: Policy, file: Path) -> None:
    """Raises ConfigError for a roster that is smaller than any sum may be."""
    if len(policy.members) < policy.protection.min_cohort:
        raise ConfigError(
            f"{file}: {len(policy.members)} members, min_cohort {policy.protection.min_cohort}; "
            "enroll more: quietchoir federation enroll"
        )


def watch(
    coordinating: CoordinatorOptions, policy: Policy, on_event: OnEvent
) -> "tuple[OnEvent, RunStatus, AbstractContextManager[object]]":
    """Events that also go into the audit log and onto the board; the board; and what must be open
    meanwhile: the page, if one is wanted.

    Raises:
        FederationError: the audit log is damaged. ConfigError: the page's port is taken.
    """
    from .monitor.audit_log import AuditLog
    from .monitor.run_status import RunStatus
    from .store import checkpoint

    state, audit_log = checkpoint.read(coordinating.state), AuditLog(coordinating.state)
    audit_log.catch_up(state.history if state is not None else ())
    status = RunStatus(policy, state, coordinating.rounds)

    def note(event: FederationEvent) -> None:
        on_event(event)
        audit_log.note(event)
        status.note(event)

    if coordinating.page is None:
        return note, status, nullcontext()
    from .monitor.page import Page

    page = Page(status, coordinating.page, coordinating.state)
    on_event(PageEvent(url=page.url))
    return note, status, page


def both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    """One after the other."""

    def call() -> None:
        first()
        second()

    return call


def keeping(run: "RoundServer", keep: Keep, every: int, goal: int) -> Callable[[], None]:
    """What keeps the adapter as it stands after every so many rounds, each naming the one kept
    before it as its parent.
    """
    kept = 0  # rounds behind the last one

    def between() -> None:
        nonlocal kept
        done = run.state.round
        # the last one is kept with its scores
        if done and done % every == 0 and done not in (kept, goal):
            keep(run.state.server.flat, {"rounds": done, "run": run.state.run})
            kept = done

    return between


def renewing(
    watched: Watched, run: "RoundServer", link: "FlowerLink", on_event: OnEvent
) -> Callable[[], None]:
    """What a coordinator does between rounds: take a later federation file, and see that
    everybody has it.
    """
    sender = UpdateSender(watched, link.ask)

    def between() -> None:
        later, before = watched.look(), run.policy
        if later is not None:
            sender.renewed()
            if changed := needs_restart(before, later):
                # they learn of a new key, certificate or rule before the door closes
                sender.send(link.present())
                raise RosterError(
                    f"version {later.version} of {later.name} changes {', '.join(changed)}; start "
                    f"this command again: "
                    "it goes on from the last whole round"
                )
            link.take(later)
            run.take(later)
            names = tuple(one.name for one in later.members)
            left = tuple(sorted({one.name for one in before.members}.difference(names)))
            on_event(RenewedEvent(version=later.version, members=names, left=left))
        sender.send(link.present())

    return between


def keeper(
    policy: Policy, weights: "Weights", signer: Identity, registry: Registry
) -> tuple[Keep, int]:
    """What keeps a finished adapter at the coordinator, and the length of the flat vector."""
    import torch

    from ..core.models.lora.adapter import Layout, assemble

    shape = policy.adapter.shape()

    def keep(flat: Vector, evaluation: dict[str, object]) -> tuple[str, str]:
        adapter = assemble(
            shape, weights.architecture, weights.digest, torch.from_numpy(flat.copy())
        )
        name, parent = content_hash(adapter), registry.newest(str(evaluation.get("run", "")))
        card = make_card(
            policy, name, {**evaluation, "parent": "" if parent == name else parent}, signer
        )
        return registry.put(adapter, card), card.text()

    return keep, Layout(shape, weights.architecture).size
