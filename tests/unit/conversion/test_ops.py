"""The operations against matrices numbered by hand."""

import pytest
import torch

from megatron_moe_grpo.conversion import Concat, FuseQKV, Rename, Rule, ZeroRule


def numbered_rows(first: int, count: int) -> torch.Tensor:
    """[count, 2], row r holds (first + r, -(first + r))."""
    rows = torch.arange(first, first + count, dtype=torch.float32)
    return torch.stack([rows, -rows], dim=1)


def test_fuse_qkv_interleaves_by_query_group() -> None:
    # 4 query heads, 2 key-value heads, head_dim 2: head h of q holds rows 2h, 2h+1; k starts at 100, v at 200.
    query, key, value = numbered_rows(0, 8), numbered_rows(100, 4), numbered_rows(200, 4)
    fused = FuseQKV(num_kv_heads=2).forward([query, key, value])
    first_group = [0, 1, 2, 3, 100, 101, 200, 201]
    second_group = [4, 5, 6, 7, 102, 103, 202, 203]
    assert fused[:, 0].tolist() == first_group + second_group
    assert torch.equal(fused[:, 1], -fused[:, 0])


def test_fuse_qkv_takes_biases() -> None:
    query, key, value = (tensor[:, 0] for tensor in (numbered_rows(0, 2), numbered_rows(10, 2), numbered_rows(20, 2)))
    assert FuseQKV(num_kv_heads=2).forward([query, key, value]).tolist() == [0, 10, 20, 1, 11, 21]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fuse_qkv_inverse_gives_the_same_bits(dtype: torch.dtype) -> None:
    parts = [torch.randn(rows, 5).to(dtype) for rows in (24, 8, 8)]
    op, shapes = FuseQKV(num_kv_heads=2), [(24, 5), (8, 5), (8, 5)]
    fused = op.forward(parts)
    assert tuple(fused.shape) == op.fused_shape(shapes) == (40, 5)
    assert all(torch.equal(*pair) for pair in zip(op.inverse(fused, shapes), parts, strict=True))


def test_concat_puts_the_gate_first_and_takes_it_apart() -> None:
    gate, up = numbered_rows(0, 2), numbered_rows(10, 2)
    fused = Concat().forward([gate, up])
    assert fused[:, 0].tolist() == [0, 1, 10, 11]
    assert all(torch.equal(*pair) for pair in zip(Concat().inverse(fused, [(2, 2), (2, 2)]), (gate, up), strict=True))


def test_inverse_copies_only_rows_that_do_not_lie_together() -> None:
    fused = torch.zeros(4, 2)
    views = Concat().inverse(fused, [(2, 2), (2, 2)])
    assert {part.untyped_storage().data_ptr() for part in views} == {fused.untyped_storage().data_ptr()}
    copies = FuseQKV(1).inverse(fused, [(2, 2), (1, 2), (1, 2)])
    assert len({part.untyped_storage().data_ptr() for part in [fused, *copies]}) == len(copies) + 1


def test_rule_expand_runs_over_every_combination_of_indices() -> None:
    rule = Rule(Rename(), {"a.{layer}.{expert}": (3, 2)}, "b.{expert}.{layer}", {"layer": 2, "expert": 2})
    assert [(list(one.sources), one.target) for one in rule.expand()] == [
        (["a.0.0"], "b.0.0"), (["a.0.1"], "b.1.0"), (["a.1.0"], "b.0.1"), (["a.1.1"], "b.1.1"),
    ]  # fmt: skip
    assert rule.num_parameters == 24


def test_zero_rule_names_hugging_face_tensors_only() -> None:
    rule = ZeroRule({"{layer}.gate": (1, 5), "{layer}.up": (0, 5)}, "layers.{layer}.shared", {"layer": 2})
    assert [dict(one.huggingface_shapes) for one in rule.expand()] == [
        {"0.gate": (1, 5), "0.up": (0, 5)}, {"1.gate": (1, 5), "1.up": (0, 5)},
    ]  # fmt: skip
    assert not any(one.megatron_shapes for one in rule.expand())
    assert rule.num_parameters == 2 * 5
