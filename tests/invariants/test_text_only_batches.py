"""Prompts without any image: a rank or a micro-batch that sees none hangs nobody and changes nothing."""

import pytest
import torch
from parallel_runs import ParallelRuns
from parallel_step import CASES
from tiny_policy import PROBLEMS, Bench, gradients, load_policy, trainable, update_settings

from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.rollout.prompts import prepare_prompts
from megatron_moe_grpo.training.update import accumulate_gradients

SPLIT_BY_RANK = [name for name, case in CASES.items() if case.parallel.tensor == case.parallel.pipeline == 1]


def test_the_first_data_rank_has_only_text_and_the_second_images(bench: Bench) -> None:
    """What makes the data- and expert-parallel cases of test_parallel_equals_one_process cases of this file too."""
    num_images = [count for _, count in PROBLEMS]
    assert num_images[:2] == [0, 0] and min(num_images[2:]) > 0
    assert [len(row.row.visuals) for row in bench.rows] == num_images


@pytest.mark.parametrize("name", SPLIT_BY_RANK)
def test_a_rank_without_images_finishes_and_gets_the_vision_gradient(
    name: str, parallel_runs: ParallelRuns, bench: Bench
) -> None:
    """Equality with one process is tested elsewhere; here: both ranks ended, and vision parameters did learn."""
    first, second = parallel_runs.outcomes(name)
    assert first["metrics"] == second["metrics"]
    gradient = parallel_runs.gradient(name, bench.layout)
    assert gradient["vision_tower.embeddings.patch_embeddings.projection.weight"].abs().max() > 1e-3


@pytest.mark.parametrize("micro_batch_prompts", [1, 2])
def test_a_step_without_any_image_leaves_vision_alone(bench: Bench, micro_batch_prompts: int) -> None:
    text_only = Bench(bench.layout, bench.folder, bench.processing, bench.rows[:2])
    model = load_policy(bench.folder)
    rollouts = text_only.roll_out(model)
    advantage_B = group_advantages(rollouts.reward_B, rollouts.group_size).advantage_B
    trained = trainable(model)
    settings = update_settings(micro_batch_prompts=micro_batch_prompts)
    accumulate_gradients(trained, bench.layout, rollouts, advantage_B, settings)
    for name, gradient in gradients(trained).items():
        if name.startswith(("vision_tower.", "projector.")):
            assert torch.count_nonzero(gradient) == 0, name
    assert gradients(trained)["language_model.decoder.layers.0.mlp.router.weight"].abs().max() > 1e-3


def test_a_text_only_micro_batch_reports_a_gradient_for_every_parameter(bench: Bench) -> None:
    """Zero where nothing was seen, but never absent: Megatron's overlapped reduction waits for every parameter.

    Two prompts reach few experts; the ones without tokens and the whole vision side must report all the same.
    """
    model = load_policy(bench.folder)
    batch = prepare_prompts(bench.rows[:2], 14, bench.processing).batch(0, 2)
    model(batch, labels_BS=batch.token_ids_BS).sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == set()
    assert torch.count_nonzero(model.projector.linear_1.weight.grad) == 0
