"""A small dense Qwen2-VL in Hugging Face format, built offline: no hub, no pretrained weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.demo_tokenizer import Vocabulary
from megatron_moe_grpo.models.qwen2_vl.tiny_tokenizer import tiny_tokenizer

VOCAB_MULTIPLE = 8
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """Sizes of the tiny model; the defaults suit the demo's pictures of 32 x 32 pixels."""

    patch_size: int = 8
    """Side of a patch, pixels; 2 x 2 patches make one vision token."""
    min_pixels: int = 16 * 16
    """Smaller pictures are scaled up to this area."""
    max_pixels: int = 64 * 64
    """Larger pictures are scaled down to this area."""
    vision_hidden_size: int = 64
    vision_layers: int = 2
    vision_heads: int = 4
    hidden_size: int = 96
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    ffn_size: int = 288
    max_positions: int = 512
    initializer_std: float = 0.1
    """Standard deviation of new weights."""
    embedding_std: float = 0.3
    """Standard deviation of new token embeddings."""

    @property
    def mrope_section(self) -> tuple[int, int, int]:
        """Rotary pairs of time, height and width, divided about as in Qwen2-VL (16, 24, 24)."""
        num_pairs = self.hidden_size // self.heads // 2
        height = num_pairs * 3 // 8
        return num_pairs - 2 * height, height, height


def build_tiny_qwen2_vl(
    folder: Path, sizes: TinySizes, seed: int, ties_embeddings: bool = False, vocabulary: Vocabulary = "digits"
) -> Qwen2VLForConditionalGeneration:
    """Writes config, seeded fp32 weights, tokenizer with chat template, and processor files to `folder`.

    Raises:
        ConfigError: the folder exists already, or a size does not divide.
    """
    if folder.exists():
        raise ConfigError("The output folder exists already.", got=folder, remedy="remove it or name another one")
    if sizes.hidden_size % (2 * sizes.heads) or sizes.vision_hidden_size % (4 * sizes.vision_heads):
        raise ConfigError(
            "Heads must hold rotary pairs.",
            got=f"hidden_size {sizes.hidden_size} / {sizes.heads} heads, "
            f"vision_hidden_size {sizes.vision_hidden_size} / {sizes.vision_heads} heads",
            expected="an even head size, and one that 4 divides in the vision tower",
        )
    tokenizer = tiny_tokenizer(model_max_length=sizes.max_positions, vocabulary=vocabulary)
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(_model_config(sizes, tokenizer, ties_embeddings))
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=sizes.embedding_std)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _save_processor_files(folder, sizes)
    return model


def _model_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast, ties_embeddings: bool) -> Qwen2VLConfig:
    token_ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    return Qwen2VLConfig(
        vision_config=_vision_config(sizes),
        text_config=_text_config(sizes, tokenizer),
        tie_word_embeddings=ties_embeddings,
        dtype="float32",
        **token_ids,
    )


def _vision_config(sizes: TinySizes) -> dict[str, object]:
    return {
        "depth": sizes.vision_layers,
        "embed_dim": sizes.vision_hidden_size,
        "hidden_size": sizes.hidden_size,
        "num_heads": sizes.vision_heads,
        "mlp_ratio": 4,
        "in_channels": 3,
        "patch_size": sizes.patch_size,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "initializer_range": sizes.initializer_std,
    }


def _text_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "vocab_size": -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "intermediate_size": sizes.ffn_size,
        "max_position_embeddings": sizes.max_positions,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": list(sizes.mrope_section),
        },
        "rms_norm_eps": 1e-6,
        "initializer_range": sizes.initializer_std,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _save_processor_files(folder: Path, sizes: TinySizes) -> None:
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": sizes.min_pixels, "longest_edge": sizes.max_pixels},
        patch_size=sizes.patch_size,
        temporal_patch_size=TEMPORAL_PATCH_SIZE,
        merge_size=MERGE_SIZE,
        # Near the digits' own mean (0.305) and standard deviation (0.376), as in the tiny InternVL.
        image_mean=[0.2, 0.2, 0.2],
        image_std=[0.35, 0.35, 0.35],
    )
    image_processor.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2VLProcessor"}, indent=2) + "\n")
