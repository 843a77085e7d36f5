"""Models that transformers computes, behind our engine: the texts of `generate`, whoever else is
answered meanwhile.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine import fit
from quietchoir.core.engine.backends.transformers.runner import Abilities, TransformersRunner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import Generation, GenerationRequest
from quietchoir.core.engine.sampling.params import Constraint, SamplingParams
from quietchoir.core.errors import CacheError, ModelFileError, RequestError, UnsupportedModelError
from quietchoir.core.models import transformers_model
from quietchoir.core.models.lora.adapter import Adapter
from quietchoir.core.models.transformers_model import TransformersModel
from quietchoir.simulations.bench.families import (
    FAMILIES,
    SmallFamily,
    write_model,
    write_tokenizer,
)
from quietchoir.tests.fakes.engine import tiny_adapter

# Layers of every kind of cache: keys and values with learned positions and with ALiBi, windows,
# convolutions, a gated delta, Mamba alone and beside attention, a window beside a recurrence, none.
KINDS = {
    "GPT-2": Abilities(cached=True, chunks=True, rows=True),
    "BLOOM": Abilities(cached=True, chunks=True, rows=True),
    "Cohere": Abilities(cached=True, chunks=True, rows=True),
    "LFM2": Abilities(cached=True, chunks=True, rows=True),
    "Qwen3-Next": Abilities(cached=True, chunks=True, rows=True),
    "Mamba": Abilities(cached=True, chunks=True, rows=True),
    "Jamba": Abilities(cached=True, chunks=False, rows=True),
    "RecurrentGemma": Abilities(cached=True, chunks=False, rows=False),
    "RWKV-4": Abilities(),
}
# not among the families of the table: its windows are in every second layer, and stay here
COHERE = SmallFamily("Cohere", "cohere2", {"sliding_window": 9, "num_hidden_layers": 4})
LENGTHS = (5, 33, 18, 41, 2)
NEW = 14


def family(title: str) -> SmallFamily:
    return next(one for one in (*FAMILIES, COHERE) if one.title == title)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A kind's name, its folder, and the model itself as transformers made it."""
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder)
    with torch.inference_mode():
        model = write_model(family(request.param), folder)
    return request.param, folder, model


def served(folder: Path) -> TransformersModel:
    return transformers_model.read(folder, UnsupportedModelError("told so"))


def engine_of(model: TransformersModel, **limits: Any) -> Engine:
    return Engine(model, EngineConfig(**{"threads": 1, "context": 128, **limits}))


def prompts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(7)
    return [
        tuple(torch.randint(256, (length,), generator=generator).tolist()) for length in LENGTHS
    ]


def asked(engine: Engine, prompt: tuple[int, ...], **params: Any) -> Generation:
    greedy = SamplingParams(**{"max_tokens": NEW, "logprobs": 0, **params})
    return engine.submit(GenerationRequest(prompt=prompt, sampling_params=greedy))


def finished(engine: Engine, *generations: Generation) -> list[list[int]]:
    """Tokens of each, the scheduler's promises looked at after every step."""
    for _ in range(400):
        if all(one.finish_reason is not None for one in generations):
            break
        engine.step()
        engine.scheduler.check_integrity()
    found = []
    for one in generations:
        assert one.error is None, one.error
        found.append([delta.logprobs.chosen.token for delta in one if delta.logprobs is not None])
    return found


def expected(model: Any, prompt: tuple[int, ...], count: int = NEW) -> list[int]:
    """Greedy, without a cache, by the model that was saved."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            token = int(model(torch.tensor([tokens])).logits[0, -1, :260].argmax())
            if token == 258:
                break
            tokens.append(token)
    return tokens[len(prompt) :]


def test_what_a_network_does_in_pieces_is_found_out(kind: Any) -> None:
    title, folder, _ = kind
    assert TransformersRunner(served(folder)).abilities == KINDS[title]


def test_answers_side_by_side_are_those_of_the_model_alone(kind: Any) -> None:
    _, folder, model = kind
    engine = engine_of(served(folder))
    generations = [asked(engine, prompt) for prompt in prompts()[:3]]
    for _ in range(4):
        engine.step()
    # who comes later stands beside who is half done, and who ends early leaves the others there
    generations += [asked(engine, prompts()[3], max_tokens=3), asked(engine, prompts()[4])]
    told = finished(engine, *generations)
    for place, (prompt, tokens) in enumerate(zip(prompts(), told, strict=True)):
        assert tokens == expected(model, prompt)[: 3 if place == 3 else NEW]
    assert engine.stats().failed == 0


def test_requests_that_give_way_go_on_with_the_same_text(kind: Any) -> None:
    _, folder, model = kind
    network = served(folder)
    block = TransformersRunner(network).block_bytes
    engine = engine_of(network, kv_bytes=4 * block)
    short = [prompt[:15] for prompt in prompts() if len(prompt) > 15]
    told = finished(engine, *(asked(engine, prompt, max_tokens=24) for prompt in short))
    assert engine.stats().preemptions > 0
    assert told == [expected(model, prompt, 24) for prompt in short]


def test_a_conversation_goes_on_from_its_last_answer_and_from_its_middle(kind: Any) -> None:
    title, folder, model = kind
    engine = engine_of(served(folder))
    assert isinstance(engine.backend, TransformersRunner)
    steps: list[int] = []
    network, step = engine.backend.network, engine.backend.network.step

    def counted(tokens: Any, *others: Any, **more: Any) -> Any:
        steps.append(tokens.shape[1])
        return step(tokens, *others, **more)

    network.step = counted  # type: ignore[method-assign]
    first = prompts()[3]
    (answer,) = finished(engine, asked(engine, first))
    longer = (*first, *answer, *range(7))
    assert steps[0] >= len(first)
    steps.clear()
    assert finished(engine, asked(engine, longer)) == [expected(model, longer)]
    if KINDS[title].cached:
        # of the known tokens at most the last is computed again
        assert max(steps) <= 7 + 1, steps
    aside = (*longer[:30], 9, 8, 7)
    assert finished(engine, asked(engine, aside)) == [expected(model, aside)]


def test_with_sharing_off_or_a_seed_nothing_of_others_is_used(kind: Any) -> None:
    _, folder, model = kind
    prompt = prompts()[3]
    for limits, params in (({"share_prefixes": False}, {}), ({}, {"seed": 3})):
        engine = engine_of(served(folder), **limits)
        assert isinstance(engine.backend, TransformersRunner)
        finished(engine, asked(engine, prompt))
        began = engine.backend._begin
        states: list[int] = []

        def looked(sequence: Any, began: Any = began, states: list[int] = states) -> Any:
            found = began(sequence)
            states.append(len(found.tokens))
            return found

        engine.backend._begin = looked  # type: ignore[method-assign]
        assert finished(engine, asked(engine, prompt, **params)) == [expected(model, prompt)]
        assert not any(states)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2."""
    folder = tmp_path_factory.mktemp("gpt2")
    write_tokenizer(folder)
    with torch.inference_mode():
        write_model(family("GPT-2"), folder)
    return folder


def test_grammars_penalties_and_bias_hold_here_too(plain: Path) -> None:
    engine = engine_of(served(plain))
    digits = Constraint("regex", "[0-9]{4}")
    one = asked(engine, (1, 2, 3), constraint=digits)
    two = asked(engine, (1, 2, 3), logit_bias=((32, 100.0),), max_tokens=3)
    three = asked(
        engine, (1, 2, 3), logit_bias=((32, 50.0), (33, 50.0)), frequency_penalty=2.0, max_tokens=8
    )
    while None in (one.finish_reason, two.finish_reason, three.finish_reason):
        engine.step()
    said = one.text()
    assert said.isdigit() and len(said) == 4
    assert two.text() == "AAA"
    assert set(three.text()) == {"A", "B"}  # whichever is likelier, each time less


def test_a_step_that_fails_leaves_no_half_state_behind(plain: Path) -> None:
    engine = engine_of(served(plain))
    assert isinstance(engine.backend, TransformersRunner)
    prompt = prompts()[1]
    (whole,) = finished(engine, asked(engine, prompt))
    network, step = engine.backend.network, engine.backend.network.step
    going = asked(engine, prompt[:20])
    engine.step()

    def broken(*given: Any, **more: Any) -> Any:
        step(*given, **more)  # the cache has grown
        raise RuntimeError("told to fail")

    network.step = broken  # type: ignore[method-assign]
    engine.step()
    assert going.finish_reason == "error"
    network.step = step  # type: ignore[method-assign]
    assert finished(engine, asked(engine, prompt)) == [whole]


def test_nobody_goes_on_from_a_state_that_is_not_finite(plain: Path) -> None:
    engine = engine_of(served(plain))
    assert isinstance(engine.backend, TransformersRunner)
    prompt = prompts()[1]
    (whole,) = finished(engine, asked(engine, prompt))
    head = engine.backend.network.model.lm_head.weight
    kept = copy.deepcopy(head.data)
    head.data.fill_(float("nan"))
    bad = asked(engine, (*prompt, 1))
    engine.step()
    assert bad.finish_reason == "error"
    assert "not finite" in str(bad.error)
    head.data.copy_(kept)
    assert len(engine.backend.running) + len(engine.backend.kept) == 1
    assert finished(engine, asked(engine, prompt)) == [whole]


def test_states_of_ended_conversations_stay_within_their_bytes(plain: Path) -> None:
    model = served(plain)
    runner = TransformersRunner(model, kept_bytes=3 * TransformersRunner(model).block_bytes)
    engine = Engine(model, EngineConfig(threads=1, context=128), backend=runner)
    for place in range(6):
        finished(engine, asked(engine, (place, *prompts()[1])))
    finished(engine, asked(engine, prompts()[0]))
    assert sum(state.bytes for state in runner.kept) <= runner.kept_bytes
    assert runner.kept


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's word
def test_adapters_answer_beside_the_plain_model_as_peft_computes_them(tmp_path: Path) -> None:
    """Of LFM2, whose convolutions keep states: one state serves one adapter alone."""
    (folder := tmp_path / "model").mkdir()
    write_tokenizer(folder)
    with torch.inference_mode():
        model = write_model(family("LFM2"), folder)
    texts, adapted = {"": model}, {}
    for name, dora in (("one", False), ("two", True)):
        config = LoraConfig(
            r=4,
            lora_alpha=16,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights=False,
            use_dora=dora,
        )
        texts[name] = get_peft_model(copy.deepcopy(model), config).eval()
        texts[name].save_pretrained(tmp_path / name)
        adapted[name] = Adapter.load(tmp_path / name)
    engine = engine_of(served(folder))
    for name, adapter in adapted.items():
        engine.adapters.load(name, adapter)
    for _ in range(2):  # the second time on states of the first
        generations = {
            (name, place): engine.submit(
                GenerationRequest(
                    prompt=prompts()[place],
                    sampling_params=SamplingParams(max_tokens=NEW, logprobs=0),
                    adapter=name or None,
                )
            )
            for place in (1, 3)
            for name in texts
        }
        told = dict(zip(generations, finished(engine, *generations.values()), strict=True))
        for (name, place), tokens in told.items():
            assert tokens == expected(texts[name], prompts()[place])
    assert len({tuple(tokens) for tokens in told.values()}) > 3  # an adapter changes something
    with pytest.raises(ModelFileError, match="is no projection of the base model"):
        engine.adapters.load("mine", tiny_adapter(1, base_digest=""))
    with pytest.raises(RequestError, match="was trained on base dddd"):
        engine.adapters.load("mine", tiny_adapter(1))


def test_saved_conversations_are_refused_with_a_sentence(plain: Path, tmp_path: Path) -> None:
    engine = engine_of(served(plain))
    finished(engine, asked(engine, prompts()[3]))
    with pytest.raises(CacheError):
        engine.conversations.save(prompts()[3], tmp_path / "kept")
    assert engine.conversations.save_latest(tmp_path / "folder", 4) == 0
    with pytest.raises(CacheError, match="one state for each conversation"):
        engine.backend.write_cache([0], b"")


def test_memory_is_counted_as_transformers_takes_it_and_not_as_the_file(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with torch.inference_mode():
        write_model(family("Mamba"), tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    held = (tmp_path / "model.safetensors").stat().st_size
    need = fit.needs_of(tmp_path).weight_bytes
    assert need == 4 * served(tmp_path).parameters > 1.8 * held
    assert need <= engine_of(served(tmp_path)).weight_bytes < 1.2 * need  # and its tables
