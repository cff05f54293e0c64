"""A small dense InternVL in Hugging Face format, built offline: no hub, no pretrained weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.demo_tokenizer import Vocabulary
from megatron_moe_grpo.models.internvl.tiny_tokenizer import tiny_tokenizer

DOWNSAMPLE_RATIO = 0.5
VOCAB_MULTIPLE = 8


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """Sizes of the tiny model; the defaults are the demo's."""

    image_size: int = 32
    """Side of the picture, pixels."""
    patch_size: int = 8
    """Side of a patch, pixels; four patches make one image token."""
    vision_hidden_size: int = 64
    vision_layers: int = 2
    vision_heads: int = 4
    hidden_size: int = 96
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 24
    ffn_size: int = 288
    max_positions: int = 512
    initializer_std: float = 0.1
    """Standard deviation of new weights; 0.05 stayed at chance longer from scratch (LOG.md, 2026-11-24)."""
    embedding_std: float = 0.3
    """Standard deviation of new token embeddings."""

    @property
    def image_seq_length(self) -> int:
        """Image tokens of one picture."""
        return int((self.image_size // self.patch_size * DOWNSAMPLE_RATIO) ** 2)


def build_tiny_internvl(
    folder: Path, sizes: TinySizes, seed: int, vocabulary: Vocabulary = "digits"
) -> InternVLForConditionalGeneration:
    """Writes config, seeded fp32 weights, tokenizer with chat template, and processor files to `folder`.

    Raises:
        ConfigError: the folder exists already, or the picture does not divide into image tokens.
    """
    if folder.exists():
        raise ConfigError("The output folder exists already.", got=folder, remedy="remove it or name another one")
    if sizes.image_size % (2 * sizes.patch_size):
        raise ConfigError(
            "The picture must divide into 2 x 2 patches.", got=f"{sizes.image_size} px, patch {sizes.patch_size} px"
        )
    tokenizer = tiny_tokenizer(model_max_length=sizes.max_positions, vocabulary=vocabulary)
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(_model_config(sizes, tokenizer))
    # transformers starts these at zero: the tower could not tell positions apart until they have grown.
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=sizes.initializer_std)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=sizes.embedding_std)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _save_processor_files(folder, sizes)
    return model


def _model_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    return InternVLConfig(
        vision_config=_vision_config(sizes),
        text_config=_text_config(sizes, tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=sizes.image_seq_length,
        downsample_ratio=DOWNSAMPLE_RATIO,
        tie_word_embeddings=False,
        dtype="float32",
    )


def _vision_config(sizes: TinySizes) -> InternVLVisionConfig:
    return InternVLVisionConfig(
        hidden_size=sizes.vision_hidden_size,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        intermediate_size=4 * sizes.vision_hidden_size,
        image_size=(sizes.image_size, sizes.image_size),
        patch_size=(sizes.patch_size, sizes.patch_size),
        attention_bias=True,
        # Full layer scale: the usual 0.1 is for fine-tuning a trained tower and slows training from scratch.
        layer_scale_init_value=1.0,
        use_mean_pooling=True,
        initializer_range=sizes.initializer_std,
    )


def _text_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=-(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.ffn_size,
        max_position_embeddings=sizes.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        initializer_range=sizes.initializer_std,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _save_processor_files(folder: Path, sizes: TinySizes) -> None:
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": sizes.image_size, "width": sizes.image_size},
        crop_to_patches=False,
        # Near the digits' own mean (0.305) and standard deviation (0.376).  Not ImageNet's mean of 0.46: that is by
        # chance where the washed-out camera, 0.35 x + 0.3, leaves pixels unchanged, so it would only lower the
        # contrast, which the first layer norm undoes.  Below 0.3, the camera turns a dark background into a bright one.
        image_mean=[0.2, 0.2, 0.2],
        image_std=[0.35, 0.35, 0.35],
    )
    image_processor.save_pretrained(folder)
    stock_processor = {"processor_class": "InternVLProcessor", "image_seq_length": sizes.image_seq_length}
    (folder / "processor_config.json").write_text(json.dumps(stock_processor, indent=2) + "\n")
