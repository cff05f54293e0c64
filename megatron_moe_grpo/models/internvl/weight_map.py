"""Which Hugging Face weight of an InternVL checkpoint becomes which Megatron-Core weight.

Hugging Face side: the layout that transformers' `InternVLForConditionalGeneration` writes to disk
(`language_model.model.*`, `language_model.lm_head.weight`, `vision_tower.*`, `multi_modal_projector.*`).
Megatron side: transformers' vision tower and projector under `vision_tower.*` and `projector.*`, and a `GPTModel`
built from the local layer spec, with `SequentialMLP` experts, under `language_model.*`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from megatron_moe_grpo.conversion import Concat, FuseQKV, Op, Rename, Rule
from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.errors import ConfigError, ConversionError
from megatron_moe_grpo.models.internvl.config import InternVLArchitecture, TextSizes, VisionSizes

Shapes = dict[str, Shape]
NO_REPEAT: Mapping[str, int] = MappingProxyType({})


def weight_map(hf_config: Mapping[str, Any]) -> list[Rule]:
    """The rules of one checkpoint, every weight named with its shape.

    Raises:
        ConversionError: `hf_config` describes a model that this map does not cover.
    """
    try:
        architecture = InternVLArchitecture.from_huggingface(hf_config)
    except ConfigError as error:
        raise ConversionError(error.what, got=error.got, expected=error.expected, remedy=error.remedy) from error
    text = architecture.text
    return [
        *_vision_rules(architecture.vision),
        *_projector_rules(architecture),
        *_embedding_rules(text),
        *_attention_rules(text),
        *(_dense_rules(text) if text.num_experts is None else _expert_rules(text)),
    ]


def _renames(shapes: Shapes, hf_prefix: str, prefix: str, repeat: Mapping[str, int]) -> list[Rule]:
    return [Rule(Rename(), {hf_prefix + key: shape}, prefix + key, repeat) for key, shape in shapes.items()]


def _linear(name: str, num_out: int, num_in: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (num_out, num_in)} | ({f"{name}.bias": (num_out,)} if bias else {})


def _norm(name: str, size: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (size,)} | ({f"{name}.bias": (size,)} if bias else {})


def _vision_rules(vision: VisionSizes) -> Sequence[Rule]:
    width, patch = vision.hidden_size, vision.patch_size
    stem: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, vision.num_patches + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    if not vision.mean_pooling:
        stem |= _norm("layernorm", width)
    layer: Shapes = {"lambda_1": (width,), "lambda_2": (width,)}
    for name in ("layernorm_before", "layernorm_after"):
        layer |= _norm(name, width, bias=vision.norm_type == "layer_norm")
    for name in ("q_proj", "k_proj", "v_proj"):
        layer |= _linear(f"attention.{name}", width, width, bias=vision.attention_bias)
    if vision.qk_norm:
        layer |= _norm("attention.q_norm", width, bias=False) | _norm("attention.k_norm", width, bias=False)
    layer |= _linear("attention.projection_layer", width, width)
    layer |= _linear("mlp.fc1", vision.ffn_size, width) | _linear("mlp.fc2", width, vision.ffn_size)
    at_layer = {f"encoder.layer.{{layer}}.{key}": shape for key, shape in layer.items()}
    return [
        *_renames(stem, "vision_tower.", "vision_tower.", {}),
        *_renames(at_layer, "vision_tower.", "vision_tower.", {"layer": vision.num_layers}),
    ]


def _projector_rules(architecture: InternVLArchitecture) -> Sequence[Rule]:
    width, text_width = architecture.projector_input_size, architecture.text.hidden_size
    shapes = _norm("layer_norm", width) | _linear("linear_1", text_width, width)
    return _renames(shapes | _linear("linear_2", text_width, text_width), "multi_modal_projector.", "projector.", {})


def _embedding_rules(text: TextSizes) -> Sequence[Rule]:
    table = (text.vocab_size, text.hidden_size)
    names: dict[str, tuple[str, Shape]] = {
        "model.embed_tokens.weight": ("embedding.word_embeddings.weight", table),
        "model.norm.weight": ("decoder.final_layernorm.weight", (text.hidden_size,)),
    }
    if not text.tied:
        names["lm_head.weight"] = ("output_layer.weight", table)
    return [
        Rule(Rename(), {f"language_model.{key}": shape}, f"language_model.{target}")
        for key, (target, shape) in names.items()
    ]


def _layer_rule(text: TextSizes, op: Op, sources: Shapes, target: str, repeat: Mapping[str, int] = NO_REPEAT) -> Rule:
    hf_prefix = "language_model.model.layers.{layer}."
    return Rule(
        op,
        {hf_prefix + key: shape for key, shape in sources.items()},
        "language_model.decoder.layers.{layer}." + target,
        {"layer": text.num_layers, **repeat},
    )


def _attention_rules(text: TextSizes) -> Sequence[Rule]:
    width = text.hidden_size
    query_rows, kv_rows = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    qkv: Shapes = {
        "self_attn.q_proj.weight": (query_rows, width),
        "self_attn.k_proj.weight": (kv_rows, width),
        "self_attn.v_proj.weight": (kv_rows, width),
    }
    renames: dict[str, tuple[str, Shape]] = {
        "input_layernorm.weight": ("input_layernorm.weight", (width,)),
        "self_attn.q_norm.weight": ("self_attention.q_layernorm.weight", (text.head_dim,)),
        "self_attn.k_norm.weight": ("self_attention.k_layernorm.weight", (text.head_dim,)),
        "self_attn.o_proj.weight": ("self_attention.linear_proj.weight", (width, query_rows)),
        "post_attention_layernorm.weight": ("pre_mlp_layernorm.weight", (width,)),
    }
    return [
        _layer_rule(text, FuseQKV(text.num_kv_heads), qkv, "self_attention.linear_qkv.weight"),
        *(_layer_rule(text, Rename(), {key: shape}, target) for key, (target, shape) in renames.items()),
    ]


def _dense_rules(text: TextSizes) -> Sequence[Rule]:
    inner = (text.ffn_size, text.hidden_size)
    gate_up: Shapes = {"mlp.gate_proj.weight": inner, "mlp.up_proj.weight": inner}
    return [
        _layer_rule(text, Concat(), gate_up, "mlp.linear_fc1.weight"),
        _layer_rule(text, Rename(), {"mlp.down_proj.weight": inner[::-1]}, "mlp.linear_fc2.weight"),
    ]


def _expert_rules(text: TextSizes) -> Sequence[Rule]:
    inner = (text.moe_ffn_size, text.hidden_size)
    hf_expert, expert = "mlp.experts.{expert}", "mlp.experts.local_experts.{expert}"
    gate_up: Shapes = {f"{hf_expert}.gate_proj.weight": inner, f"{hf_expert}.up_proj.weight": inner}
    down: Shapes = {f"{hf_expert}.down_proj.weight": inner[::-1]}
    router: Shapes = {"mlp.gate.weight": (text.num_experts, text.hidden_size)}
    experts = {"expert": text.num_experts}
    return [
        _layer_rule(text, Rename(), router, "mlp.router.weight"),
        _layer_rule(text, Concat(), gate_up, f"{expert}.linear_fc1.weight", experts),
        _layer_rule(text, Rename(), down, f"{expert}.linear_fc2.weight", experts),
    ]
