"""Keys that differ in numbers only become one line."""

import torch

from megatron_moe_grpo.conversion import MemorySource
from megatron_moe_grpo.conversion.key_patterns import key_patterns


def test_key_patterns_groups_by_numbers_shape_and_dtype() -> None:
    half = torch.zeros(2, 3, dtype=torch.bfloat16)
    state = {"embed": half}
    state |= {f"layers.{layer}.experts.{expert}.up": half for layer in range(3) for expert in (0, 5)}
    state |= {"layers.0.norm": torch.zeros(2), "layers.11.norm": torch.zeros(2), "layers.2.norm": torch.zeros(3)}
    state |= {"mlp.0.weight": torch.zeros(()), "q2.norm1": torch.zeros(1), "7": torch.zeros(1, dtype=torch.int8)}
    assert key_patterns(MemorySource(state)) == [
        "embed [2, 3] bf16",
        "layers.{0..2}.experts.{0,5}.up [2, 3] bf16 x 6",
        "layers.{0,11}.norm [2] fp32 x 2",
        "layers.2.norm [3] fp32",
        "mlp.0.weight [] fp32",
        "q2.norm1 [1] fp32",
        "7 [1] int8",
    ]


def test_key_patterns_shows_any_key() -> None:
    """A key is whatever a file says."""
    keys = ["a{}.0", "a{}.1", "b.{x}", "{", "c.{0}.0", "", "." + "9" * 5000]
    assert [line.rsplit(" [", 1)[0] for line in key_patterns(MemorySource(dict.fromkeys(keys, torch.zeros(1))))] == [
        "a{}.{0..1}",
        "b.{x}",
        "{",
        "c.{0}.0",
        "",
        "." + "9" * 5000,
    ]
