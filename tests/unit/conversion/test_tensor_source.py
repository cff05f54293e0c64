"""Sources of sources."""

import torch

from megatron_moe_grpo.conversion import MemorySource, ZeroPadded, read_all


def test_zero_padded_gives_the_sources_own_tensors_then_zeros_of_its_dtype() -> None:
    own = {"a": torch.randn(2).bfloat16(), "b": torch.randn(3).bfloat16()}
    padded = ZeroPadded(MemorySource(own), {"zero": (1, 3), "empty": (4, 0)})
    assert list(padded.shapes.items()) == [("a", (2,)), ("b", (3,)), ("zero", (1, 3)), ("empty", (4, 0))]
    read = read_all(padded)
    assert read["a"] is own["a"] and read["b"] is own["b"]
    assert read["zero"].tolist() == [[0, 0, 0]] and read["empty"].shape == (4, 0)
    assert {tensor.dtype for tensor in read.values()} == set(padded.dtypes.values()) == {torch.bfloat16}
