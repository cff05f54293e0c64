"""The original InternVLChatModel in a few lines, and folders of its layout: the oracle that is not our weight map.

Written after the computation of InternVL's published modelling code: fused qkv, layer scale, version 2 of the pixel
shuffle, `mlp1`; the language model is transformers' own.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from megatron_moe_grpo.models.internvl.tiny_tokenizer import tiny_tokenizer

TEXT_ONLY_TEMPLATE = "{% for message in messages %}{{ 'You are Qwen. ' + message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class OriginalSizes:
    """A tiny model of the original layout."""

    text_model: str = "qwen3"
    has_qk_norm: bool = False
    has_qkv_bias: bool = True
    norm_type: str = "layer_norm"
    vision: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
            "image_size": 16, "patch_size": 4,
        }
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self, vision: dict[str, Any]):
        super().__init__()
        width = vision["hidden_size"]
        self.num_heads = vision["num_attention_heads"]
        self.qkv = nn.Linear(width, 3 * width, bias=vision["qkv_bias"])
        self.proj = nn.Linear(width, width)
        self.has_qk_norm = vision["qk_normalization"]
        if self.has_qk_norm:
            self.q_norm, self.k_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        query, key, value = self.qkv(hidden).view(batch, length, 3, width).unbind(2)
        if self.has_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        heads = [part.view(batch, length, self.num_heads, -1).transpose(1, 2) for part in (query, key, value)]
        weights = (heads[0] @ heads[1].transpose(2, 3) * (width // self.num_heads) ** -0.5).softmax(-1)
        return self.proj((weights @ heads[2]).transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    def __init__(self, vision: dict[str, Any]):
        super().__init__()
        width, norm = vision["hidden_size"], {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}[vision["norm_type"]]
        self.attn, self.norm1, self.norm2 = Attention(vision), norm(width, eps=1e-6), norm(width, eps=1e-6)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = (
            nn.Linear(width, vision["intermediate_size"]), nn.Linear(vision["intermediate_size"], width),
        )  # fmt: skip
        self.ls1, self.ls2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden)) * self.ls1
        inner = nn.functional.gelu(self.mlp.fc1(self.norm2(hidden)))
        return hidden + self.mlp.fc2(inner) * self.ls2


class OriginalInternVL(nn.Module):
    """Logits of a batch without padding; `<IMG_CONTEXT>` tokens take the pictures' features in order."""

    def __init__(self, config: dict[str, Any], text_config: Qwen2Config | Qwen3Config, context_id: int):
        super().__init__()
        vision, width = config["vision_config"], config["vision_config"]["hidden_size"]
        patch, text_width = vision["patch_size"], text_config.hidden_size
        self.vision_model = nn.Module()
        self.vision_model.embeddings = nn.Module()
        self.vision_model.embeddings.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.vision_model.embeddings.patch_embedding = nn.Conv2d(3, width, patch, stride=patch)
        num_patches = (vision["image_size"] // patch) ** 2
        self.vision_model.embeddings.position_embedding = nn.Parameter(torch.zeros(1, num_patches + 1, width))
        self.vision_model.encoder = nn.Module()
        self.vision_model.encoder.layers = nn.ModuleList(Layer(vision) for _ in range(vision["num_hidden_layers"]))
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(4 * width), nn.Linear(4 * width, text_width), nn.GELU(), nn.Linear(text_width, text_width)
        )
        self.language_model = AutoModelForCausalLM.from_config(text_config)
        self.context_id = context_id

    def features(self, pixel_values: Tensor) -> Tensor:
        embeddings = self.vision_model.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = torch.cat((embeddings.class_embedding.expand(len(patches), -1, -1), patches), dim=1)
        hidden = hidden + embeddings.position_embedding
        for layer in self.vision_model.encoder.layers:
            hidden = layer(hidden)
        return self.mlp1(shuffled(hidden[:, 1:]))

    def forward(self, token_ids_BS: Tensor, pixel_values: Tensor | None) -> Tensor:
        hidden_BSD = self.language_model.get_input_embeddings()(token_ids_BS).clone()
        if pixel_values is not None:
            hidden_BSD[token_ids_BS == self.context_id] = self.features(pixel_values).flatten(0, 1)
        return self.language_model(inputs_embeds=hidden_BSD).logits


def shuffled(patches: Tensor) -> Tensor:
    """Pixel shuffle by 2, said differently than any of the two implementations: channels run (row, column, channel)."""
    batch, num_patches, width = patches.shape
    side = round(num_patches**0.5)
    blocks = patches.view(batch, side // 2, 2, side // 2, 2, width).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, num_patches // 4, 4 * width)


def original_config(sizes: OriginalSizes, text: dict[str, Any]) -> dict[str, Any]:
    """A config.json with every key a released one has that matters, and some that do not."""
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": sizes.vision["image_size"],
        "llm_config": text | {"_name_or_path": "./pretrained/Qwen3-0.6B", "use_bfloat16": True},
        "max_dynamic_patch": 6, "min_dynamic_patch": 1, "model_type": "internvl_chat", "pad2square": False,
        "ps_version": "v2", "select_layer": -1, "system_message": None, "template": "internvl2_5",
        "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": None,
        "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": True,
        "vision_config": sizes.vision | {
            "architectures": ["InternVisionModel"], "attention_dropout": 0.0, "drop_path_rate": 0.1, "dropout": 0.0,
            "hidden_act": "gelu", "initializer_factor": 0.1, "initializer_range": 0.02, "layer_norm_eps": 1e-6,
            "model_type": "intern_vit_6b", "norm_type": sizes.norm_type, "num_channels": 3,
            "qk_normalization": sizes.has_qk_norm, "qkv_bias": sizes.has_qkv_bias, "use_flash_attn": True,
        },
    }  # fmt: skip


def text_config(text_model: str, tokenizer: PreTrainedTokenizerFast) -> Qwen2Config | Qwen3Config | Qwen3MoeConfig:
    """A tiny language model; Qwen2 with InternVL3's dynamic rotary scaling."""
    shared = {
        "vocab_size": -(-len(tokenizer) // 8) * 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 256, "initializer_range": 0.2,
        "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None, "tie_word_embeddings": False,
    }  # fmt: skip
    if text_model == "qwen2":
        return Qwen2Config(**shared, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6})
    if text_model == "qwen3":
        return Qwen3Config(**shared, head_dim=12)
    return Qwen3MoeConfig(
        **shared, head_dim=8, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20, norm_topk_prob=True
    )


def write_original_internvl(folder: Path, sizes: OriginalSizes | None = None, seed: int = 0) -> OriginalInternVL:
    """Writes config, random fp32 weights by their original names, and a tokenizer as InternVL leaves it."""
    sizes = sizes or OriginalSizes()
    tokenizer = tiny_tokenizer()
    text = text_config(sizes.text_model, tokenizer)
    folder.mkdir(parents=True)
    text.save_pretrained(folder)
    config = original_config(sizes, json.loads((folder / "config.json").read_text()))
    torch.manual_seed(seed)
    model = OriginalInternVL(config, text, tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")).eval()
    for name, parameter in model.named_parameters():
        if not name.startswith("language_model"):
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
        elif parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    # save_pretrained, because transformers writes experts under other names than it holds them.
    model.language_model.save_pretrained(folder)
    weights = {f"language_model.{key}": tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    weights |= {key: value for key, value in model.state_dict().items() if not key.startswith("language_model")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.chat_template = TEXT_ONLY_TEMPLATE
    tokenizer.save_pretrained(folder)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("extra_special_tokens", "model_specific_special_tokens", *model_token_names(tokenizer_config)):
        tokenizer_config.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2))
    clip = {"crop_size": 448, "do_center_crop": True, "size": 448, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(clip))
    return model


def model_token_names(tokenizer_config: dict[str, Any]) -> list[str]:
    """What the native layout adds: names under which the stock processor asks for its tokens."""
    return [key for key in tokenizer_config if key.endswith(("image_token", "video_token"))]
