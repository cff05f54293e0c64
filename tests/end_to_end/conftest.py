"""What every run of this folder starts from, once a session."""

import pytest
from tiny_training import TinyStart, tiny_start


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> TinyStart:
    """A tiny model and its data."""
    return tiny_start(tmp_path_factory.getbasetemp() / "tiny_start")
