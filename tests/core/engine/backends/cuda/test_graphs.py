"""What is around a recording and what is in it, without CUDA.

The stand-in computes again where a graph would be replayed, from and into the same tensors.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quietchoir.core.engine.backends.cuda.graphs import Compute, Graphs, Inputs, Recorded, size_for
from quietchoir.core.engine.backends.cuda.ops import TorchOps
from quietchoir.core.engine.backends.cuda.runner import CudaRunner
from quietchoir.core.engine.block_pool import BlockPool
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.scheduler import Scheduler, SchedulerLimits
from quietchoir.core.engine.sequence import Sequence
from quietchoir.tests.fakes.engine import config, tiny_adapter, tiny_weights

CPU, MADE = torch.device("cpu"), list[int]()


class Again(Recorded):
    """A recording as a graph is one: it knows its own inputs and its own result, and nothing of
    what is handed in.
    """

    def __init__(self, compute: Compute, inputs: Inputs, pool: Any) -> None:
        self.inputs = inputs
        self.out = compute(inputs).clone()
        self.graph: Any = SimpleNamespace(replay=lambda: self.out.copy_(compute(self.inputs)))
        MADE.append(len(inputs.rows))


def runner(record: type[Recorded] | None) -> CudaRunner:
    plain = TorchOps(torch.float32)
    made = CudaRunner(
        tiny_weights(), 40, 256, cpu_layers=1, device=CPU, ops=plain, dtype=torch.float32
    )
    made.graphs = Graphs(made.compute, CPU, record)
    return made


def test_replayed_steps_are_the_computed_ones_and_each_form_is_recorded_once():
    MADE.clear()
    replayed, computed = runner(Again), runner(None)
    engine = Engine(tiny_weights(), config(), backend=computed)
    engine.adapters.load("a", tiny_adapter(1))
    books = Scheduler(BlockPool(40), SchedulerLimits(drafts=0, shared_rows=4))
    for number, name in enumerate((None, "a", "a", None, None)):
        prompt = tuple(range(number, number + 3 + 2 * number))
        books.add(
            Sequence(
                GenerationRequest(
                    prompt=prompt, sampling_params=SamplingParams(max_tokens=4 + number)
                ),
                adapter=engine.adapters.find(name),
            )
        )
    steps = 0
    while books.running or books.waiting:
        batch = books.plan()
        expected = computed.forward(batch)
        torch.testing.assert_close(replayed.forward(batch), expected, atol=1e-5, rtol=1e-5)
        books.commit(batch, expected.argmax(-1).tolist())
        for sequence in [
            one
            for one in books.running
            if len(one.tokens) >= len(one.request.prompt) + one.request.sampling_params.limit
        ]:
            books.finish(sequence)
        steps += 1
    assert steps > 6 > len(MADE) > 1  # fewer recordings than steps, of more than one size


def test_recordings_of_stacks_that_have_moved_are_let_go_and_the_others_stay():
    MADE.clear()
    device = runner(Again)
    rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    span: Any = SimpleNamespace(start=0, count=2, sequence=SimpleNamespace(block_table=[3]))
    step = device.step([span])
    plain, adapted = Inputs(rows, step, None), Inputs(rows, step, torch.zeros(2, dtype=torch.long))
    for inputs, generation in (
        (plain, -1),
        (adapted, 1),
        (adapted, 1),
        (adapted, 2),
        (plain, -1),
        (adapted, 1),
    ):
        device.graphs.run(inputs, generation)
    assert MADE == [2, 2, 2, 2]  # plain, the first stacks, the second, and the first again
    assert torch.equal(plain.rows, rows)  # what is handed in is read, the copy is overwritten


def test_a_step_takes_the_smallest_recording_that_holds_it():
    assert [size_for(rows) for rows in (1, 2, 3, 5, 16, 17)] == [1, 2, 4, 8, 16, None]


def test_what_is_recorded_asks_for_no_number():
    """On tensors without numbers: what would wait for the device, and so spoil a recording,
    raises here.
    """
    nowhere = torch.device("meta")
    device = CudaRunner(tiny_weights(), 40, 256, device=nowhere, ops=TorchOps(torch.bfloat16))
    engine = Engine(tiny_weights(), config(), backend=runner(None))
    engine.adapters.load("a", tiny_adapter(1))
    slots = device.slots.place([engine.adapters.find("a"), None])
    span: Any = SimpleNamespace(start=7, count=2, sequence=SimpleNamespace(block_table=[3]))
    step = device.step([span])
    inputs = device.padded(Inputs(torch.zeros(2, 32), step, torch.tensor(slots)), 4).on(nowhere)
    logits = device.compute(inputs)
    assert logits.device == nowhere and logits.shape == (4, 257)
    with pytest.raises(RuntimeError):
        float(logits[0, 0])
