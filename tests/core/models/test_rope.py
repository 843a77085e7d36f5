"""Rope's tables: what each says, in config.json and in GGUF, and that nothing in one is passed
over.
"""

from typing import Any

import pytest

from quietchoir.core.errors import ModelFileError
from quietchoir.core.models.checkpoint import from_gguf
from quietchoir.core.models.files import gguf
from quietchoir.core.models.rope import RopeScaling, rope_scaling

from .conftest import HEAD_SIZE, WriteModel

LINEAR = RopeScaling((4.0,) * 8)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, RopeScaling()),
        ({"rope_type": "default", "rope_theta": 10000.0, "type": None}, RopeScaling()),
        ({"factor": 4.0}, LINEAR),
        ({"factor": 4, "rope_type": None, "short_factor": None}, LINEAR),
        ({"type": "linear", "factor": 4.0}, LINEAR),
        ({"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 64}, LINEAR),
        # the context is cut to what is not stretched
        ({"rope_type": "dynamic", "factor": 2.0}, RopeScaling(context=512)),
    ],
)
def test_a_table_means_what_transformers_takes_it_for(
    rule: dict[str, Any], expected: RopeScaling
) -> None:
    assert rope_scaling(rule, HEAD_SIZE, 10000.0, 512) == expected


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"rope_type": "proportional", "factor": 2.0}, "scaled by the rule 'proportional'"),
        ({"rope_type": "dynamic"}, "rope's factor is None"),
        ({**YARN, "long_factor": [1.0]}, "'yarn' has the setting 'long_factor'"),
        ({**YARN, "beta_fast": True}, "rope's beta_fast is True"),
        ({"type": "mrope", "mrope_section": [4, 2, 2]}, "scaled by the rule 'mrope'"),
        ({"rope_type": ["linear"], "factor": 2.0}, r"scaled by the rule \['linear'\]"),
        ({"mrope_section": [4, 2, 2]}, "'default' has the setting 'mrope_section'"),
        ({"rope_type": "default", "factor": 2.0}, "'default' has the setting 'factor'"),
        (
            {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.1},
            "'linear' has the setting 'attention_factor'",
        ),
        (
            {**LLAMA3, "rope_type": "llama3", "beta_fast": 32},
            "'llama3' has the setting 'beta_fast'",
        ),
        (LLAMA3, "'linear' has the setting 'high_freq_factor'"),
        ({"type": "linear"}, "rope's factor is None, expected a positive number"),
        ({"factor": True}, "rope's factor is True"),
        (
            {"type": "longrope", "short_factor": [1.0] * 8, "short_mscale": 1.1},
            "'longrope' has the setting 'short_mscale'",
        ),
    ],
)
def test_a_table_with_something_that_is_not_computed_is_refused(
    rule: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        rope_scaling(rule, HEAD_SIZE, 10000.0, 512)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, ()),
        ({"scaling.type": "linear", "scaling.factor": 4.0}, LINEAR.rope_factors),
        ({"scaling.factor": 4.0}, LINEAR.rope_factors),
        ({"scale_linear": 4.0}, LINEAR.rope_factors),
        (
            {"scale_linear": 2.0, "scaling.factor": 4.0, "scaling.finetuned": True},
            LINEAR.rope_factors,
        ),
        ({"scaling.type": "none", "scaling.factor": 4.0}, ()),
        ({"scaling.factor": 0.0}, ()),
        ({"scaling.factor": 1.0, "scaling.original_context_length": 64}, ()),
    ],
)
def test_a_gguf_files_settings_mean_what_llama_cpp_takes_them_for(
    write_model: WriteModel, metadata: dict[str, Any], expected: tuple[float, ...]
) -> None:
    path = write_model(metadata={f"llama.rope.{key}": value for key, value in metadata.items()})
    assert from_gguf.read_architecture(gguf.read(path)).rope_factors == expected


def test_a_gguf_files_factor_of_cosines_is_read_with_and_without_yarn(
    write_model: WriteModel,
) -> None:
    yarn = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64}
    own = rope_scaling(YARN, HEAD_SIZE, 10000.0, 512)
    assert own.rope_magnitude > 1.1
    for metadata, factors, magnitude in (
        ({}, (), 1.2),
        (yarn, own.rope_factors, 1.2 * own.rope_magnitude),
    ):
        said = {**metadata, "scaling.attn_factor": 1.2}
        path = write_model(metadata={f"llama.rope.{key}": value for key, value in said.items()})
        found = from_gguf.read_architecture(gguf.read(path))
        assert found.rope_factors == factors
        assert found.rope_magnitude == pytest.approx(magnitude)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"scaling.type": "ntk", "scaling.factor": 4.0}, "scaled by the rule 'ntk'"),
        ({"scaling.factor": -2.0}, "rope's factor is -2.0"),
        ({"dimension_sections": [4, 2, 2]}, "it has the setting llama.rope.dimension_sections"),
        (
            {"scaling.yarn_log_multiplier": 0.1},
            "it has the setting llama.rope.scaling.yarn_log_multiplier",
        ),
    ],
)
def test_a_gguf_file_with_a_rope_that_is_not_computed_is_refused(
    write_model: WriteModel, metadata: dict[str, Any], sentence: str
) -> None:
    path = write_model(metadata={f"llama.rope.{key}": value for key, value in metadata.items()})
    with pytest.raises(ModelFileError, match=sentence):
        from_gguf.read_architecture(gguf.read(path))
