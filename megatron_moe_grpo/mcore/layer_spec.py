"""Which module stands in each slot of a Megatron layer: our router everywhere, and kernels for the device.

Without CUDA: torch's own RMSNorm, scaled-dot-product attention and a plain loop over experts inside Megatron's modules.
With CUDA: Transformer Engine through Megatron's own spec provider.
"""

import math

import torch
import torch.nn.functional as F
from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import BackendSpecProvider, LocalSpecProvider
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec_for_backend
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from megatron_moe_grpo.mcore.moe_layers import moe_layers
from megatron_moe_grpo.mcore.stochastic_router import StochasticRouter


class CpuRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm; its weight is marked so that Megatron sums its gradient over sequence-parallel ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel


class CpuAttention(MegatronModule):
    """Scaled-dot-product attention in Megatron's core_attention slot; tensors are [s, b, heads, head_dim]."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ):
        super().__init__(config=config)
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: object | None = None,
    ) -> torch.Tensor:
        """`attention_mask` is Megatron's: True where attention is forbidden, [b, 1, q, k]; None means causal."""
        num_queries, batch = query.shape[:2]
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None and num_queries > 1,
            scale=self.softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return attended.permute(2, 0, 1, 3).reshape(num_queries, batch, -1)


class CpuExperts(SequentialMLP):
    """SequentialMLP's parameters with the plainest forward: no linear wrappers, no empty experts in rollouts."""

    def forward(
        self, hidden_MD: torch.Tensor, tokens_per_expert: torch.Tensor, probs_M: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """Tokens arrive sorted by expert; `probs_M` are the combination weights, applied before the down-projection."""
        if self.tp_group.size() > 1:
            return super().forward(hidden_MD, tokens_per_expert, probs_M)
        counts = tokens_per_expert.tolist()
        outputs = []
        for expert, tokens, probs in zip(
            self.local_experts, torch.split(hidden_MD, counts), torch.split(probs_M, counts), strict=True
        ):
            # With gradients even an empty expert takes part: Megatron's gradient hooks wait for every parameter.
            if len(tokens) == 0 and not torch.is_grad_enabled():
                continue
            gate, up = F.linear(tokens, expert.linear_fc1.weight).chunk(2, dim=-1)
            hidden = (F.silu(gate) * up * probs.unsqueeze(-1)).to(tokens.dtype)
            outputs.append(F.linear(hidden, expert.linear_fc2.weight))
        return (torch.cat(outputs) if outputs else hidden_MD * 0), None


class CpuSpecProvider(LocalSpecProvider):
    """Megatron's local modules with the three above."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False) -> type:
        return CpuRMSNorm

    def core_attention(self) -> type:
        return CpuAttention

    def grouped_mlp_modules(
        self, moe_use_grouped_gemm: bool, moe_use_legacy_grouped_gemm: bool
    ) -> tuple[type, MLPSubmodules]:
        return CpuExperts, MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)


def decoder_block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The decoder of this pipeline stage: layers with experts where `moe_layers` says so, dense ones elsewhere."""
    backend: BackendSpecProvider = TESpecProvider() if torch.cuda.is_available() else CpuSpecProvider()
    norm = backend.layer_norm(rms_norm=True)
    qk_norm = backend.layer_norm(rms_norm=True, for_qk=True) if config.qk_layernorm else IdentityOp
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=backend.column_parallel_linear(),
            core_attention=backend.core_attention(),
            linear_proj=backend.row_parallel_linear(),
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )

    def layer(mlp: ModuleSpec) -> ModuleSpec:
        submodules = TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        )
        return ModuleSpec(module=TransformerLayer, submodules=submodules)

    offset, routed = get_transformer_layer_offset(config), moe_layers(config)
    specs = [
        layer(_expert_spec(config, backend) if offset + index in routed else _dense_spec(backend))
        for index in range(get_num_layers_to_build(config))
    ]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=norm)


def _dense_spec(backend: BackendSpecProvider) -> ModuleSpec:
    linears = MLPSubmodules(linear_fc1=backend.column_parallel_linear(), linear_fc2=backend.row_parallel_linear())
    return ModuleSpec(module=MLP, submodules=linears)


def _expert_spec(config: TransformerConfig, backend: BackendSpecProvider) -> ModuleSpec:
    spec = get_moe_module_spec_for_backend(
        backend, num_experts=config.num_moe_experts, moe_grouped_gemm=config.moe_grouped_gemm
    )
    spec.submodules.router = StochasticRouter
    return spec
