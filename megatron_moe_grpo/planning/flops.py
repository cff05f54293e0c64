"""Floating-point operations of forward passes: two for each weight and token, and attention's two products."""

from dataclasses import dataclass

from megatron_moe_grpo.models.internvl.config import InternVLArchitecture
from megatron_moe_grpo.models.registry import Architecture
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.memory import PlannedRun


@dataclass(frozen=True)
class Forward:
    """A batch of sequences through one stage of one rank."""

    sequences: int
    positions: int
    """Q: positions that are new."""
    context: int
    """Positions that attention reaches: Q in training and prefill."""
    num_prompts: int
    """Prompts whose pictures go through the vision tower."""
    splits_positions: bool
    """Sequence parallelism: on in training, off in rollouts."""
    num_logits: int
    """Positions of a sequence that the output layer works on: Q in training, 1 in rollouts."""


@dataclass(frozen=True)
class Flops:
    """Of one rank, one forward."""

    vision: float
    decoder: float
    experts: float
    output: float

    @property
    def total(self) -> float:
        return self.vision + self.decoder + self.experts + self.output


def forward_flops(run: PlannedRun, layout: Layout, stage: int, batch: Forward, expert_imbalance: float = 1.0) -> Flops:
    """Operations of a rank; products with norms, softmaxes and embeddings look-ups are left out."""
    sizes, layers = run.architecture.text, _layers(run, layout, stage)
    tokens, width = batch.sequences * batch.positions, sizes.hidden_size
    query, key = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    routed = sum(layer in sizes.moe_layers for layer in layers)
    attention = 2 * tokens * width * (2 * query + 2 * key) + 4 * tokens * batch.context * query
    decoder = len(layers) * attention + (len(layers) - routed) * 6 * tokens * width * sizes.ffn_size
    experts = 0.0
    if routed:
        # With split positions every rank routes its own; otherwise tensor-parallel ranks repeat each other.
        routed_tokens = tokens / layout.tensor if batch.splits_positions else tokens
        each = 6 * sizes.num_active * width * sizes.expert_ffn_size * expert_imbalance
        experts = routed * routed_tokens * (each + 2 * width * sizes.num_experts)
    is_last = stage == layout.pipeline - 1
    return Flops(
        vision=vision_flops(run.architecture, run, batch.num_prompts) if stage == 0 else 0.0,
        decoder=decoder / layout.tensor,
        experts=experts,
        output=2 * batch.sequences * batch.num_logits * width * sizes.vocab_size / layout.tensor if is_last else 0.0,
    )


def vision_flops(architecture: Architecture, run: PlannedRun, num_prompts: int) -> float:
    """Tower and projector on the pictures of so many prompts; not divided over tensor-parallel ranks."""
    pictures, vision, text = run.workload.pictures, architecture.vision, architecture.text
    if pictures.num_sequences == 0:
        return 0.0
    hidden, joined = vision.hidden_size, architecture.projector_input_size
    each = pictures.num_patches / pictures.num_sequences
    layer = pictures.num_patches * (2 * hidden * (4 * hidden + 2 * vision.ffn_size) + 4 * each * hidden)
    # The first layer of InternVL's projector leads into the language model's width, Qwen2-VL's stays.
    inner = text.hidden_size if isinstance(architecture, InternVLArchitecture) else joined
    projector = 2 * pictures.num_tokens * inner * (joined + text.hidden_size)
    return num_prompts * (vision.num_layers * layer + projector + 2 * pictures.num_pixel_values * hidden)


def _layers(run: PlannedRun, layout: Layout, stage: int) -> range:
    per_stage = run.architecture.text.num_layers // layout.pipeline
    return range(stage * per_stage, (stage + 1) * per_stage)
