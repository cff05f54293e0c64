"""One tiny checkpoint with experts, once a test run; nothing writes to it."""

from pathlib import Path

import pytest
from tiny_checkpoints import import_alone, write_kind


@pytest.fixture(scope="session")
def moe_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face folder, bf16."""
    return write_kind("internvl_moe", tmp_path_factory.mktemp("streamed"))


@pytest.fixture(scope="session")
def moe_checkpoint(moe_source: Path) -> Path:
    """Its Megatron checkpoint."""
    return import_alone(moe_source, moe_source.parent / "checkpoint")
