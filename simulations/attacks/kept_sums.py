"""Attacks with sums that members keep: a coordinator names one by its digest where it does not
belong.

Knows how a step names a sum that its reader signed. Knows nothing of tags.
Always: the sum is one that every member opened, checked, signed and has; in the unprotected arm
nobody asks what the signatures were given for, and all else is the product.
"""

import dataclasses
from collections.abc import Callable

from ...federation.aggregation import delta_chain
from ...federation.aggregation.delta_chain import KEPT, DeltaChain, Step, join, name_of, origin_of
from ...federation.store.checkpoint import ServerState
from ...federation.wire import messages
from .catalogue import Attack, Result
from .coordinators import delta
from .scene import Stub, federation, without

Lead = Callable[[Step], list[Step]]
# whoever signed a sum signed it for whatever it is taken for
UNBOUND: tuple[Stub, ...] = (
    (delta_chain, "signed_by", lambda policy, signed, names, proof: tuple(proof)),
)


def led_by_a_kept_sum(lead: Lead, *stubs: Stub) -> Result:
    """After one round, all are asked to train from where steps of the kept sum lead."""
    scene = federation()
    run = scene.run()
    run.train_round()
    stepping = DeltaChain(scene.policy, scene.size, run.state.run)
    taken = lead(delta(run).steps[name_of(run.state.server)])
    state = ServerState.zeros(scene.size)
    for step in taken:
        state = stepping.go(state, step, "")
    with without(*stubs):
        round_id, names = run.attempt.begin(), tuple(sorted(scene.clients))
        order = dataclasses.replace(
            run.attempt.order(run.state.server.flat), state=name_of(state), cohort=names
        )
        kept = {name: [one.kept_by(name) for one in taken] for name in names}
        assert all(one.totals[0].packing == KEPT for each in kept.values() for one in each)
        work = {
            name: messages.encode_delta_work(
                order, join(origin_of(scene.size), [one.encode() for one in each])
            )
            for name, each in kept.items()
        }
        ready = [
            reply.sender
            for reply in run.messenger.ask(messages.TRAIN, work, round_id, 5.0)
            if messages.decode_ready(reply.payload) is not None
        ]
    return Result(bool(ready), f"{len(ready)} of {len(names)} members trained from there")


def twice(step: Step) -> list[Step]:
    """The step, and the same once more."""
    return [step, step]


def of_another_round(step: Step) -> list[Step]:
    """The step, and its sum as if the next round had opened the same."""
    return [step, dataclasses.replace(step, round=step.round + 1)]


def attack(name: str, lead: Lead) -> Attack:
    """Both arms of one."""
    return Attack(
        name=name,
        who="coordinator alone",
        mode="masked",
        promise="a step is made of a sum only as it was signed: of that attempt, from that state",
        unprotected=lambda: led_by_a_kept_sum(lead, *UNBOUND),
        protected=lambda: led_by_a_kept_sum(lead),
    )


ATTACKS = (
    attack("a kept sum is stepped by twice", twice),
    attack("a kept sum is the next round's as well", of_another_round),
)
