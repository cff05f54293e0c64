"""Whole MoE-GRPO steps of ours on the benchmark's shapes: what train_grpo does in a step, without its log."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.benchmark.measure import PhaseClock, replaced
from megatron_moe_grpo.benchmark.shapes import GROUP_SIZE, LEARNING_RATE, NUM_NEW_TOKENS, make_rows
from megatron_moe_grpo.config.schema import RunConfig
from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.mcore.decoding import CachedForward
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.optimizer import TrainableModel, make_trainable
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.convert import load_megatron_state
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.rewards.judge import Judgement, Question
from megatron_moe_grpo.rollout import collect, decode
from megatron_moe_grpo.rollout.collect import StepRows, collect_rollouts, rollout_settings
from megatron_moe_grpo.rollout.decode import DecodeSettings
from megatron_moe_grpo.rollout.prompts import encode_rows
from megatron_moe_grpo.rollout.records import RoutingCounts
from megatron_moe_grpo.routing.guidance import ModalityCounts, guidance_mask
from megatron_moe_grpo.training import update
from megatron_moe_grpo.training.metrics import rollout_metrics, routing_metrics
from megatron_moe_grpo.training.update import update_policy
from megatron_moe_grpo.training.update_batch import UpdateSettings
from megatron_moe_grpo.training.update_guard import UpdateGuard

PHASES = (
    "prompt preparation", "vision", "prefill", "decode", "rewards and texts", "update: micro-batches",
    "update: forward and backward", "update: optimizer", "everything else",
)  # fmt: skip


class GrpoProgram:
    """Model, optimizer and rows; `step` runs one whole step on the next picture."""

    def __init__(self, folder: Path, pictures: list[Path], layout: ParallelLayout, total_steps: int):
        self.config, self.layout = _config(folder), layout
        self.processing = family_of(read_hf_config(folder)).processing.from_folder(folder)
        self.rows = encode_rows(make_rows(pictures), self.processing)
        self.trainable = _trainable(folder, self.config, total_steps)
        self.settings = UpdateSettings.of(self.config)
        self.guard = UpdateGuard(self.config.stability, is_loss_signed=True)
        sizes = router_sizes(self.trainable.module.config)
        self.counts = ModalityCounts(sizes.num_layers, sizes.num_experts, self.config.routing.guidance_decay)
        self.num_steps = 0

    def step(self) -> dict[str, float]:
        """Roll out, judge, compare, update, learn to guide; returns the step's metrics."""
        row = self.rows[self.num_steps % len(self.rows)]
        model, layout = self.trainable.module, self.layout
        rollouts = collect_rollouts(
            model, layout, StepRows([row], self.num_steps * GROUP_SIZE), self.processing, self.decoding(),
            share_of_even_letters, GROUP_SIZE, prompts_per_forward=1,
        )  # fmt: skip
        advantages = group_advantages(rollouts.reward_B, GROUP_SIZE)
        metrics = rollout_metrics(rollouts, advantages, layout) | self._count_routing(rollouts.responses.counts)
        metrics |= update_policy(self.trainable, layout, rollouts, advantages.advantage_B, self.settings, self.guard)
        self.num_steps += 1
        return metrics

    def guidance(self) -> Tensor:
        """is_allowed_L2N of the steps so far."""
        num_active = self.trainable.module.config.moe_router_topk
        mask = guidance_mask(self.counts, self.config.routing.guidance_fraction, num_active)
        return mask.to(self.layout.device)

    def decoding(self) -> DecodeSettings:
        """As in training, with the end of turn closed, so that every response has all its tokens."""
        settings = rollout_settings(self.config, self.processing, self.guidance())
        end = torch.tensor([self.processing.eos_token_id], device=self.layout.device)
        return replace(settings, suppressed_token_ids=torch.cat((settings.suppressed_token_ids, end)))

    def _count_routing(self, counts: RoutingCounts | None) -> dict[str, Any]:
        if counts is None:
            return {}
        self.counts.update(vision_LN=counts.top_k_L2N[:, 1], text_LN=counts.top_k_L2N[:, 0])
        return routing_metrics(counts.top_k_L2N, counts.entropy_sum_L, counts.num_tokens)


def share_of_even_letters(response: str, question: Question) -> Judgement:
    """A cheap reward that differs between any two responses of an untrained model."""
    reward = sum(ord(letter) % 2 == 0 for letter in response) / max(1, len(response))
    return Judgement(reward, accuracy=reward, format=0.0)


@contextmanager
def phases(program: GrpoProgram, clock: PhaseClock) -> Iterator[None]:
    """Wraps the parts of a step in `clock`; the step itself must run in `clock.phase("everything else")`."""
    model = program.trainable.module

    def by_length(forward: CachedForward, batch: Any, *rest: Any) -> str:
        return "prefill" if batch.token_ids_BS.shape[1] > 1 else "decode"

    def vision_of_a_rollout(*_: Any) -> str:
        # In the update the tower runs with gradients, inside the forward pass.
        return "update: forward and backward" if torch.is_grad_enabled() else "vision"

    wrapped = (
        (collect, "prepare_prompts", "prompt preparation"),
        (model, "image_features", vision_of_a_rollout),
        (collect, "decode", "decode"),
        (decode.CachedForward, "__call__", by_length),
        (collect, "_texts", "rewards and texts"),
        (update, "update_batches", "update: micro-batches"),
        (update, "forward_backward", "update: forward and backward"),
        (TrainableModel, "measure", "update: optimizer"),
        (TrainableModel, "step", "update: optimizer"),
    )
    with ExitStack() as stack:
        for owner, name, phase in wrapped:
            function = vars(owner)[name] if name in vars(owner) else type(owner).__dict__[name].__get__(owner)
            stack.enter_context(replaced(owner, name, clock.timed(function, phase)))
        yield


def _config(folder: Path) -> RunConfig:
    """The paper's settings, but sampled tokens, which is what TRL does."""
    return RunConfig.model_validate(
        {
            "name": "benchmark",
            "method": "moe_grpo",
            "model": {"checkpoint": str(folder)},
            "data": {"train": str(folder)},
            "training": {"steps": 1},
            "rollout": {"group_size": GROUP_SIZE, "max_new_tokens": NUM_NEW_TOKENS, "token_temperature": 1.0},
            "optimizer": {"learning_rate": LEARNING_RATE},
        }
    )


def _trainable(folder: Path, config: RunConfig, total_steps: int) -> TrainableModel:
    """The Hugging Face folder's weights in Megatron's model and optimizer."""
    hf_config = read_hf_config(folder)
    family = family_of(hf_config)
    model = build_model(hf_config, config.parallel, config.precision)
    load_megatron_state(model, Converter(family.weight_map(hf_config)).to_megatron(SafetensorsFolder(folder)))
    return make_trainable(model, config.optimizer, total_steps)
