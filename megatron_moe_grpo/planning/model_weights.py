"""How many weights each rank of a layout holds, from the weight map alone: nothing is built."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.planning.layout import Layout

LAYER = re.compile(r"\.decoder\.layers\.(\d+)\.")
EXPERT = re.compile(r"\.local_experts\.(\d+)\.")
OUTPUT, EMBEDDING = "language_model.output_layer.weight", "language_model.embedding.word_embeddings.weight"
# Megatron cuts these over tensor-parallel ranks (0.16.1: VocabParallelEmbedding, Column- and RowParallelLinear).
CUT = re.compile(r"(word_embeddings|output_layer|linear_qkv|linear_proj|linear_fc1|linear_fc2)\.(weight|bias)$")
VISION = ("vision_tower.", "projector.")


@dataclass(frozen=True)
class StageWeight:
    """One parameter as a rank of some stage holds it."""

    name: str
    num_values: int
    is_expert: bool
    """Cut and copied by the expert-parallel groups."""
    is_trained: bool
    is_shared_embedding: bool
    """Tied, and with pipeline stages on the first and the last of them."""


def whole_shapes(hf_config: Mapping[str, Any]) -> dict[str, Shape]:
    """Every parameter of the uncut Megatron model -> shape, in the order of its modules."""
    return Converter(family_of(hf_config).weight_map(hf_config)).megatron_shapes


class WeightBook:
    """Parameters of any stage of any layout; names are read once, and a stage is worked out once."""

    def __init__(self, hf_config: Mapping[str, Any], sizes: DecoderSizes, frozen: tuple[str, ...] = ()):
        """`frozen`: `model.freeze`."""
        self._sizes = sizes
        self._entries = [_Entry.of(name, shape, frozen) for name, shape in whole_shapes(hf_config).items()]
        self._cache: dict[tuple[int, ...], tuple[StageWeight, ...]] = {}

    def of_stage(self, layout: Layout, stage: int) -> tuple[StageWeight, ...]:
        """Parameters of any rank of that pipeline stage, in the order of its modules: all of them hold equally many."""
        key = (layout.tensor, layout.pipeline, layout.expert, layout.expert_tensor, stage)
        if key not in self._cache:
            self._cache[key] = tuple(self._stage(layout, stage))
        return self._cache[key]

    def _stage(self, layout: Layout, stage: int) -> Iterator[StageWeight]:
        has_tied_stages = self._sizes.ties_embeddings and layout.pipeline > 1
        experts_a_rank = (self._sizes.num_experts or 1) // layout.expert
        for entry in self._entries:
            if self._stage_of(entry, layout) == stage and (entry.expert is None or entry.expert < experts_a_rank):
                yield entry.cut(layout, is_shared=has_tied_stages and entry.name == EMBEDDING)
            if has_tied_stages and entry.name == EMBEDDING and stage == layout.pipeline - 1:
                # The last stage has a copy of the embedding, as its output layer (0.16.1, LanguageModule).
                yield replace(entry, name=OUTPUT).cut(layout, is_shared=True)

    def _stage_of(self, entry: "_Entry", layout: Layout) -> int:
        if entry.layer is not None:
            return entry.layer // (self._sizes.num_layers // layout.pipeline)
        is_last = entry.name == OUTPUT or entry.name.startswith("language_model.decoder.final_layernorm")
        return layout.pipeline - 1 if is_last else 0


@dataclass(frozen=True)
class _Entry:
    """A parameter of the whole model."""

    name: str
    num_values: int
    layer: int | None
    expert: int | None
    is_cut: bool
    is_trained: bool

    @classmethod
    def of(cls, name: str, shape: Shape, frozen: tuple[str, ...]) -> "_Entry":
        layer, expert = LAYER.search(name), EXPERT.search(name)
        is_cut = CUT.search(name) is not None and not name.startswith(VISION)
        return cls(
            name,
            math.prod(shape),
            int(layer[1]) if layer else None,
            int(expert[1]) if expert else None,
            is_cut,
            is_trained=_part_of(name) not in frozen,
        )

    def cut(self, layout: Layout, is_shared: bool) -> StageWeight:
        """A rank's piece."""
        ways = layout.tensor if self.expert is None else layout.expert_tensor
        return StageWeight(
            self.name,
            self.num_values // (ways if self.is_cut else 1),
            is_expert=self.expert is not None and layout.expert > 1,
            is_trained=self.is_trained,
            is_shared_embedding=is_shared,
        )


def _part_of(name: str) -> str:
    """As mcore.optimizer.part_of."""
    return "router" if ".router." in name else name.split(".")[0]
