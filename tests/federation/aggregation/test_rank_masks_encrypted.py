"""Members of different ranks in every mode: the same adapter to the last bit, and the same floor
below the ciphertexts.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import RoundAborted
from quietchoir.crypto import ring
from quietchoir.federation.spec.policy import AdapterTable
from quietchoir.federation.training.synthetic_task import PacedSyntheticLearner
from quietchoir.tests.fakes.federation import House, SilentLink, clients, coordinator, house
from quietchoir.tests.fakes.sealed import LocalCryptoWorker, adapter_of, sealed_clients
from quietchoir.tests.federation.aggregation.test_rank_masks import stage_of

RANK, SIZE = 8, 64 * 8
RANKS = {"ann": 0, "ben": 0, "cat": 0, "dan": 3, "eve": 2}
PACE = {"ann": 640, "ben": 320, "cat": 160, "dan": 48, "eve": 16}  # examples: 40 steps to 1


def mixed(mode: str, **options: Any) -> House:
    recipe = {"rounds": 2, "agreed_steps": 10, "evaluate_every": 0, **options.pop("recipe", {})}
    home = house(
        5,
        mode=mode,
        recipe=recipe,
        tables={"adapter": AdapterTable(rank=RANK)},
        bits=8,
        threshold=3,
        **options,
    )
    members = tuple(dataclasses.replace(one, rank=RANKS[one.name]) for one in home.policy.members)
    return dataclasses.replace(home, policy=dataclasses.replace(home.policy, members=members))


def paced(name: str) -> PacedSyntheticLearner:
    return PacedSyntheticLearner(SIZE, name, PACE[name], 16)


@pytest.fixture(scope="module")
def crypto_worker() -> LocalCryptoWorker:
    return LocalCryptoWorker()


def test_all_modes_end_with_the_same_adapter_to_the_last_bit(
    crypto_worker: LocalCryptoWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different ranks and different numbers of steps together: what a sum is divided by is the
    same wherever it is done.
    """
    original, dice = ring.encode, bytes(32)
    monkeypatch.setattr(
        ring, "encode", lambda values, ranges, bits: original(values, ranges, bits, key=dice)
    )
    found = []
    for mode, download in (("plain", "adapter"), ("masked", "adapter"), ("masked", "change")):
        home = mixed(mode, recipe={"download": download})
        run = coordinator(home, clients(home, SIZE, paced), SIZE)
        run.run()
        found.append(run.state.server.flat)
    for key in ("shared", "threshold"):
        home = mixed("sealed", key=key)
        members = sealed_clients(home, SIZE, paced, crypto_worker=crypto_worker)
        run = coordinator(home, members, SIZE, crypto_worker=crypto_worker)
        report = run.run()
        assert report.history[0]["columns"] == {"2": 5, "3": 4, "8": 3}
        found += [adapter_of(client, run.state.run) for client in members.values()]
    assert len(found) == 13 and all(np.array_equal(found[0], other) for other in found[1:])
    columns = np.abs(found[0].reshape(-1, RANK)).mean(axis=0)
    # the columns that only three train keep step with the others
    assert columns.min() > 0.5 * columns.max()


def test_sealed_members_do_not_open_a_sum_that_lost_a_large_member(
    crypto_worker: LocalCryptoWorker,
) -> None:
    home = mixed("sealed", recipe={"attempts": 1})
    members = sealed_clients(home, SIZE, paced, crypto_worker=crypto_worker)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name == "ben" and stage_of(message) == "mask",
    )
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker, link=link)
    with pytest.raises(RoundAborted, match="2 of the 3 members that fill one part"):
        run.run(rounds=1)
    assert not any(adapter_of(client, run.state.run).any() for client in members.values())
