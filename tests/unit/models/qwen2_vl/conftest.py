"""A tiny Qwen2-VL folder made by transformers, once a test run."""

from pathlib import Path

import pytest

from megatron_moe_grpo.models.qwen2_vl.tiny import TinySizes, build_tiny_qwen2_vl


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model of the default sizes, embeddings not tied."""
    folder = tmp_path_factory.mktemp("qwen2_vl") / "dense"
    build_tiny_qwen2_vl(folder, TinySizes(), seed=0)
    return folder
