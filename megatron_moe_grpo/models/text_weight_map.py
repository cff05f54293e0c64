"""Which weight of a Qwen2, Qwen2-MoE, Qwen3, Qwen3-MoE or Llama decoder becomes which weight of Megatron's GPTModel.

Hugging Face side: `{prefix}layers.N.*`, as all of them are written to disk.  Megatron side: a `GPTModel` built from the
local layer spec, with `SequentialMLP` experts, under `language_model.*`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.conversion import Concat, FuseQKV, Op, Rename, Rule, ZeroRule
from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.models.weight_map_parts import Shapes

MEGATRON_PREFIX = "language_model."


def text_rules(sizes: DecoderSizes, prefix: str, lm_head: str, has_empty_shared_expert: bool = False) -> list[Rule]:
    """The rules of a language model, embeddings first, then layer by layer.

    Args:
        prefix: what stands before `embed_tokens`, `layers` and `norm` on disk, e.g. `model.`.
        lm_head: key of the output layer on disk; not used where embeddings are tied.
        has_empty_shared_expert: as `text_config.has_empty_shared_expert` says.
    """
    table, norm = (sizes.vocab_size, sizes.hidden_size), (sizes.hidden_size,)
    rules = [_rename(f"{prefix}embed_tokens.weight", table, "embedding.word_embeddings.weight")]
    for layer in range(sizes.num_layers):
        for rule in _layer_rules(sizes, layer, has_empty_shared_expert):
            sources = {f"{prefix}layers.{layer}.{key}": shape for key, shape in rule.sources.items()}
            target = f"{MEGATRON_PREFIX}decoder.layers.{layer}.{rule.target}"
            rules.append(replace(rule, sources=sources, target=target))
    rules.append(_rename(f"{prefix}norm.weight", norm, "decoder.final_layernorm.weight"))
    if not sizes.ties_embeddings:
        rules.append(_rename(lm_head, table, "output_layer.weight"))
    return rules


def _rename(key: str, shape: Shape, target: str) -> Rule:
    return Rule(Rename(), {key: shape}, MEGATRON_PREFIX + target)


def _layer_rules(sizes: DecoderSizes, layer: int, has_empty_shared_expert: bool) -> Iterator[Rule]:
    """One layer, both names without the layer's prefix."""
    yield from _attention_rules(sizes)
    if layer not in sizes.moe_layers:
        yield from _dense_rules(sizes)
        return
    yield from _expert_rules(sizes)
    if has_empty_shared_expert:
        yield _empty_shared_expert_rule(sizes)


def _attention_rules(sizes: DecoderSizes) -> Iterator[Rule]:
    width, query_rows, kv_rows = (
        sizes.hidden_size,
        sizes.num_heads * sizes.head_dim,
        sizes.num_kv_heads * sizes.head_dim,
    )
    rows = {"q_proj": query_rows, "k_proj": kv_rows, "v_proj": kv_rows}
    fuse: Op = FuseQKV(sizes.num_kv_heads)
    weights: Shapes = {f"self_attn.{name}.weight": (count, width) for name, count in rows.items()}
    biases: Shapes = {f"self_attn.{name}.bias": (count,) for name, count in rows.items()}
    yield Rule(Rename(), {"input_layernorm.weight": (width,)}, "input_layernorm.weight")
    yield Rule(fuse, weights, "self_attention.linear_qkv.weight")
    if sizes.has_qkv_bias:
        yield Rule(fuse, biases, "self_attention.linear_qkv.bias")
    if sizes.has_qk_norm:
        yield Rule(Rename(), {"self_attn.q_norm.weight": (sizes.head_dim,)}, "self_attention.q_layernorm.weight")
        yield Rule(Rename(), {"self_attn.k_norm.weight": (sizes.head_dim,)}, "self_attention.k_layernorm.weight")
    yield Rule(Rename(), {"self_attn.o_proj.weight": (width, query_rows)}, "self_attention.linear_proj.weight")
    yield Rule(Rename(), {"post_attention_layernorm.weight": (width,)}, "pre_mlp_layernorm.weight")


def _dense_rules(sizes: DecoderSizes) -> Iterator[Rule]:
    yield from _feed_forward_rules("mlp", "mlp", (sizes.ffn_size, sizes.hidden_size), {})


def _expert_rules(sizes: DecoderSizes) -> Iterator[Rule]:
    experts, inner = {"expert": sizes.num_experts}, (sizes.expert_ffn_size, sizes.hidden_size)
    yield Rule(Rename(), {"mlp.gate.weight": (sizes.num_experts, sizes.hidden_size)}, "mlp.router.weight")
    yield from _feed_forward_rules("mlp.experts.{expert}", "mlp.experts.local_experts.{expert}", inner, experts)


def _empty_shared_expert_rule(sizes: DecoderSizes) -> Rule:
    """Three weights without values, and the gate of an output that is always zero."""
    width = sizes.hidden_size
    empty: Shapes = {f"mlp.shared_expert.{part}_proj.weight": (0, width) for part in ("gate", "up")}
    gate: Shapes = {"mlp.shared_expert_gate.weight": (1, width)}
    return ZeroRule(empty | {"mlp.shared_expert.down_proj.weight": (width, 0)} | gate, "mlp.shared_experts")


def _feed_forward_rules(source: str, target: str, inner: Shape, repeat: Mapping[str, int]) -> Iterator[Rule]:
    gate_up: Shapes = {f"{source}.gate_proj.weight": inner, f"{source}.up_proj.weight": inner}
    yield Rule(Concat(), gate_up, f"{target}.linear_fc1.weight", repeat)
    yield Rule(Rename(), {f"{source}.down_proj.weight": inner[::-1]}, f"{target}.linear_fc2.weight", repeat)
