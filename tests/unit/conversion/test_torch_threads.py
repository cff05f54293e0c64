"""Streaming leaves the cores to the hashing threads, and gives them back."""

import pytest
import torch

from megatron_moe_grpo.conversion.torch_threads import torch_on_one_thread


@pytest.fixture(autouse=True)
def _two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_torch_on_one_thread_gives_the_threads_back() -> None:
    with torch_on_one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_torch_on_one_thread_gives_the_threads_back_after_an_error() -> None:
    @torch_on_one_thread()
    def fail() -> None:
        assert torch.get_num_threads() == 1
        raise KeyError

    for _ in range(2):  # A decorated function can be called again.
        with pytest.raises(KeyError):
            fail()
        assert torch.get_num_threads() == 2
