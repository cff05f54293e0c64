"""What is measured: a small InternVL-MoE, one prompt with one picture, sixteen forced tokens.  Made offline, seeded."""

from pathlib import Path

import numpy as np
from PIL import Image

from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state

SIZES = TinySizes(
    image_size=64,
    patch_size=8,
    vision_hidden_size=64,
    vision_layers=2,
    vision_heads=4,
    hidden_size=128,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn_size=256,
)
# Experts as different as unrelated ones: tokens spread over all of them, as in a trained model.
EXPERTS = UpcycleSettings(num_experts=8, num_active=2, noise_scale=1.0, router_init_std=0.02)
GROUP_SIZE = 8
NUM_NEW_TOKENS = 16
LEARNING_RATE = 1e-4
PROBLEM = "How many 0s are there? Count them."
"""39 tokens with its sixteen image tokens and the chat template."""


def write_model(folder: Path) -> Path:
    """A stock Hugging Face folder with random weights, which both programs load."""
    build_tiny_internvl(folder / "dense", SIZES, seed=0)
    state, config = upcycle_state(read_hf_state(folder / "dense"), read_hf_config(folder / "dense"), EXPERTS)
    write_hf_folder(folder / "moe", state, config, assets=folder / "dense")
    return folder / "moe"


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Seeded noise as PNG files: every step sees another picture."""
    generator = np.random.default_rng(0)
    side = SIZES.image_size
    paths = [folder / f"picture_{index}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return paths


def make_rows(pictures: list[Path]) -> list[Row]:
    """The one question about each picture."""
    return [
        Row(f"row-{index}", PROBLEM, (), "A", "benchmark", (VisualFiles((picture,), False),))
        for index, picture in enumerate(pictures)
    ]
