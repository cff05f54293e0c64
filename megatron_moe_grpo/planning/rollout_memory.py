"""Bytes of rolling out and of what it leaves behind: key-value cache, recorded routing, trace."""

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.workload import Workload
from megatron_moe_grpo.rollout.decode import STEPS_TOGETHER

FP32, FP64, INT16, INT64 = 4, 8, 2, 8


def decoded_together(workload: Workload, layout: Layout) -> int:
    """Sequences of one rank that are decoded at once."""
    return min(workload.prompts_per_forward, workload.prompts_per_rank(layout)) * workload.group_size


def cache_bytes(sizes: DecoderSizes, workload: Workload, layout: Layout, width: int) -> int:
    """Keys and values of a stage's layers, for all positions from the start.

    Megatron-core 0.16.1, `Attention._allocate_memory`: [positions, sequences, kv heads / tensor, head size].
    """
    positions = workload.prompt_positions(layout) + workload.new_tokens
    layers, heads = sizes.num_layers // layout.pipeline, sizes.num_kv_heads // layout.tensor
    return 2 * layers * positions * decoded_together(workload, layout) * heads * sizes.head_dim * width


def trace_bytes(sizes: DecoderSizes, workload: Workload, layout: Layout) -> int:
    """The routing trace of a rank's rollouts, all layers on every stage: int16 experts and fp32 log-likelihoods."""
    num_active = sizes.num_active or 0
    positions = workload.prompts_per_rank(layout) * workload.group_size * workload.positions(layout)
    return positions * len(sizes.moe_layers) * (num_active * INT16 + FP32)


def rollout_working_bytes(sizes: DecoderSizes, workload: Workload, layout: Layout, width: int) -> int:
    """On top of the cache: while the prompt passes through a layer, or later, when more steps have been recorded."""
    prompt = workload.prompt_positions(layout)
    steps = min(STEPS_TOGETHER, workload.new_tokens) - 1
    prefill = _recorded_bytes(sizes, workload, layout, prompt) + _prefill_bytes(sizes, workload, layout, width)
    logits = decoded_together(workload, layout) * sizes.vocab_size * 3 * FP32
    return max(prefill, _recorded_bytes(sizes, workload, layout, prompt + steps)) + logits


def _recorded_bytes(sizes: DecoderSizes, workload: Workload, layout: Layout, positions: int) -> int:
    """What a stage's routers record until it is worked out, and the noise they sample with (rollout/decode.py)."""
    if not sizes.num_experts:
        return 0
    # Logits before and after mask and temperature, and the experts; uniform noise is drawn in float64 for all layers.
    stage_layers = len(sizes.moe_layers) // layout.pipeline
    recorded = stage_layers * (2 * sizes.num_experts * FP32 + sizes.num_active * INT64)
    noise = len(sizes.moe_layers) * sizes.num_experts * 2 * FP64
    return decoded_together(workload, layout) * positions * (recorded + noise)


def _prefill_bytes(sizes: DecoderSizes, workload: Workload, layout: Layout, width: int) -> int:
    """The tensors of one half of one layer, roughly."""
    tokens = decoded_together(workload, layout) * workload.prompt_positions(layout)
    query, key = (heads * sizes.head_dim // layout.tensor for heads in (sizes.num_heads, sizes.num_kv_heads))
    # Input and normalised input; fused query, key and value; query and key with the parts of their rotation.
    attention = 2 * sizes.hidden_size + (query + 2 * key) + 4 * query + 2 * key
    num_active = sizes.num_active or 1
    ffn = (sizes.expert_ffn_size or sizes.ffn_size) * num_active // layout.expert_tensor
    # The same, then tokens sorted by expert, their outputs twice, and what is inside the feed-forward.
    feed_forward = 2 * sizes.hidden_size + 3 * num_active * sizes.hidden_size + 3 * ffn
    return tokens * max(attention, feed_forward) * width
