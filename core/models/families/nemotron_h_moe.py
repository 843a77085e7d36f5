"""Nemotron 3 as GGUF files call it: Nemotron-H whose feed-forwards are mixtures of experts. Its
folders' model_type is also that of the dense ones, and read there.

Not covered: as `nemotron_h.py` says.

Source: llama.cpp's `nemotron_h` graph and its converter.
"""

from typing import Any

from ..architecture import Architecture
from ..family import gguf_window
from ..files.settings import GgufSettings
from .glm4moe import SIGMOID, expert_groups
from .granitehybrid import READ, scan_from_gguf
from .nemotron_h import FAMILY as DENSE
from .nemotron_h import MIXTURE, NemotronH, layers_of


class NemotronHMoe(NemotronH):
    """Its files may hold one layer more, which guesses further tokens."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        if settings.flag("rope.scaling.finetuned", default=False):
            raise ValueError("its attention has rope")
        if latent := settings.whole("moe_latent_size", 0):
            raise ValueError(f"its experts are given {latent} numbers")
        if settings.whole("expert_gating_func", SIGMOID) != SIGMOID:
            raise ValueError("its router's scores are no sigmoids")
        if gguf_window(settings, plain.context_length):
            raise ValueError("some of its layers see only a window")
        layers = plain.num_layers - settings.whole("nextn_predict_layers", 0)
        return {
            **MIXTURE,
            **scan_from_gguf(settings),
            "shared_size": settings.size("expert_shared_feed_forward_length"),
            "expert_norm": settings.flag("expert_weights_norm", default=True),
            "expert_scale": settings.real("expert_weights_scale", 0.0) or 1.0,
            **expert_groups(
                settings.whole("expert_group_count", 1),
                settings.whole("expert_group_used_count", 1),
            ),
            **layers_of(self.gguf_kinds(settings, layers, "moe")),
        }


FAMILY = NemotronHMoe(
    name="nemotron_h_moe",
    hf_defaults={},
    traits=DENSE.traits,
    gguf_names=DENSE.gguf_names,
    gguf_reads=(
        *READ,
        *("expert_shared_feed_forward_length", "expert_shared_count", "expert_gating_func"),
        *("expert_weights_norm", "expert_weights_scale", "moe_latent_size"),
        *("expert_group_count", "expert_group_used_count", "nextn_predict_layers"),
    ),
    gguf_written=False,
    further_layers=True,
    mixture=True,
)
