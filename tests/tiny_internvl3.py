"""A tiny InternVL3 by transformers: Qwen2.5 text, with biases on q, k and v, no query-key norm, dynamic rope."""

from pathlib import Path

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

from megatron_moe_grpo.models.hf_folder import copy_assets


def write_tiny_internvl3(folder: Path, internvl3_5: Path) -> Path:
    """Random fp32 weights; vision tower sizes, tokenizer and processor files of a tiny InternVL3.5 folder."""
    config = InternVLConfig.from_pretrained(internvl3_5)
    text = config.text_config
    config.text_config = Qwen2Config(
        vocab_size=text.vocab_size, hidden_size=40, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=256, initializer_range=0.2, bos_token_id=None,
        eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
    )  # fmt: skip
    torch.manual_seed(2)
    model = InternVLForConditionalGeneration(config)
    for parameter in model.model.language_model.parameters():
        if parameter.dim() == 1:  # Biases start at 0 and norms at 1.
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=0.2)
    model.save_pretrained(folder)
    copy_assets(internvl3_5, folder)
    return folder
