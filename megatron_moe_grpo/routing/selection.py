"""Choosing K of N experts: by rank, by sampling, and the noise that sampling needs.  MoE-GRPO 3.1-3.3, Eq. 1-2.

The noise is counter-based: a draw is a pure function of (seed, MoE layer, rollout, position, expert).  It keeps
no state, so the same rollout draws the same experts on any rank, in any batch, in any order, with any padding.
"""

import math

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014): the increment is 2^64 / golden ratio, the two multipliers are Stafford's
# "variant 13".  Written as signed 64-bit numbers because torch has no arithmetic on uint64; int64 products wrap.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64


def counter_uniform(seed: int, stream_B: Tensor, layer_L: Tensor, position_BS: Tensor, num_draws: int) -> Tensor:
    """Uniform numbers that depend only on their five coordinates.

    The coordinates are absorbed one after another, each through a full SplitMix64 mix:
    h = mix(h + golden * coordinate), in the order seed, layer, rollout, position, expert.  Every absorption is a
    bijection of its coordinate, and the mix between two of them leaves no sum or product by which two coordinates
    could cancel or change places.  All layers come from one call, because a decode step is many tiny kernels.

    Args:
        seed: the run's seed; must fit a signed 64-bit integer.
        stream_B: int64, identity of the rollout, unique over the whole run (not the row of the batch).
        layer_L: int64, identities of the MoE layers; negative numbers are free for draws outside the layers.
        position_BS: int64, position of the token counted without padding.
        num_draws: N, draws for each (layer, rollout, position).
    Returns:
        uniform_LBSN: float64, strictly between 0 and 1, bitwise the same on CPU and CUDA.
    """
    state_L = _mix(torch.full(layer_L.shape, seed, dtype=torch.int64, device=layer_L.device) + _GOLDEN)
    state_L = _absorb(state_L, layer_L)
    state_LB = _absorb(state_L[:, None], stream_B)
    state_LBS = _absorb(state_LB[:, :, None], position_BS)
    expert_N = torch.arange(num_draws, dtype=torch.int64, device=layer_L.device)
    bits_LBSN = _shift_right(_absorb(state_LBS[..., None], expert_N), 12)
    # 52 bits plus a half fit a double exactly; with 53 the largest value would round to 1.0.
    return bits_LBSN.to(torch.float64).add_(0.5).mul_(2.0**-52)


def gumbel_noise(seed: int, stream_B: Tensor, layer_L: Tensor, position_BS: Tensor, num_draws: int) -> Tensor:
    """Standard Gumbel noise from `counter_uniform` (same arguments): gumbel_LBSN, float32, within [-3.7, 36.8].

    The uniforms are bitwise equal on every device; the two logarithms may differ in the last bit of the float32.
    """
    uniform_LBSN = counter_uniform(seed, stream_B, layer_L, position_BS, num_draws)
    return uniform_LBSN.log_().neg_().log_().neg_().to(torch.float32)


def gaussian_noise(seed: int, stream_B: Tensor, layer_L: Tensor, position_BS: Tensor, num_draws: int) -> Tensor:
    """Standard normal noise from `counter_uniform` (same arguments): gaussian_LBSN, float32."""
    uniform_LBSN = counter_uniform(seed, stream_B, layer_L, position_BS, num_draws)
    return uniform_LBSN.mul_(2.0).sub_(1.0).erfinv_().mul_(math.sqrt(2.0)).to(torch.float32)


def top_k(logits_MN: Tensor, k: int) -> Tensor:
    """The K experts with the largest logits, best first: experts_MK, int64.  MoE-GRPO Eq. 2.

    Experts closed by a mask have logit -inf and are never chosen while at least K others are finite
    (`guidance_mask` keeps that promise).  No gradient.
    """
    return logits_MN.detach().topk(k, dim=-1).indices


def gumbel_top_k(logits_MN: Tensor, gumbel_MN: Tensor, k: int) -> Tensor:
    """K experts sampled without replacement in proportion to softmax(logits).  MoE-GRPO 3.2-3.3.

    Top-K of logits + standard Gumbel noise follows the Plackett-Luce law exactly, and the order of the result is
    the order of sampling, which `selection_logprob(kind="plackett_luce")` scores.

    Args:
        logits_MN: fp32, already divided by the temperature; -inf where an expert is closed.
        gumbel_MN: fp32, from `gumbel_noise`.
        k: K.
    Returns:
        experts_MK: int64, first drawn first.  No gradient.
    """
    return top_k(logits_MN.detach() + gumbel_MN, k)


def noisy_top_k(logits_MN: Tensor, gaussian_MN: Tensor, std: float, k: int) -> Tensor:
    """Top-K of logits + std * Gaussian noise, best first: experts_MK, int64.  MoE-GRPO Table 5, `noise`."""
    return top_k(logits_MN.detach() + std * gaussian_MN, k)


def combination_weights(logits_MN: Tensor, experts_MK: Tensor, *, renormalise: bool) -> Tensor:
    """Weights of the chosen experts' outputs.  MoE-GRPO Eq. 1-2.

    `renormalise=False` (the paper): softmax over all N, the K chosen entries as they are.
    `renormalise=True` (Mixtral, Qwen3 `norm_topk_prob`): divided by their sum.

    Args:
        logits_MN: any float type, softmax in fp32 at least; carries gradient.
        experts_MK: int64, any order; no gradient.
    Returns:
        weights_MK: fp32 (fp64 for fp64 logits), column j belongs to experts_MK[:, j]; carries gradient.
    """
    logits_MN = logits_MN.to(torch.promote_types(logits_MN.dtype, torch.float32))
    if renormalise:
        # Softmax over N divided by its sum over K, without the 0/0 of sampled experts of vanishing probability.
        return torch.softmax(logits_MN.gather(-1, experts_MK), dim=-1)
    return torch.softmax(logits_MN, dim=-1).gather(-1, experts_MK)


def count_selections(experts_MK: Tensor, num_experts: int, is_counted_M: Tensor) -> Tensor:
    """How often each expert is chosen by the counted tokens: count_N, float64.

    Whole numbers in float64 add exactly, so sums over micro-batches and ranks do not depend on their order.
    """
    counted_MK = is_counted_M[:, None].expand_as(experts_MK).to(torch.float64)
    count_N = torch.zeros(num_experts, dtype=torch.float64, device=experts_MK.device)
    return count_N.scatter_add_(0, experts_MK.reshape(-1).long(), counted_MK.reshape(-1))


def _absorb(state: Tensor, coordinate: Tensor) -> Tensor:
    """Fold one more coordinate into the state; shapes broadcast."""
    return _mix(torch.add(state, coordinate, alpha=_GOLDEN))


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's output function: a bijection of int64 in which every input bit moves every output bit."""
    value = (value ^ _shift_right(value, 30)) * _MULTIPLIER_1
    value = (value ^ _shift_right(value, 27)) * _MULTIPLIER_2
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, num_bits: int) -> Tensor:
    """Logical shift: torch's own `>>` copies the sign bit in from the left."""
    return (value >> num_bits) & (2 ** (64 - num_bits) - 1)
