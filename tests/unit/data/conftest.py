from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def image_cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures that come inside rows go here, never into the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "megatron-moe-grpo" / "images"
