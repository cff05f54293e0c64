"""The tiny model is stock: transformers loads it and it answers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from megatron_moe_grpo.data.visuals import VisualSize
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.hf_folder import read_hf_state
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl


def test_build_tiny_internvl_loads_in_transformers_and_generates(dense_folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(dense_folder).eval()
    processing = InternVLProcessing.from_folder(dense_folder)
    ids = torch.tensor([processing.encode("Which is the largest digit?", ("A. 1", "B. 2"), [VisualSize(32, 32)])])
    answer = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.zeros(1, 3, 32, 32), do_sample=False,
        max_new_tokens=2, min_new_tokens=2,
    )  # fmt: skip
    assert answer.shape == (1, ids.shape[1] + 2)


def test_build_tiny_internvl_is_seeded(dense_folder: Path, tmp_path: Path) -> None:
    build_tiny_internvl(tmp_path / "same", TinySizes(), seed=0)
    build_tiny_internvl(tmp_path / "other", TinySizes(), seed=1)
    first, same, other = map(read_hf_state, (dense_folder, tmp_path / "same", tmp_path / "other"))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["language_model.lm_head.weight"], other["language_model.lm_head.weight"])


def test_build_tiny_internvl_draws_every_matrix_with_the_given_std(dense_folder: Path) -> None:
    state = read_hf_state(dense_folder)
    embedding = state.pop("language_model.model.embed_tokens.weight")
    matrices = {key: weight for key, weight in state.items() if weight.dim() > 1 and "cls_token" not in key}
    # Measured: within 4 % of 0.1 (position_embeddings, 1088 numbers, furthest); the standard error is 2 % there.
    assert all(0.09 < weight.std() < 0.11 for weight in matrices.values())
    assert 0.29 < embedding.std() < 0.31
    assert torch.equal(state["vision_tower.encoder.layer.0.lambda_1"], torch.ones(64))


def test_build_tiny_internvl_refuses_pictures_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 x 2 patches"):
        build_tiny_internvl(tmp_path / "x", TinySizes(image_size=24, patch_size=8), seed=0)


def test_build_tiny_internvl_refuses_an_existing_folder(dense_folder: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        build_tiny_internvl(dense_folder, TinySizes(), seed=0)
