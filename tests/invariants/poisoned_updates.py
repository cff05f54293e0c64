"""Updates with a NaN or an infinity somewhere on one of two ranks, and what they leave behind.

poisoned_updates.py CHECKPOINT PICTURES OUT

OUT/rank_R.json: of each layout, site and value, in order, what rank R saw (`Outcome`).
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from megatron.core import parallel_state
from tiny_policy import Bench, build_shard, make_rows, trainable, update_settings
from torch import Tensor

from megatron_moe_grpo.benchmark.measure import replaced
from megatron_moe_grpo.config.schema import LossConfig, ParallelConfig, StabilityConfig
from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.losses.kl_loss import KlTerm
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel
from megatron_moe_grpo.mcore.stochastic_router import stochastic_routers
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training import update
from megatron_moe_grpo.training.update import update_policy
from megatron_moe_grpo.training.update_guard import UpdateGuard

LAYOUTS = {
    "expert": ParallelConfig(expert=2),
    "tensor": ParallelConfig(tensor=2),
    "pipeline": ParallelConfig(pipeline=2),
}
VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
# An old log-probability of plus infinity is a ratio of 0, which harms nothing.
HARMLESS = ("ratio", "-inf")
DATA_SITES = ("pixels", "ratio", "reference", "reward", "advantage")
HOOKED_SITES = ("logits", "router_logits", "loss", "gradient", "expert_gradient", "vision_gradient")
SITES = DATA_SITES + HOOKED_SITES
ON_FIRST_STAGE = ("pixels", "vision_gradient")


@dataclass(frozen=True)
class Outcome:
    """One poisoned update, and a sound one after it."""

    layout: str
    site: str
    value: str
    is_skipped: bool
    has_changed: bool
    """Anything at all of weights, master weights, moments, step counts."""
    has_gradient_left: bool
    grad_norm: str
    later_is_skipped: bool
    later_norm: float
    later_has_changed: bool
    later_is_finite: bool
    """All weights, after the sound update."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What an update takes."""

    rollouts: RolloutBatch
    advantage_B: Tensor


class Poisoned:
    """A model in training, and its updates on one batch of rollouts."""

    def __init__(self, bench: Bench, layout_name: str, checkpoint: Path):
        self.bench, self.layout_name = bench, layout_name
        model = build_shard(checkpoint / "assets", LAYOUTS[layout_name], bench.layout)
        self.trained = trainable(model, learning_rate=1e-4)
        load_checkpoint(checkpoint, model)
        self.trained.optimizer.reload_model_params()
        self.guard = UpdateGuard(StabilityConfig(), is_loss_signed=True)
        rollouts = bench.roll_out(model)
        self.rollouts = replace(rollouts, reference_logprob_BT=1.2 * rollouts.responses.token_logprob_BT)

    def update(self, inputs: Inputs) -> tuple[bool, float]:
        """(was it skipped, gradient norm)."""
        before = self.guard.num_skipped
        settings = update_settings(LossConfig(load_balancing_coefficient=0.1, router_z_coefficient=0.01))
        metrics = update_policy(
            self.trained, self.bench.layout, inputs.rollouts, inputs.advantage_B, settings, self.guard, KlTerm(beta=0.5)
        )
        return self.guard.num_skipped > before, metrics["grad_norm"]

    def outcome(self, site: str, value_name: str) -> Outcome:
        """Poisons `site`, updates, then updates without."""
        value, before = VALUES[value_name], fingerprint(self.trained)
        is_first = self.bench.layout.is_first_stage and not self.bench.layout.is_last_stage
        is_here = is_first if self.layout_name == "pipeline" and site in ON_FIRST_STAGE else self.bench.layout.rank == 1
        with self._hooked(site, value) if is_here and site in HOOKED_SITES else ExitStack():
            is_skipped, grad_norm = self.update(self._inputs(site if is_here else "", value))
        after = fingerprint(self.trained)
        gradients = [parameter.main_grad for parameter in self.trained.module.parameters()]
        has_gradient_left = any(bool((gradient != 0).any()) for gradient in gradients)
        later_is_skipped, later_norm = self.update(self._inputs("", value))
        return Outcome(
            layout=self.layout_name,
            site=site,
            value=value_name,
            is_skipped=is_skipped,
            has_changed=after != before,
            has_gradient_left=has_gradient_left,
            grad_norm=repr(grad_norm),
            later_is_skipped=later_is_skipped,
            later_norm=later_norm,
            later_has_changed=fingerprint(self.trained) != after,
            later_is_finite=all(bool(p.isfinite().all()) for p in self.trained.module.parameters()),
        )

    def _inputs(self, site: str, value: float) -> Inputs:
        rollouts = self.rollouts
        reward_B, responses = rollouts.reward_B.clone(), rollouts.responses
        reward_B[0] = value if site == "reward" else reward_B[0]
        advantage_B = group_advantages(reward_B, rollouts.group_size).advantage_B
        advantage_B[0] = value if site == "advantage" else advantage_B[0]
        if site == "ratio":
            logprob_BT = responses.token_logprob_BT.clone()
            logprob_BT[:, 0] = -value
            rollouts = replace(rollouts, responses=replace(responses, token_logprob_BT=logprob_BT))
        if site == "reference":
            reference_BT = rollouts.reference_logprob_BT.clone()
            reference_BT[0, 0] = value
            rollouts = replace(rollouts, reference_logprob_BT=reference_BT)
        if site == "pixels":
            rollouts = replace(rollouts, prompts=replace(rollouts.prompts, visuals=_bad_pixels(rollouts, value)))
        return Inputs(rollouts, advantage_B)

    def _hooked(self, site: str, value: float) -> AbstractContextManager[None]:
        """The site's poison while the block runs, in this rank's own tensors."""
        model = self.trained.module
        routers = stochastic_routers(model)
        if site == "loss":
            return _poisoned_loss(value)
        if site == "router_logits":
            return replaced(routers[0], "gating", _adding(routers[0].gating, value))
        if site == "logits":
            layer = model.language_model.output_layer if self.bench.layout.is_last_stage else routers[0]
            return _hook(layer.register_forward_hook(lambda module, args, out: (out[0] + value, *out[1:])))
        part = {"gradient": ".router.", "expert_gradient": ".experts.", "vision_gradient": "vision_tower"}[site]
        parameter = next(parameter for name, parameter in model.named_parameters() if part in name)
        return _hook(parameter.register_hook(lambda gradient: gradient + value))


def fingerprint(trained: TrainableModel) -> str:
    """SHA-256 of weights, master weights, moments and step counts of this rank."""
    digest = hashlib.sha256()
    for parameter in trained.module.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    for part in trained.optimizer.chained_optimizers:
        for parameter in part.get_parameters():
            digest.update(parameter.detach().numpy().tobytes())
            for name, value in sorted(part.optimizer.state[parameter].items()):
                digest.update(name.encode() + torch.as_tensor(value).numpy().tobytes())
        digest.update(repr([group.get("step") for group in part.param_groups]).encode())
    return digest.hexdigest()


def _adding(function: Callable[[Tensor], Tensor], value: float) -> Callable[[Tensor], Tensor]:
    return lambda hidden: function(hidden) + value


def _bad_pixels(rollouts: RolloutBatch, value: float) -> list:
    visuals = list(rollouts.prompts.visuals)
    index = next(index for index, visual in enumerate(visuals) if visual is not None)
    pixel_values = visuals[index].pixel_values.clone()
    pixel_values.view(-1)[0] = value
    visuals[index] = replace(visuals[index], pixel_values=pixel_values)
    return visuals


@contextmanager
def _hook(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _poisoned_loss(value: float) -> AbstractContextManager[None]:
    def poisoned(*args: object) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = output_loss(*args)
        return loss + value, metrics | {"token_loss": metrics["token_loss"] + value}

    output_loss = update._output_loss
    return replaced(update, "_output_loss", poisoned)


def main() -> None:
    """All layouts, one after the other."""
    torch.set_num_threads(1)
    checkpoint, pictures, out = map(Path, sys.argv[1:4])
    outcomes = []
    for name, parallel in LAYOUTS.items():
        layout = start_parallel(parallel, seed=0)
        assets = checkpoint / "assets"
        processing = family_of(read_hf_config(assets)).processing.from_folder(assets)
        bench = Bench(layout, assets, processing, make_rows(sorted(pictures.iterdir()), processing))
        poisoned = Poisoned(bench, name, checkpoint)
        # Moments and step counts are there to be harmed.
        assert not poisoned.update(poisoned._inputs("", 0.0))[0]
        # Ranks come to one verdict under any layout in the same way: one value is enough for the others.
        values = VALUES if name == "expert" else ("nan",)
        cases = [(site, value) for site in SITES for value in values if (site, value) != HARMLESS]
        outcomes += [asdict(poisoned.outcome(site, value)) for site, value in cases]
        rank = layout.rank
        parallel_state.destroy_model_parallel()
    (out / f"rank_{rank}.json").write_text(json.dumps(outcomes), encoding="utf-8")
    stop_parallel()


if __name__ == "__main__":
    main()
