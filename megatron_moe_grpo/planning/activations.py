"""Bytes that the decoder's forward pass keeps for the backward pass, term by term.

Two sets of kernels.  `cpu` is what this package runs without CUDA; every term of it is checked against the tensors
that autograd really saves (tests/unit/planning/test_activations.py).  `gpu` is read from the sources of megatron-core
0.16.1 and Transformer Engine and not measured: its fused kernels keep less.  docs/plan.md has the table.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.planning.layout import Layout

Kernels = Literal["cpu", "gpu"]
Bytes = Counter[str]
FP32 = 4


@dataclass(frozen=True)
class Passage:
    """One micro-batch on its way through a rank's layers."""

    sizes: DecoderSizes
    layout: Layout
    kernels: Kernels
    width: int
    """Bytes of an activation: 4 for fp32, 2 for bf16."""
    sequences: int
    """B."""
    positions: int
    """S."""
    is_padded: bool = True
    """Prompts differ in length, so the cpu's attention takes an explicit mask."""
    expert_imbalance: float = 1.0
    has_gate_loss: bool = True
    has_balance_loss: bool = True
    has_mask: bool = True
    """Guidance closes experts."""

    @property
    def tokens(self) -> int:
        """M of the whole micro-batch."""
        return self.sequences * self.positions

    @property
    def share(self) -> float:
        """Tokens or heads of this rank: sequence parallelism cuts the ones, tensor parallelism the others."""
        return self.tokens / self.layout.tensor


def attention_bytes(passage: Passage) -> Bytes:
    """First half of a layer: norm, projections, attention."""
    sizes, width, share = passage.sizes, passage.width, passage.share
    query, key = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    found = Bytes({"norms": _norm(passage)})
    found["attention"] += share * sizes.hidden_size * width  # input of linear_qkv
    found["attention"] += share * (query + 2 * key) * width  # its output: the values are a view of it
    if sizes.has_qk_norm:
        found["attention"] += _qk_norm(passage, query, key)
    found["attention"] += share * (2 * query + key) * width  # rotated query and key, attended values
    found["attention"] += share * sizes.num_heads * FP32  # logsumexp
    if passage.kernels == "gpu":
        found["attention"] += share * key * width  # the values, made contiguous
    elif passage.is_padded:
        found["attention mask"] += passage.tokens * passage.positions * width
    # Cosines and sines of query and key; Qwen2-VL's differ by sequence.
    angles = passage.positions if sizes.mrope_section is None else passage.tokens
    found["attention"] += 4 * angles * sizes.head_dim * width
    return found


def _norm(passage: Passage) -> float:
    """torch's RMSNorm is composed: fp32 input and normalised input; Transformer Engine keeps the input as it is."""
    kept = 2 * FP32 if passage.kernels == "cpu" else passage.width
    return passage.share * (passage.sizes.hidden_size * kept + FP32)


def _qk_norm(passage: Passage, query: int, key: int) -> float:
    heads = passage.sizes.num_heads + passage.sizes.num_kv_heads
    if passage.kernels == "gpu":
        return passage.share * ((query + key) * passage.width + heads * FP32)
    # An fp32 key needs no copy: it is a view of linear_qkv's output.
    copied_key = key if passage.width != FP32 else 0
    return passage.share * (2 * query + key + copied_key + heads) * FP32


def dense_bytes(passage: Passage) -> Bytes:
    """Second half of a dense layer."""
    # Gate and up; then, unfused, the activation, a copy of up, and the product; fused, the product alone.
    inner = 5 if passage.kernels == "cpu" else 3
    kept = passage.sizes.hidden_size + inner * passage.sizes.ffn_size
    return Bytes({"norms": _norm(passage), "feed-forward": passage.share * kept * passage.width})


def expert_bytes(passage: Passage) -> Bytes:
    """Second half of a routed layer."""
    sizes, width, layout = passage.sizes, passage.width, passage.layout
    found = Bytes({"norms": _norm(passage), "router": passage.share * sizes.hidden_size * width})
    found += router_bytes(passage)
    # Balanced, a rank's experts get as many tokens as the rank sends away.
    sent = passage.share * sizes.num_active * passage.expert_imbalance
    inner = 5 if passage.kernels == "cpu" else 3
    # Inside an expert, tensor parallelism gathers the tokens and cuts the width.
    found["experts"] += sent * layout.expert_tensor * (sizes.hidden_size * width + FP32)
    found["experts"] += sent * inner * sizes.expert_ffn_size * width
    found["experts"] += passage.share * sizes.num_active * 8  # where each token came from, int64
    return found


def router_bytes(passage: Passage) -> Bytes:
    """What choosing experts and its losses keep, a layer."""
    sizes = passage.sizes
    num_experts, num_active = sizes.num_experts, sizes.num_active
    kept = num_experts * (2 * FP32 + 1)  # softmax, weights by expert and their map for the dispatcher
    if passage.has_gate_loss:
        kept += num_active * (num_experts + 1) * FP32 + 21
    if passage.has_balance_loss:
        kept += (num_experts + 1) * FP32
    return Bytes({"router": passage.share * kept})


def selection_bytes(passage: Passage) -> Bytes:
    """Experts to replay and closed experts, for all layers of the model at once, on every stage."""
    sizes = passage.sizes
    if not sizes.num_experts:
        return Bytes()
    kept = 8 * sizes.num_active + (sizes.num_experts if passage.has_mask else 0)
    return Bytes({"router": passage.share * len(sizes.moe_layers) * kept})


def output_bytes(passage: Passage) -> Bytes:
    """Last stage: final norm, output layer, cross-entropy (softmax in fp32, in place) and the loss."""
    sizes, share = passage.sizes, passage.share
    found = Bytes({"norms": _norm(passage), "logits": share * sizes.vocab_size * FP32})
    found["logits"] += share * sizes.hidden_size * passage.width + passage.tokens * 30
    return found


def embedding_bytes(passage: Passage) -> Bytes:
    """First stage: token ids, image slots and whether there are any."""
    return Bytes({"embedding": passage.tokens * 17})


def stage_bytes(passage: Passage, stage: int) -> tuple[Bytes, float]:
    """What one micro-batch keeps on a stage, and by how much recomputing a layer later exceeds that.

    The last stage recomputes when its logits are gone: only what a layer takes more than they did counts.
    """
    sizes, layout = passage.sizes, passage.layout
    per_stage = sizes.num_layers // layout.pipeline
    found, transient = Bytes(), 0.0
    for layer in range(stage * per_stage, (stage + 1) * per_stage):
        first = attention_bytes(passage)
        second = expert_bytes(passage) if layer in sizes.moe_layers else dense_bytes(passage)
        kept, recomputed = _kept(passage, first, second, layer in sizes.moe_layers)
        found += kept
        transient = max(transient, recomputed)
    found += selection_bytes(passage)
    if stage == 0:
        found += embedding_bytes(passage)
    if stage == layout.pipeline - 1:
        output = output_bytes(passage)
        return found + output, max(0.0, transient - output.total())
    return found, transient


def _kept(passage: Passage, first: Bytes, second: Bytes, is_routed: bool) -> tuple[Bytes, float]:
    """What stays of a layer, and what comes back for its backward pass."""
    recompute = passage.layout.parallel.recompute
    layer_input = passage.share * passage.sizes.hidden_size * passage.width
    if recompute == "full":
        return Bytes({"layer inputs": layer_input}), first.total() + second.total()
    if recompute == "moe" and is_routed:
        norm = Bytes({"norms": second["norms"], "layer inputs": layer_input})
        return first + norm, second.total() - second["norms"]
    return first + second, 0.0
