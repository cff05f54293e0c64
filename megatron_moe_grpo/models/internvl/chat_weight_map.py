"""The rules of the original `InternVLChatModel` layout, from those of the native one: other names, fused vision qkv."""

import re
from collections.abc import Iterable

from megatron_moe_grpo.conversion import Concat, Rename, Rule, SplitRule

# Native -> original, applied in this order to every key; the language model's keys are the same in both.
ORIGINAL_NAMES = (
    ("vision_tower.", "vision_model."),
    (".cls_token", ".class_embedding"),
    (".position_embeddings", ".position_embedding"),
    (".patch_embeddings.projection", ".patch_embedding"),
    (".encoder.layer.", ".encoder.layers."),
    (".lambda_1", ".ls1"),
    (".lambda_2", ".ls2"),
    (".layernorm_before", ".norm1"),
    (".layernorm_after", ".norm2"),
    (".attention.projection_layer", ".attn.proj"),
    (".attention.", ".attn."),
    ("multi_modal_projector.layer_norm", "mlp1.0"),
    ("multi_modal_projector.linear_1", "mlp1.1"),
    ("multi_modal_projector.linear_2", "mlp1.3"),
)
QKV_KEY = re.compile(r"(?P<attention>.+\.attn)\.[qkv]_proj\.(?P<kind>weight|bias)")


def original_rules(native_rules: Iterable[Rule]) -> list[Rule]:
    """Rules of vision tower and projector, to the same Megatron names.

    Args:
        native_rules: one Hugging Face tensor renamed in each; q, k and v in this order.
    """
    rules: list[Rule] = []
    fused: dict[str, SplitRule] = {}
    for rule in native_rules:
        ((native_key, shape),) = rule.sources.items()
        key = _original_key(native_key)
        match = QKV_KEY.fullmatch(key)
        if match is None:
            rules.append(Rule(Rename(), {key: shape}, rule.target, rule.repeat))
        else:
            key = f"{match['attention']}.qkv.{match['kind']}"
            parts = fused[key].sources if key in fused else {}
            fused[key] = SplitRule(Concat(), {**parts, rule.target: shape}, key, rule.repeat)
    return [*rules, *fused.values()]


def _original_key(native_key: str) -> str:
    for native, original in ORIGINAL_NAMES:
        native_key = native_key.replace(native, original)
    return native_key
