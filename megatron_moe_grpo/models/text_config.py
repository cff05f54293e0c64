"""The language half of a Hugging Face `config.json`, read strictly into DecoderSizes; needs no torch."""

from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.config_values import (
    MAX_SIZE,
    is_whole,
    optional_section,
    require_one_of,
    require_size,
    require_value,
)

MOE_TEXT_MODELS = ("qwen2_moe", "qwen3_moe", "qwen2_vl_moe_text")
QKV_BIAS_TEXT_MODELS = ("qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_vl_moe_text")
QK_NORM_TEXT_MODELS = ("qwen3", "qwen3_moe")
# Beside their routed experts they have a shared one, which must have no width.
SHARED_EXPERT_TEXT_MODELS = ("qwen2_moe",)
TEXT_MODELS = ("llama", "qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_vl_moe_text", "qwen3", "qwen3_moe")


def read_decoder_sizes(text: Mapping[str, Any], ties_embeddings: bool) -> DecoderSizes:
    """Sizes of a text config of one of TEXT_MODELS.

    Args:
        text: the config of the language model, with its `model_type`.
        ties_embeddings: decided by the caller, because a vision-language config may overrule its text config.
    Raises:
        ConfigError: a key is missing, a value has the wrong type, or the model uses an unsupported feature.
    """
    require_one_of(text, "model_type", TEXT_MODELS)
    require_one_of(text, "hidden_act", ("silu",))
    # Qwen2's biases are part of its architecture and stand in no config; everywhere else this key would add some.
    require_one_of(text, "attention_bias", (False,), default=False)
    require_one_of(text, "mlp_bias", (False,), default=False)
    require_one_of(text, "use_sliding_window", (False,), default=False)
    _refuse_shared_expert(text)
    model_type, rope = text["model_type"], _rope(text)
    num_heads = require_size(text, "num_attention_heads")
    sizes = DecoderSizes(
        hidden_size=require_size(text, "hidden_size"),
        num_layers=require_size(text, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=require_size(text, "num_key_value_heads"),
        head_dim=_head_dim(text, num_heads),
        ffn_size=require_size(text, "intermediate_size"),
        vocab_size=require_size(text, "vocab_size"),
        max_positions=require_size(text, "max_position_embeddings"),
        rope_theta=require_value(rope, "rope_theta", float),
        mrope_section=_mrope_section(rope),
        norm_epsilon=require_value(text, "rms_norm_eps", float),
        has_qk_norm=model_type in QK_NORM_TEXT_MODELS,
        has_qkv_bias=model_type in QKV_BIAS_TEXT_MODELS,
        ties_embeddings=ties_embeddings,
        **_expert_sizes(text),
    )
    if sizes.num_heads % sizes.num_kv_heads:
        raise ConfigError(
            "Query heads must divide into the key-value groups.",
            got=f"{sizes.num_heads} query heads, {sizes.num_kv_heads} key-value heads",
        )
    return sizes


def has_empty_shared_expert(text: Mapping[str, Any]) -> bool:
    """True where each routed layer has the weights of a shared expert of no width, and its gate, on disk.

    Args:
        text: a text config that `read_decoder_sizes` takes.
    """
    return text["model_type"] in SHARED_EXPERT_TEXT_MODELS


def _refuse_shared_expert(text: Mapping[str, Any]) -> None:
    """A Qwen2-MoE is what we read only without its shared expert; absent, the width means transformers' 5632."""
    if not has_empty_shared_expert(text):
        return
    if not is_whole(text.get("shared_expert_intermediate_size"), 0, 0):
        raise ConfigError(
            "The model has a shared expert, which every token uses unrouted; only routed experts are supported.",
            got=f"shared_expert_intermediate_size: {text.get('shared_expert_intermediate_size')!r}",
            expected="shared_expert_intermediate_size: 0",
        )
    require_one_of(text, "qkv_bias", (True,), default=True)


def _head_dim(text: Mapping[str, Any], num_heads: int) -> int:
    """Qwen3 always states it; Qwen2 and Llama mean hidden_size / num_heads where they do not."""
    if text.get("head_dim") is not None or text["model_type"] in QK_NORM_TEXT_MODELS:
        return require_size(text, "head_dim")
    head_dim, remainder = divmod(require_size(text, "hidden_size"), num_heads)
    if remainder:
        raise ConfigError(
            "The hidden size does not divide into the heads.", got=f"{text['hidden_size']} over {num_heads} heads"
        )
    return head_dim


def _expert_sizes(text: Mapping[str, Any]) -> dict[str, Any]:
    if text["model_type"] not in MOE_TEXT_MODELS:
        return {}
    # transformers 5 writes num_local_experts where version 4 wrote num_experts.
    experts_key = "num_local_experts" if "num_local_experts" in text else "num_experts"
    num_experts = require_size(text, experts_key)
    num_active = require_size(text, "num_experts_per_tok")
    if num_active > num_experts:
        raise ConfigError(
            "More active experts than experts.", got=f"K = {num_active}, N = {num_experts}", expected="K <= N"
        )
    return {
        "num_experts": num_experts,
        "num_active": num_active,
        "expert_ffn_size": require_size(text, "moe_intermediate_size"),
        "renormalises_weights": require_value(text, "norm_topk_prob", bool),
        "dense_layers": _dense_layers(text),
    }


def _dense_layers(text: Mapping[str, Any]) -> tuple[int, ...]:
    """`mlp_only_layers`, and all layers but every `decoder_sparse_step`-th, as transformers reads the two."""
    num_layers = require_size(text, "num_hidden_layers")
    step = require_size({"decoder_sparse_step": 1, **text}, "decoder_sparse_step")
    listed = [] if text.get("mlp_only_layers") is None else text["mlp_only_layers"]
    if not isinstance(listed, list | tuple) or not all(is_whole(layer, 0, num_layers - 1) for layer in listed):
        raise ConfigError(
            "The layers without experts cannot be read.",
            got=f"mlp_only_layers: {listed!r}",
            expected=f"a list of layers from 0 to {num_layers - 1}",
        )
    dense = tuple(layer for layer in range(num_layers) if layer in listed or (layer + 1) % step)
    if len(dense) == num_layers:
        raise ConfigError("A model with experts has no layer that uses them.", got=f"dense layers: {list(dense)}")
    return dense


def _rope(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers 5 writes `rope_parameters`; version 4 wrote `rope_theta` beside `rope_scaling`."""
    older = {"rope_theta": text.get("rope_theta"), **optional_section(text, "rope_scaling")}
    rope = optional_section(text, "rope_parameters") or older
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    # "mrope" is how Qwen2-VL's own files say: default, with a section.  "dynamic" (InternVL3) is default up to
    # max_position_embeddings, which is as far as we go.
    if rope_type not in ("default", "mrope", "dynamic"):
        raise ConfigError(
            "Scaled rotary embeddings are not supported.", got=f"rope_type: {rope_type}", expected="rope_type: default"
        )
    return rope


def _mrope_section(rope: Mapping[str, Any]) -> tuple[int, ...] | None:
    section = rope.get("mrope_section")
    if section is None:
        return None
    if not isinstance(section, list | tuple) or not all(is_whole(size, 1, MAX_SIZE) for size in section):
        raise ConfigError(
            "The rotary section cannot be read.", got=f"mrope_section: {section}", expected="a list of counts"
        )
    return tuple(section)
