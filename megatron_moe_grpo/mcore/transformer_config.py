"""The single translation from our sizes and settings to Megatron's TransformerConfig."""

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.errors import ConfigError

PARAMETER_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_transformer_config(sizes: DecoderSizes, parallel: ParallelConfig, precision: str) -> TransformerConfig:
    """Megatron's configuration of one pipeline stage of `sizes`; raises ConfigError where the two cannot fit."""
    check_fits(sizes, parallel)
    parameter_type = PARAMETER_TYPES[precision]
    on_gpu = torch.cuda.is_available()
    return TransformerConfig(
        num_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        num_attention_heads=sizes.num_heads,
        num_query_groups=sizes.num_kv_heads,
        kv_channels=sizes.head_dim,
        ffn_hidden_size=sizes.ffn_size,
        normalization="RMSNorm",
        layernorm_epsilon=sizes.norm_epsilon,
        qk_layernorm=sizes.has_qk_norm,
        add_bias_linear=False,
        add_qkv_bias=sizes.has_qkv_bias,
        mrope_section=None if sizes.mrope_section is None else list(sizes.mrope_section),
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=parameter_type,
        pipeline_dtype=parameter_type,
        bf16=precision == "bf16",
        tensor_model_parallel_size=parallel.tensor,
        sequence_parallel=parallel.tensor > 1,
        pipeline_model_parallel_size=parallel.pipeline,
        use_cpu_initialization=not on_gpu,
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=on_gpu,
        masked_softmax_fusion=on_gpu,
        gradient_accumulation_fusion=False,
        **_expert_settings(sizes, parallel, on_gpu),
        **_recompute_settings(parallel),
    )


def building_device() -> torch.device:
    """Where a model's weights stand: nowhere inside `with torch.device("meta")`, else where this process computes."""
    if torch.get_default_device().type == "meta":
        return torch.device("meta")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_fits(sizes: DecoderSizes, parallel: ParallelConfig) -> None:
    """Raises ConfigError where the model cannot be cut as asked; needs no process group.

    A model that is only imagined (on the meta device) may be one for other machines.
    """
    expert_tensor = parallel.expert_tensor or parallel.tensor
    if building_device().type == "cpu" and sizes.num_experts and parallel.expert > 1 and expert_tensor > 1:
        raise ConfigError(
            "without CUDA, experts cannot be cut by expert and by tensor parallelism at once",
            got=f"parallel.expert={parallel.expert}, parallel.expert_tensor={parallel.expert_tensor}, "
            f"parallel.tensor={parallel.tensor} (gloo gathers only parts of one size)",
            remedy="pass --set parallel.expert_tensor=1: experts whole, everything else tensor-parallel",
        )
    _check_divides("layers", sizes.num_layers, "parallel.pipeline", parallel.pipeline)
    _check_divides("experts", sizes.num_experts or 1, "parallel.expert", parallel.expert)
    _check_divides("attention heads", sizes.num_heads, "parallel.tensor", parallel.tensor)
    _check_divides("key-value heads", sizes.num_kv_heads, "parallel.tensor", parallel.tensor)
    _check_divides("vocabulary entries", sizes.vocab_size, "parallel.tensor", parallel.tensor)
    _check_experts_on_every_stage(sizes, parallel)


def _check_divides(what: str, count: int, key: str, size: int) -> None:
    if count % size:
        fitting = [divisor for divisor in range(1, count + 1) if count % divisor == 0]
        raise ConfigError(
            f"{count} {what} cannot be divided over {key}={size}",
            got=size,
            expected=f"one of {', '.join(map(str, fitting[:12]))}",
            remedy=f"pass --set {key}=...",
        )


def _check_experts_on_every_stage(sizes: DecoderSizes, parallel: ParallelConfig) -> None:
    """Under expert parallelism the experts have an optimizer of their own, and Megatron (0.16.1,
    DistributedOptimizer.state_dict) cannot save one without parameters."""
    layers_per_stage = sizes.num_layers // parallel.pipeline
    num_stages = len({layer // layers_per_stage for layer in sizes.moe_layers})
    if parallel.expert > 1 and 0 < num_stages < parallel.pipeline:
        raise ConfigError(
            "with expert parallelism, every pipeline stage needs a layer with experts",
            got=f"parallel.expert={parallel.expert}, parallel.pipeline={parallel.pipeline}, experts on {num_stages} "
            "stage(s) only",
            remedy="pass --set parallel.expert=1, or fewer pipeline stages",
        )


def _expert_settings(sizes: DecoderSizes, parallel: ParallelConfig, on_gpu: bool) -> dict:
    if sizes.num_experts is None:
        return {}
    return {
        "num_moe_experts": sizes.num_experts,
        "moe_ffn_hidden_size": sizes.expert_ffn_size,
        "moe_layer_freq": _moe_layer_freq(sizes),
        "moe_router_topk": sizes.num_active,
        # Softmax over all N, then the K chosen (MoE-GRPO Eq. 1-2); False is Megatron's renormalised form.
        "moe_router_pre_softmax": not sizes.renormalises_weights,
        "moe_router_dtype": "fp32",
        # Load balancing is ours: Megatron's counts a fresh deterministic top-K, not the experts that were used.
        "moe_router_load_balancing_type": "none",
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": on_gpu,
        "expert_model_parallel_size": parallel.expert,
        "expert_tensor_parallel_size": parallel.expert_tensor,
    }


def _moe_layer_freq(sizes: DecoderSizes) -> int | list[int]:
    """A list only where it is needed: with one, checkpoints name weights layer by layer and not stacked (0.16.1,
    TransformerBlock.sharded_state_dict), and neither can be read as the other."""
    if not sizes.dense_layers:
        return 1
    return [int(layer in sizes.moe_layers) for layer in range(sizes.num_layers)]


def _recompute_settings(parallel: ParallelConfig) -> dict:
    if parallel.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if parallel.recompute == "moe":
        return {"recompute_granularity": "selective", "recompute_modules": ["moe"]}
    return {}
