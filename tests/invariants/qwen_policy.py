"""A tiny Qwen2-VL with experts for the invariants: multimodal rotary positions, qkv biases, pictures and a video.

As many layers and experts as tiny_policy.py's, router weights drawn with standard deviation 0.3 as there.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_policy import NUM_ACTIVE, NUM_EXPERTS

from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.qwen2_vl.modeling_qwen2_vl_moe import Qwen2VLMoeConfig, Qwen2VLMoeForConditionalGeneration
from megatron_moe_grpo.models.qwen2_vl.moe_config import upcycled_config
from megatron_moe_grpo.models.qwen2_vl.tiny import TinySizes, build_tiny_qwen2_vl
from megatron_moe_grpo.rollout.prompts import EncodedRow, encode_rows

SIZES = TinySizes(
    patch_size=4, min_pixels=64, max_pixels=256, vision_hidden_size=16, vision_layers=1, vision_heads=2,
    hidden_size=32, layers=4, heads=4, kv_heads=2, ffn_size=24, max_positions=128, initializer_std=0.07,
)  # fmt: skip
# Question -> pictures of each visual: two pictures make a video.  As in tiny_policy.py, text-only rows come first.
PROBLEMS = (("How many 0s are there?", ()), ("Which?", ()), ("Which is the largest digit?", (1, 1)), ("How?", (2,)))


def write_qwen_policy(folder: Path, ties_embeddings: bool = False) -> Path:
    """`folder`/moe, a Hugging Face folder as it would be exported, with random weights."""
    build_tiny_qwen2_vl(folder / "dense", SIZES, seed=0, ties_embeddings=ties_embeddings)
    experts = {"num_experts": NUM_EXPERTS, "num_experts_per_tok": NUM_ACTIVE, "moe_intermediate_size": SIZES.ffn_size}
    config = upcycled_config(read_hf_config(folder / "dense"), experts | {"norm_topk_prob": False})
    torch.manual_seed(1)
    model = Qwen2VLMoeForConditionalGeneration(Qwen2VLMoeConfig(**config))
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=SIZES.embedding_std)
    for layer in model.model.language_model.layers:
        torch.nn.init.normal_(layer.mlp.gate.weight, std=0.3)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder / "saved")
    write_hf_folder(folder / "moe", read_hf_state(folder / "saved"), config, assets=folder / "dense")
    return folder / "moe"


def make_qwen_rows(pictures: Sequence[Path], processing: Processing) -> list[EncodedRow]:
    """One row for each of PROBLEMS, every picture another one."""
    rows, unused = [], iter(pictures)
    for index, (problem, visuals) in enumerate(PROBLEMS):
        files = tuple(
            VisualFiles(tuple(next(unused) for _ in range(num_frames)), is_video=num_frames > 1)
            for num_frames in visuals
        )
        rows.append(Row(f"row-{index}", problem, ("A. 0", "B. 1"), "A", "test", files))
    return encode_rows(rows, processing)
