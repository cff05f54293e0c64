"""The reference policy of the KL term: the start of training, frozen.  OThink-MR1 Eq. 5, METHOD 6.

It is loaded from `model.checkpoint`, also when a run is resumed.  A part of the vision side that training freezes is
the same in both models, so the reference holds the policy's own module instead of a copy.  With experts it replays
the rollouts' traces, like every other forward of the same tokens (METHOD 2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import RunConfig
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint
from megatron_moe_grpo.mcore.forward_backward import forward_only
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.stochastic_router import route_with
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.update_batch import UpdateBatch, UpdateSettings, update_batches


@dataclass(frozen=True, eq=False)
class ReferencePolicy:
    """A model that is never trained, on one rank, cut as the policy is."""

    model: VisionLanguageModel
    layout: ParallelLayout
    own_bytes: int
    """Memory of this rank's reference parameters that the policy does not hold too."""

    def token_logprob_BT(self, rollouts: RolloutBatch, settings: UpdateSettings) -> Tensor:
        """log pi_ref of the rollouts' tokens, nats, fp32; all ranks call it together.

        Zeros on every pipeline stage but the last, which is where the KL term is worked out.
        """
        no_advantage_B = torch.zeros_like(rollouts.reward_B)
        batches, _, _ = update_batches(
            rollouts, no_advantage_B, self.layout, settings, [], router_sizes(self.model.config)
        )
        hand_over = route_with(self.model)

        def forward(model: torch.nn.Module, batch: UpdateBatch) -> Tensor:
            hand_over(None if batch.context is None else replace(batch.context, gate=None, balance=None, ledger=None))
            return model(batch.tokens, labels_BS=batch.labels_BS)

        num_sequences, num_positions = batches[0].tokens.token_ids_BS.shape
        nll_parts = forward_only(self.model, batches, forward, num_positions, num_sequences)
        hand_over(None)
        token_ids_BT = rollouts.responses.token_ids_BT
        if not nll_parts:
            return torch.zeros(token_ids_BT.shape, device=token_ids_BT.device)
        # The response's producers are the last T positions: the prompts are padded on the left.
        return -torch.cat(nll_parts).float()[:, -token_ids_BT.shape[1] :]


def load_reference(
    config: RunConfig, hf_config: Mapping[str, Any], policy: VisionLanguageModel, layout: ParallelLayout
) -> ReferencePolicy:
    """Builds and fills the reference from `model.checkpoint`; shares frozen vision parts with `policy`."""
    parallel, precision = config.parallel, config.precision
    model = build_model(hf_config, parallel, precision, layout.is_first_stage, layout.is_last_stage)
    load_checkpoint(Path(config.model.checkpoint), model)
    model.requires_grad_(False)
    model.eval()
    if layout.is_first_stage:
        _share_frozen_vision(model, policy, config.model.freeze)
    shared = {id(parameter) for parameter in policy.parameters()}
    own_bytes = sum(parameter.nbytes for parameter in model.parameters() if id(parameter) not in shared)
    return ReferencePolicy(model, layout, own_bytes)


def _share_frozen_vision(model: VisionLanguageModel, policy: VisionLanguageModel, frozen: tuple[str, ...]) -> None:
    if "vision_tower" in frozen:
        model.vision_tower = policy.vision_tower
    if "projector" in frozen:
        model.projector = policy.projector
