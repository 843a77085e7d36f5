"""Facts about teaching a smaller model, on random networks of a few layers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.errors import ConfigError, DataError, ModelError, TrainingError
from quietchoir.core.models import weights as model_files
from quietchoir.core.models.lora.merge import merged
from quietchoir.core.models.tokenizer.tokenizer import Tokenizer
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.core.training.distillation import distiller as module
from quietchoir.core.training.distillation.commands import data_files, student_of
from quietchoir.core.training.distillation.distiller import DistillationProgress, Distiller
from quietchoir.core.training.distillation.loss import DistillationLoss
from quietchoir.core.training.distillation.settings import DistillationSettings
from quietchoir.core.training.distillation.student import StudentNetwork, evenly, kept
from quietchoir.core.training.distillation.targets import (
    AnswerHead,
    TeacherTargets,
    answer_rows,
    exact_answers,
)
from quietchoir.core.training.examples import Example
from quietchoir.core.training.frozen_layers import dense_linear
from quietchoir.core.training.packing import (
    TokenExample,
    input_tokens,
    plan,
    shared_start,
    tokenize,
)
from quietchoir.tests.fakes import engine as engine_fakes
from quietchoir.tests.fakes.native import architecture, random_weights, step, whole
from quietchoir.tests.fakes.native import sequence as native_sequence
from quietchoir.tests.fakes.training import chatter

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
FAST = DistillationSettings(epochs=2, batch=4, top_k=8, lr=1e-3)


def talking(weights: Weights) -> Weights:
    """The model with a chat template, and one token of two letters, as a file must have."""
    own = weights.tokenizer.vocabulary
    vocabulary = dataclasses.replace(
        own,
        tokens=(*own.tokens, "ab"),
        token_types=(*own.token_types, 1),
        merges=(("a", "b"),),
        template=TEMPLATE,
    )
    return dataclasses.replace(weights, tokenizer=Tokenizer(vocabulary))


@pytest.fixture(scope="module")
def teacher() -> Weights:
    return talking(random_weights(architecture(num_layers=4, vocab_size=258)))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return chatter(8)


def run(
    teacher: Weights,
    examples: list[Example],
    folder: Path,
    settings: DistillationSettings = FAST,
    layers: tuple[int, ...] = (0, 3),
    **given: object,
) -> Distiller:
    return Distiller(
        teacher,
        kept(teacher, layers),
        examples,
        settings,
        folder,
        precision="float32",
        **given,  # type: ignore[arg-type]
    )


def test_the_gradient_is_that_of_the_divergence_as_it_is_written() -> None:
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(70, 12, generator=draw, requires_grad=True)  # more than one chunk
    head = torch.randn(40, 12, generator=draw)
    temperature, hard = 2.5, 0.3
    said = torch.softmax(torch.randn(70, 40, generator=draw) * 2, 1)
    likelihoods, ids = said.topk(5)
    targets = torch.randint(0, 40, (70,), generator=draw)
    ours = DistillationLoss.apply(rows, head, ids, likelihoods, targets, temperature, hard)
    ours.backward()
    gradient, rows.grad = rows.grad, None
    logits = rows @ head.T
    q = torch.softmax(logits / temperature, 1)
    p6 = torch.cat([likelihoods, 1 - likelihoods.sum(1, keepdim=True)], 1)
    there = q.gather(1, ids)
    q6 = torch.cat([there, 1 - there.sum(1, keepdim=True)], 1)
    apart = (p6 * (p6.log() - q6.log())).sum() * temperature**2
    wrong = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    theirs = (1 - hard) * apart + hard * wrong
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, rows.grad, rtol=1e-3, atol=1e-4)


def test_a_student_is_the_kept_layers_and_its_words_are_the_teachers(
    teacher: Weights, examples: list[Example]
) -> None:
    student = kept(teacher, (1, 3))
    assert student.architecture.num_layers == 2
    tokens = tokenize(examples, teacher.tokenizer, longest=512)
    batch = plan(tokens, shared_start(tokens))
    given = input_tokens(tokens, shared_start(tokens))
    whole = Transformer(teacher, dense_linear(torch.float32))
    x = whole.embed(given)
    rope = whole.rope_tables(batch.positions, x.dtype)
    for layer in (1, 3):
        x = whole.model.layers[str(layer)](x, rope, batch)
    expected = whole.logits(batch.answers(x))
    network = StudentNetwork(student, torch.float32)
    rows, _ = network(given, batch, ())
    torch.testing.assert_close(rows @ network.head.T, expected, rtol=1e-4, atol=1e-4)
    assert evenly(30, 15)[0] == 0 and evenly(30, 15)[-1] == 29 and len({*evenly(30, 15)}) == 15


def test_a_killed_run_goes_on_to_the_same_student_and_asks_the_teacher_once(
    teacher: Weights, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(FAST, hidden=0.5)
    whole = run(teacher, examples, tmp_path / "whole", settings, (0, 1, 3)).run()
    assert (whole.steps, whole.resumed) == (4, 0)

    def kill(told: DistillationProgress) -> None:
        if told.part == "student" and told.done == 3:
            raise KeyboardInterrupt

    broken = run(
        teacher, examples, tmp_path / "killed", settings, (0, 1, 3), on_progress=kill, save_steps=2
    )
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    assert not (tmp_path / "killed" / module.STUDENT).exists()
    monkeypatch.setattr(TeacherTargets, "targets_of", None)  # it is not asked again
    again = run(teacher, examples, tmp_path / "killed", settings, (0, 1, 3)).run()
    assert again.resumed == 2
    assert again.student.read_bytes() == whole.student.read_bytes()
    assert not (tmp_path / "killed" / module.STATE).exists()


def test_a_student_comes_to_say_what_its_teacher_says(
    teacher: Weights, examples: list[Example], tmp_path: Path
) -> None:
    settings = dataclasses.replace(FAST, epochs=25, hard=0.0, temperature=1.0, lr=5e-3)
    losses = list[float]()
    done = run(
        teacher,
        examples,
        tmp_path,
        settings,
        on_progress=lambda told: losses.append(told.loss) if told.loss is not None else None,
        quant_type="F32",
    ).run()
    assert done.loss < losses[0] / 3
    student = model_files.load(done.student)
    assert student.architecture.num_layers == 2
    tokens = tokenize(examples, student.tokenizer, longest=512)
    wanted = best(teacher, tokens)
    before = (best(kept(teacher, (0, 3)), tokens) == wanted).float().mean()
    after = (best(student, tokens) == wanted).float().mean()
    assert after > before + 0.3, (before, after)
    # the file answers in the engine as it does in training, to the same tokens
    said = dataclasses.replace(tokens[0], answer=tuple(best(student, tokens[:1]).tolist()))
    sequence = native_sequence([*said.prompt, *tokens[0].answer[:-1]], range(8))
    logits = TorchRunner(student, 8).forward(step(whole(sequence, len(said.answer))))
    assert tuple(logits.argmax(1).tolist()) == said.answer
    assert exact_answers(student, [said], torch.float32) == (said.answer == tokens[0].answer)


def best(weights: Weights, tokens: list[TokenExample]) -> torch.Tensor:
    """The likeliest token of each row of the answers."""
    rows, _ = answer_rows(weights, tokens, torch.float32)
    return torch.cat([logits.argmax(1) for logits in AnswerHead(weights).logits(rows)])


def test_a_merged_adapter_is_what_the_adapter_computes() -> None:
    weights, adapter = engine_fakes.tiny_weights(), engine_fakes.tiny_adapter(5)
    theirs = engine_fakes.merged(weights, adapter)
    ours = merged(weights, adapter, "a")
    for name, blocks in theirs.tensors.items():
        torch.testing.assert_close(ours.tensors[name].dequantize(), blocks.dequantize())
    assert ours.digest != weights.digest
    with pytest.raises(ModelError, match="trained on the model ffff"):
        merged(weights, engine_fakes.tiny_adapter(5, "f" * 64), "a")


def test_what_does_not_fit_is_refused_before_anything_is_computed(
    teacher: Weights, examples: list[Example], tmp_path: Path
) -> None:
    run(teacher, examples, tmp_path / "begun")
    with pytest.raises(ConfigError, match="another lr"):
        run(teacher, examples, tmp_path / "begun", dataclasses.replace(FAST, lr=2e-3))
    (tmp_path / "begun" / module.STUDENT).write_bytes(b"whole")
    with pytest.raises(ConfigError, match="finished student"):
        run(teacher, examples, tmp_path / "begun")
    for layers in ((), (3, 1), (0, 4), (0, 0)):
        with pytest.raises(ModelError, match="expected ascending numbers from 0 to 3"):
            kept(teacher, layers)
    with pytest.raises(ModelError, match="the teacher has 4"):
        student_of(teacher, "9")
    other = talking(random_weights(architecture(num_layers=2, vocab_size=300)))
    with pytest.raises(ModelError, match="tokens are not the teacher's 258"):
        Distiller(teacher, other, examples, FAST, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    for wrong in ({"temperature": 0.0}, {"hard": 2.0}, {"epochs": 0}, {"lr": float("nan")}):
        with pytest.raises(ConfigError, match="out of range"):
            DistillationSettings(**wrong)
    with pytest.raises(DataError, match="data build"):
        data_files(tmp_path / "nowhere")


def test_a_damaged_answer_of_the_teacher_ends_the_run_with_what_to_do(
    teacher: Weights, examples: list[Example], tmp_path: Path
) -> None:
    begun = run(teacher, examples, tmp_path)
    begun.targets.compute(teacher, torch.float32)
    begun.targets.path(0).write_bytes(b"no tensors")
    with pytest.raises(TrainingError, match="delete it, and the same command computes it anew"):
        begun.run()
    assert not (tmp_path / module.STUDENT).exists()
    assert json.loads((tmp_path / module.RUN).read_bytes())["epochs"] == 2
    assert np.isfinite(begun.rate(1))
