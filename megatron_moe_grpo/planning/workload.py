"""What a step has to do: how long prompts and responses are, how many, and what their pictures cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_moe_grpo.config.schema import RunConfig
from megatron_moe_grpo.data.visuals import VisualSize
from megatron_moe_grpo.models.internvl.config import InternVLArchitecture
from megatron_moe_grpo.models.internvl.tiling import Tiling
from megatron_moe_grpo.models.qwen2_vl.config import Qwen2VLArchitecture
from megatron_moe_grpo.models.qwen2_vl.pixels import PixelSettings
from megatron_moe_grpo.models.registry import Architecture, family_of
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.rollout.prompts import EncodedRow

# InternVL3.5's own image settings: pictures are cut into at most so many tiles.
INTERNVL_MAX_TILES = 12


@dataclass(frozen=True)
class Pictures:
    """The pictures of one prompt."""

    num_tokens: int
    """Positions that they take in the prompt."""
    num_sequences: int
    """Tiles (InternVL) or pictures (Qwen2-VL): what the vision tower attends within."""
    num_patches: int
    """Positions inside the vision tower, all sequences together, class tokens included."""
    num_pixel_values: int


@dataclass(frozen=True)
class Workload:
    """One step of a run."""

    has_rollouts: bool
    has_reference: bool
    prompt_tokens: int
    """Longest prompt, image tokens included: all are padded to it."""
    new_tokens: int
    """T: longest response (`sft`: longest answer)."""
    group_size: int
    prompts_per_step: int
    micro_batch_prompts: int
    prompts_per_forward: int
    updates: int
    """Optimizer steps a step."""
    pictures: Pictures
    """Of one prompt."""
    source: str
    """Where the lengths are from, for the reader."""

    def prompt_positions(self, layout: Layout) -> int:
        """Positions of a prompt batch: padded so that what the update feeds divides over tensor-parallel ranks."""
        return self.prompt_tokens + -(self.prompt_tokens + self.new_tokens - 1) % layout.tensor

    def positions(self, layout: Layout) -> int:
        """S of the update: prompt and all but the last response token."""
        return self.prompt_positions(layout) + self.new_tokens - 1

    def prompts_per_rank(self, layout: Layout) -> int:
        return self.prompts_per_step // layout.data

    def micro_batches(self, layout: Layout) -> int:
        """Of one rank's share, in one update."""
        return self.prompts_per_rank(layout) // self.prompts_per_micro_batch(layout)

    def prompts_per_micro_batch(self, layout: Layout) -> int:
        return min(self.micro_batch_prompts, self.prompts_per_rank(layout))

    def sequences(self, layout: Layout) -> int:
        """B of a micro-batch."""
        return self.prompts_per_micro_batch(layout) * self.group_size


def make_workload(
    config: RunConfig, prompt_tokens: int, new_tokens: int | None, pictures: Pictures, source: str
) -> Workload:
    """A step of `config`; `new_tokens` None: `rollout.max_new_tokens`."""
    has_rollouts = config.method != "sft"
    training, rollout = config.training, config.rollout
    return Workload(
        has_rollouts=has_rollouts,
        has_reference=has_rollouts and config.kl.schedule != "none",
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens or rollout.max_new_tokens,
        group_size=rollout.group_size if has_rollouts else 1,
        prompts_per_step=training.prompts_per_step,
        micro_batch_prompts=training.micro_batch_prompts,
        prompts_per_forward=rollout.prompts_per_forward,
        updates=training.updates_per_rollout if has_rollouts else 1,
        pictures=pictures,
        source=source,
    )


def pictures_of_size(hf_config: Mapping[str, Any], count: int, width: int, height: int) -> Pictures:
    """`count` pictures of that many pixels, cut as the family's released image settings do.

    Raises:
        DataError: a picture that the family refuses.
    """
    architecture = family_of(hf_config).parse_architecture(hf_config)
    if isinstance(architecture, InternVLArchitecture):
        side = architecture.vision.image_size
        tiles = Tiling(tile_size=(side, side), max_tiles=INTERNVL_MAX_TILES).num_tiles(width, height)
        return _pictures(architecture, count * tiles * architecture.image_seq_length, count * tiles)
    vision = architecture.vision
    settings = {"patch_size": vision.patch_size, "temporal_patch_size": vision.temporal_patch_size}
    pixels = PixelSettings.from_huggingface(settings | {"merge_size": vision.merge_size})
    num_patches = math.prod(pixels.grid(VisualSize(width, height)))
    return _pictures(architecture, count * num_patches // vision.merge_size**2, count)


def pictures_of_rows(
    hf_config: Mapping[str, Any], rows: Sequence[EncodedRow], vision_token_ids: Sequence[int]
) -> Pictures:
    """Of the row with the most image tokens."""
    counts = [sum(token in vision_token_ids for token in row.prompt_ids) for row in rows]
    most = max(range(len(rows)), key=counts.__getitem__)
    architecture = family_of(hf_config).parse_architecture(hf_config)
    if isinstance(architecture, InternVLArchitecture):
        return _pictures(architecture, counts[most], counts[most] // architecture.image_seq_length)
    return _pictures(architecture, counts[most], max(1, len(rows[most].row.visuals)))


def _pictures(architecture: Architecture, num_tokens: int, num_sequences: int) -> Pictures:
    if isinstance(architecture, InternVLArchitecture):
        vision = architecture.vision
        pixels = 3 * vision.image_size**2
        return Pictures(num_tokens, num_sequences, num_sequences * (vision.num_patches + 1), num_sequences * pixels)
    assert isinstance(architecture, Qwen2VLArchitecture), "a family whose pictures cannot be counted"
    vision = architecture.vision
    num_patches = num_tokens * vision.merge_size**2
    return Pictures(
        num_tokens, num_sequences, num_patches, num_patches * 3 * vision.temporal_patch_size * vision.patch_size**2
    )
