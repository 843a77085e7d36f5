"""A conversation's cache on disk: it comes back as it was, or not at all."""

import contextlib
import dataclasses
import stat
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from quietchoir.core.engine import conversations
from quietchoir.core.engine.backends.backend import label
from quietchoir.core.engine.backends.torch_cpu.kv_cache import KeyValueCache
from quietchoir.core.engine.block_pool import BLOCK_TOKENS
from quietchoir.core.engine.conversations import SavedConversation
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.errors import CacheError, OverloadedError, QuietchoirError, RequestError
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import (
    TINY,
    TINY_BLOCK_BYTES,
    FakeModel,
    config,
    drain,
    generate,
    tiny_adapter,
    tiny_weights,
)

PROMPT = tuple(range(10, 75))  # four full blocks and a token
REQUEST = GenerationRequest(prompt=PROMPT, sampling_params=SamplingParams(max_tokens=12))


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


@pytest.fixture(scope="module")
def text(weights: Weights) -> str:
    return generate(Engine(weights, config()), [REQUEST])[0]


@pytest.fixture
def saved(weights: Weights, tmp_path):
    """A saved conversation."""
    engine = Engine(weights, config())
    generate(engine, [REQUEST])
    assert engine.conversations.save(PROMPT, tmp_path / "one.conversation") == 4 * BLOCK_TOKENS
    return tmp_path / "one.conversation"


def test_a_restored_conversation_is_not_computed_again_and_says_the_same(weights, saved, text):
    engine = Engine(weights, config())
    assert engine.conversations.restore(saved) == 4 * BLOCK_TOKENS
    engine.scheduler.check_integrity()
    assert generate(engine, [REQUEST]) == [text]
    assert (engine.stats().reused_tokens, engine.stats().prompt_tokens) == (4 * BLOCK_TOKENS, 0)
    assert engine.stats().blocks_free == engine.stats().blocks_total


def test_a_conversation_that_is_there_already_is_restored_once(weights, saved, text):
    engine = Engine(weights, config())
    generate(
        engine,
        [GenerationRequest(prompt=PROMPT[:40], sampling_params=SamplingParams(max_tokens=3))],
    )
    kept = engine.stats().blocks_cached
    engine.conversations.restore(saved)
    engine.conversations.restore(saved)
    engine.scheduler.check_integrity()
    assert (kept, engine.stats().blocks_cached) == (2, 4)
    assert generate(engine, [REQUEST]) == [text]


def test_the_file_is_its_owners_alone(saved):
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600


def test_a_saved_conversation_is_smaller_than_its_memory_and_comes_back_to_the_byte(tmp_path):
    numbers = np.random.default_rng(1).standard_normal(40_000).astype(np.float32)
    for cache in (numbers.view(np.uint16)[1::2].tobytes(), b"odd" + numbers.tobytes()):
        kept = SavedConversation("m", "", tuple(range(16)), cache)
        conversations.write(tmp_path / "c", kept)
        assert (tmp_path / "c").stat().st_size < 0.95 * len(cache)
        assert conversations.read(tmp_path / "c") == kept


@pytest.mark.parametrize("size", ["70000000", "99999999999999", "-1", "²", ""])
def test_a_file_that_says_another_size_is_damaged_and_nothing_of_that_size_is_made(tmp_path, size):
    """Seventy million bytes are more than its sixteen tokens may take."""
    packed = np.frombuffer(zlib.compress(bytes(1000)), np.uint8)
    metadata = {"format": conversations.FORMAT, "model": "m", "adapter": "", "bytes": size}
    save_file({"tokens": np.arange(16), "cache": packed}, tmp_path / "c", metadata)
    with pytest.raises(CacheError, match="damaged"):
        conversations.read(tmp_path / "c")


def test_of_several_conversations_those_used_last_are_kept(weights, tmp_path):
    engine = Engine(weights, config())
    prompts = [tuple(range(first, first + 40)) for first in (10, 60, 110)]
    for prompt in (*prompts, prompts[0]):
        limits = SamplingParams(max_tokens=1)
        generate(engine, [GenerationRequest(prompt=prompt, sampling_params=limits)])
    assert engine.conversations.save_latest(tmp_path, 2) == 2
    kept = [conversations.read(path).tokens for path in conversations.saved(tmp_path)]
    assert kept == [prompts[2][:32], prompts[0][:32]]


def test_what_the_cache_does_not_hold_cannot_be_saved_and_an_older_file_stays(weights, saved):
    before = saved.read_bytes()
    engine = Engine(weights, config())
    with pytest.raises(CacheError, match="nothing of these 65 tokens"):
        engine.conversations.save(PROMPT, saved)
    with pytest.raises(RequestError, match="'nobody' is not loaded"):
        engine.conversations.save(PROMPT, saved, adapter="nobody")
    assert saved.read_bytes() == before


def refused(engine: Engine, path, words: str, **options: object) -> None:
    """The conversation is refused, and the engine is as before."""
    before = engine.stats()
    with pytest.raises(CacheError, match=words):
        engine.conversations.restore(path, **options)  # type: ignore[arg-type]
    engine.scheduler.check_integrity()
    assert engine.stats() == before


def test_another_model_adapter_layout_or_setting_refuses_it(weights, saved):
    other = dataclasses.replace(weights, digest="e" * 64)
    refused(
        Engine(other, config()),
        saved,
        "computed with model dddddddddddd…, this engine runs eeeeeeeeeeee",
    )
    adapted = Engine(weights, config())
    adapted.adapters.load("a", tiny_adapter(1))
    refused(adapted, saved, "another version of the adapter", adapter="a")
    refused(
        Engine(weights, config(), backend=FakeModel()),
        saved,
        "laid out as 'torch float32 2x16x2x8', this engine needs 'fake'",
    )
    refused(Engine(weights, config(share_prefixes=False)), saved, "share_prefixes is false")


def test_an_adapters_conversation_comes_back_for_the_same_version_only(weights, tmp_path):
    engine, path = Engine(weights, config()), tmp_path / "a.conversation"
    engine.adapters.load("a", tiny_adapter(1))
    request = dataclasses.replace(REQUEST, adapter="a")
    text = generate(engine, [request])
    engine.conversations.save(PROMPT, path, adapter="a")
    again = Engine(weights, config())
    again.adapters.load("b", tiny_adapter(1))
    again.conversations.restore(path, adapter="b")
    assert generate(again, [dataclasses.replace(REQUEST, adapter="b")]) == text
    assert again.stats().reused_tokens == 4 * BLOCK_TOKENS
    again.adapters.load("b", tiny_adapter(2))
    refused(again, path, "another version", adapter="b")
    refused(again, path, "another version")


def test_no_room_is_said_and_changes_nothing(weights, saved):
    engine = Engine(weights, config(kv_bytes=6 * TINY_BLOCK_BYTES))
    running = engine.submit(
        GenerationRequest(prompt=PROMPT[:40], sampling_params=SamplingParams(max_tokens=10))
    )
    engine.step()
    with pytest.raises(OverloadedError, match="needs 4 blocks of the cache, 3 are free"):
        engine.conversations.restore(saved)
    engine.scheduler.check_integrity()
    drain(engine)
    assert running.finish_reason == "length"
    assert engine.conversations.restore(saved) == 4 * BLOCK_TOKENS


def test_numbers_that_are_not_finite_and_wrong_sizes_are_refused():
    cache = KeyValueCache(TINY, 4, torch.float32)
    good = cache.read_blocks([1, 2])
    for bad, words in (
        (label(cache.layout, b"\xff" * (2 * TINY_BLOCK_BYTES)), "not finite"),
        (good[:-4], "have"),
        (good + b"\0", "have"),
        (good[1:], "laid out as"),
        (b"", "laid out as ''"),
    ):
        with pytest.raises(CacheError, match=words):
            cache.write_blocks([0, 3], bad)
    assert not any(part.any() for part in (*cache.keys.values(), *cache.values.values()))
    cache.write_blocks([0, 3], label(cache.layout, b"\0\0\x80\x3f" * (TINY_BLOCK_BYTES // 2)))
    assert cache.read_blocks([0, 3]) != good
    for keys in cache.keys.values():
        assert bool((keys[[0, 3]] == 1).all()) and not keys[[1, 2]].any()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_to_the_file_it_comes_back_whole_or_not_at_all(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.conversation"
    found = SavedConversation("m" * 64, "", tuple(range(16)), label("fake", bytes(range(64))))
    conversations.write(path, found)
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "grow", "garbage"])):
        case "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(
                st.integers(0, 7)
            )
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case "grow":
            content += data.draw(st.binary(min_size=1, max_size=20))
        case "garbage":
            content = bytearray(data.draw(st.binary(max_size=200)))
    path.write_bytes(content)
    with contextlib.suppress(CacheError):
        assert conversations.read(path) == found


def test_the_latest_conversations_survive_the_engine_and_older_ones_go(weights, tmp_path, text):
    folder = tmp_path / "kept"
    engine = Engine(weights, config())
    generate(
        engine,
        [
            GenerationRequest(
                prompt=(number, *PROMPT[:40]), sampling_params=SamplingParams(max_tokens=3)
            )
            for number in range(5)
        ],
    )
    assert engine.conversations.save_latest(folder, 3) == 3
    generate(engine, [REQUEST])
    assert engine.conversations.save_latest(folder, 2) == 2
    assert len(conversations.saved(folder)) == 2
    (folder / "0009-x.conversation").write_bytes(b"not one")
    again = Engine(weights, config())
    assert again.conversations.restore_latest(folder) == 2
    assert generate(again, [REQUEST]) == [text]
    assert again.stats().reused_tokens == 4 * BLOCK_TOKENS
    assert again.conversations.restore_latest(tmp_path / "nowhere") == 0


def test_a_running_engine_saves_and_restores_between_steps(weights, tmp_path, text):
    engine = Engine(weights, config())
    engine.start()
    assert engine.submit(REQUEST).text() == text
    long = engine.submit(
        GenerationRequest(prompt=(1, 2), sampling_params=SamplingParams(max_tokens=200))
    )
    assert engine.conversations.save(PROMPT, tmp_path / "a" / "x.conversation") == 4 * BLOCK_TOKENS
    assert engine.conversations.restore(tmp_path / "a" / "x.conversation") == 4 * BLOCK_TOKENS
    assert long.text()
    engine.stop()
    assert engine.conversations.save(PROMPT, tmp_path / "y.conversation") == 4 * BLOCK_TOKENS


def test_a_folder_that_cannot_be_written_is_said(weights, tmp_path):
    engine = Engine(weights, config())
    generate(engine, [REQUEST])
    (tmp_path / "file").write_text("")
    with pytest.raises(QuietchoirError, match="no folder can be made"):
        engine.conversations.save(PROMPT, tmp_path / "file" / "x.conversation")
