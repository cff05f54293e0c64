"""Pictures are looked at once a prompt, however many rollouts see them, and once more in the update."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny_policy import PROBLEMS, Bench, load_policy, trainable, update_settings

from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.training.update import accumulate_gradients

NUM_IMAGES = sum(count for _, count in PROBLEMS)


@contextmanager
def images_seen(model: VisionLanguageModel) -> Iterator[list[int]]:
    """The number of images in each forward of the vision tower."""
    seen: list[int] = []

    def count(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(kwargs["pixel_values"].shape[0])

    hook = model.vision_tower.register_forward_pre_hook(count, with_kwargs=True)
    yield seen
    hook.remove()


@pytest.mark.parametrize("group_size", [1, 5])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_each_picture_is_seen_once_in_rollouts_and_once_in_the_update(
    bench: Bench, group_size: int, recompute: str
) -> None:
    model = load_policy(bench.folder, recompute)
    with images_seen(model) as in_rollouts:
        rollouts = bench.roll_out(model, group_size=group_size)
    assert in_rollouts == [NUM_IMAGES]
    advantage_B = group_advantages(rollouts.reward_B, group_size).advantage_B
    trained = trainable(model)
    for micro_batch_prompts, expected in ((4, [3]), (2, [3]), (1, [2, 1])):
        settings = update_settings(micro_batch_prompts=micro_batch_prompts, has_recompute=recompute != "none")
        with images_seen(model) as in_update:
            accumulate_gradients(trained, bench.layout, rollouts, advantage_B, settings)
        assert in_update == expected


def test_a_batch_of_groups_holds_each_picture_once(bench: Bench) -> None:
    rollouts = bench.roll_out(load_policy(bench.folder), group_size=5)
    batch = rollouts.prompts.batch(0, len(PROBLEMS))
    assert batch.pixel_values.shape[0] == NUM_IMAGES
    repeated = batch.repeated(5).extended(torch.zeros(20, 1, dtype=torch.long), torch.ones(20, 1, dtype=torch.bool))
    assert repeated.pixel_values.data_ptr() == batch.pixel_values.data_ptr()
    assert repeated.pixel_values.shape[0] == NUM_IMAGES


def test_forwards_of_single_prompts_see_each_picture_once(bench: Bench) -> None:
    model = load_policy(bench.folder)
    with images_seen(model) as in_rollouts:
        bench.roll_out(model, prompts_per_forward=1)
    assert in_rollouts == [2, 1]
