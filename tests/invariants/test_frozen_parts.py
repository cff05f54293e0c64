"""`model.freeze`: a step moves the parts that are left, and nothing else, for both families."""

from pathlib import Path

import pytest
import torch
from qwen_policy import make_qwen_rows, write_qwen_policy
from tiny_policy import Bench, load_policy, make_rows, trainable, update_settings, write_policy

from megatron_moe_grpo.config.schema import StabilityConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.mcore.optimizer import PARTS, freeze_parts, part_of
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.training.update import update_policy
from megatron_moe_grpo.training.update_guard import UpdateGuard

ONLY_THE_ROUTING = ("vision_tower", "projector", "language_model")


@pytest.fixture(scope="module", params=["internvl", "qwen2_vl"])
def family_bench(
    request: pytest.FixtureRequest,
    one_process: ParallelLayout,
    pictures: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    write, rows = {"internvl": (write_policy, make_rows), "qwen2_vl": (write_qwen_policy, make_qwen_rows)}[
        request.param
    ]
    folder = write(tmp_path_factory.mktemp(request.param))
    processing = family_of(read_hf_config(folder)).processing.from_folder(folder)
    return Bench(one_process, folder, processing, rows(pictures, processing))


def step(bench: Bench, model: VisionLanguageModel) -> None:
    """One whole MoE-GRPO step."""
    rollouts = bench.roll_out(model)
    advantage_B = group_advantages(rollouts.reward_B, rollouts.group_size).advantage_B
    update_policy(
        trainable(model), bench.layout, rollouts, advantage_B, update_settings(), UpdateGuard(StabilityConfig())
    )


@pytest.mark.parametrize(
    "frozen", [(), ("vision_tower",), ("projector",), ("router",), ("vision_tower", "router"), ONLY_THE_ROUTING]
)
def test_a_step_moves_the_parts_that_are_not_frozen(family_bench: Bench, frozen: tuple[str, ...]) -> None:
    model = load_policy(family_bench.folder)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    freeze_parts(model, frozen)
    step(family_bench, model)
    has_moved = {name: not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()}
    # Every parameter belongs to a part; a whole part moves or none of it (bar experts that no token reached).
    assert {part_of(name) for name in before} == set(PARTS)
    moved_parts = {part_of(name) for name, moved in has_moved.items() if moved}
    assert moved_parts == set(PARTS) - set(frozen)
    assert all(moved for name, moved in has_moved.items() if part_of(name) == "router") == ("router" not in frozen)


def test_freezing_everything_is_refused(family_bench: Bench) -> None:
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze_parts(load_policy(family_bench.folder), PARTS)


def test_freezing_the_routers_of_a_model_without_any_is_refused(bench: Bench) -> None:
    config = read_hf_config(bench.folder.parent / "dense")
    dense = load_policy(bench.folder.parent / "dense")
    assert "num_experts" not in config["text_config"]
    with pytest.raises(ConfigError, match="a part that does not exist"):
        freeze_parts(dense, ("router",))
