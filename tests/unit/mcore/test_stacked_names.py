"""Which single tensor stands where in a stacked one: by hand, and as Megatron's own models say."""

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import ALONE, KINDS, build_model, write_kind

from megatron_moe_grpo.mcore.imagined_ranks import imagined_rank
from megatron_moe_grpo.mcore.shard_plan import plan_of_this_rank
from megatron_moe_grpo.mcore.stacked_names import num_stacked_axes, unstacked_name

BY_HAND = [
    ("decoder.layers.mlp.linear_fc2.weight", (3, 0, 0), 1, "decoder.layers.3.mlp.linear_fc2.weight"),
    ("decoder.layers.5.mlp.linear_fc2.weight", (0, 0), 0, "decoder.layers.5.mlp.linear_fc2.weight"),
    (
        "decoder.layers.mlp.experts.experts.linear_fc1.weight",
        (3, 4, 0, 0),
        2,
        "decoder.layers.3.mlp.experts.local_experts.4.linear_fc1.weight",
    ),
    (
        "decoder.layers.12.mlp.experts.experts.linear_fc1.weight",
        (4, 0, 0),
        1,
        "decoder.layers.12.mlp.experts.local_experts.4.linear_fc1.weight",
    ),
    ("vision_tower.encoder.layer.0.mlp.fc1.weight", (7, 7), 0, "vision_tower.encoder.layer.0.mlp.fc1.weight"),
    ("optimizer.state.exp_avg.decoder.layers.w", (2,), 1, "optimizer.state.exp_avg.decoder.layers.2.w"),
]


@pytest.mark.parametrize(("key", "offsets", "num_axes", "name"), BY_HAND)
def test_unstacked_name_by_hand(key: str, offsets: tuple[int, ...], num_axes: int, name: str) -> None:
    assert num_stacked_axes(key) == num_axes
    assert unstacked_name(key, offsets) == name


@pytest.mark.parametrize("kind", KINDS)
def test_unstacked_names_are_the_names_of_the_model(kind: str, tmp_path: Path) -> None:
    folder = write_kind(kind, tmp_path)
    with imagined_rank(ALONE, rank=0, world_size=1):
        plan = plan_of_this_rank(lambda: build_model(folder))
        with torch.device("meta"):
            state = build_model(folder).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("_extra_state")}
    assert {shard.name: shard.whole_shape for shard in plan.written} == expected
    assert sum(shard.num_values for shard in plan.written) == sum(
        tensor.numel() for name, tensor in state.items() if name in expected
    )
