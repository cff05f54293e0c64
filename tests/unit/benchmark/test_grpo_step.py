from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_moe_grpo.benchmark.grpo_step import PHASES, GrpoProgram, phases
from megatron_moe_grpo.benchmark.measure import PhaseClock
from megatron_moe_grpo.benchmark.shapes import NUM_NEW_TOKENS, write_model, write_pictures
from megatron_moe_grpo.benchmark.top_k_step import without_router_losses, without_trace
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel
from megatron_moe_grpo.mcore.stochastic_router import stochastic_routers
from megatron_moe_grpo.rollout import decode
from megatron_moe_grpo.training import update


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpoProgram]:
    folder: Path = tmp_path_factory.mktemp("benchmark")
    layout = start_parallel(ParallelConfig(), seed=0)
    yield GrpoProgram(write_model(folder), write_pictures(folder, 2), layout, total_steps=100)
    stop_parallel()


def test_shapes_are_those_of_the_notes(program: GrpoProgram) -> None:
    assert {len(row.prompt_ids) for row in program.rows} == {39}
    assert program.rows[0].prompt_ids.count(program.processing.image_token_id) == 16
    config = program.trainable.module.config
    sizes = (config.num_layers, config.hidden_size, config.num_moe_experts, config.moe_router_topk)
    assert sizes == (4, 128, 8, 2) and config.moe_ffn_hidden_size == 256
    num_parameters = sum(parameter.numel() for parameter in program.trainable.module.parameters())
    assert 3.5e6 < num_parameters < 3.7e6


def test_step_makes_every_token_and_has_a_signal(program: GrpoProgram) -> None:
    metrics = program.step()
    assert metrics["response_tokens_mean"] == NUM_NEW_TOKENS
    assert program.processing.eos_token_id in program.decoding().suppressed_token_ids.tolist()
    assert metrics["groups_without_signal"] == 0.0
    assert metrics["grad_norm"] > 0
    # As in training: recorded equals replayed.
    assert metrics["rollout_train_logprob_gap"] < 1e-5


def test_phases_cover_the_step_and_leave_no_timer_behind(program: GrpoProgram) -> None:
    before = (decode.CachedForward.__call__, update.forward_backward, program.trainable.module.image_features)
    clock = PhaseClock()
    with phases(program, clock), clock.phase("everything else"):
        program.step()
    assert set(clock.spans) == set(PHASES)
    assert all(span.wall_s > 0 for span in clock.spans.values())
    after = (decode.CachedForward.__call__, update.forward_backward, program.trainable.module.image_features)
    assert after == before


def test_without_trace_keeps_the_losses_and_drops_the_records(program: GrpoProgram) -> None:
    guidance = program.guidance()
    with without_trace(program.settings, program.guidance):
        metrics = program.step()
    assert metrics["response_tokens_mean"] == NUM_NEW_TOKENS and metrics["grad_norm"] > 0
    assert "rollout_train_selection_logprob_gap" not in metrics and "router_entropy_nats" not in metrics
    assert program.guidance().equal(guidance)
    assert "router_entropy_nats" in program.step()


def test_without_router_losses_runs_megatrons_own_router(program: GrpoProgram) -> None:
    routers = stochastic_routers(program.trainable.module)
    contexts = []
    hooks = [router.register_forward_hook(lambda module, *_: contexts.append(module.context)) for router in routers]
    with without_router_losses():
        program.step()
    for hook in hooks:
        hook.remove()
    # The prompt, 15 more tokens, and the update.
    assert len(contexts) == len(routers) * (NUM_NEW_TOKENS + 1) and set(contexts) == {None}
