"""Sequences with pictures and videos as a model sees them: left-padded prompts, each visual once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from megatron_moe_grpo.models.visual_inputs import VisualInputs


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """B sequences of S positions.

    Visuals stand once: `pixel_values` holds each picture of the batch one time, however many sequences show it, and
    `image_slot_BS` points into the rows of their features.
    """

    token_ids_BS: Tensor
    is_real_BS: Tensor
    """False on padding.  In a decode step it covers all positions so far, the tokens only the new ones."""
    image_slot_BS: Tensor
    """Row of the image features that replaces the token's embedding; -1 for text."""
    pixel_values: Tensor | None = None
    """As in VisualInputs, all prompts together; None when the batch has no visual."""
    grid_V3: Tensor | None = None
    """As in VisualInputs."""
    rope_position_3BS: Tensor | None = None
    """Rotary positions where they do not simply count; covers all positions so far, like `is_real_BS`."""

    @property
    def is_vision_BS(self) -> Tensor:
        """True on image and video tokens."""
        return self.image_slot_BS >= 0

    @property
    def position_BS(self) -> Tensor:
        """Place of each token in its own sequence, from 0; padding holds 0."""
        return (self.is_real_BS.long().cumsum(dim=1) - 1).clamp_(min=0)

    def repeated(self, group_size: int) -> "TokenBatch":
        """Every sequence G times in a row; the visuals are shared, not copied."""
        rope = self.rope_position_3BS
        return replace(
            self,
            token_ids_BS=self.token_ids_BS.repeat_interleave(group_size, dim=0),
            is_real_BS=self.is_real_BS.repeat_interleave(group_size, dim=0),
            image_slot_BS=self.image_slot_BS.repeat_interleave(group_size, dim=0),
            rope_position_3BS=None if rope is None else rope.repeat_interleave(group_size, dim=1),
        )

    def select(self, index_B: Tensor) -> "TokenBatch":
        """Sequences by index, in that order, repeats allowed; the visuals stay as they are."""
        rope = self.rope_position_3BS
        return replace(
            self,
            token_ids_BS=self.token_ids_BS[index_B],
            is_real_BS=self.is_real_BS[index_B],
            image_slot_BS=self.image_slot_BS[index_B],
            rope_position_3BS=None if rope is None else rope[:, index_B],
        )

    def extended(self, token_ids_BT: Tensor, is_real_BT: Tensor) -> "TokenBatch":
        """Text appended on the right of every sequence."""
        return replace(
            self,
            token_ids_BS=torch.cat((self.token_ids_BS, token_ids_BT), dim=1),
            is_real_BS=torch.cat((self.is_real_BS, is_real_BT), dim=1),
            image_slot_BS=torch.cat((self.image_slot_BS, torch.full_like(token_ids_BT, -1)), dim=1),
            rope_position_3BS=self._extended_rope(token_ids_BT.shape[1]),
        )

    def to(self, device: torch.device) -> "TokenBatch":
        """The same batch on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return TokenBatch(**{name: None if tensor is None else tensor.to(device) for name, tensor in tensors.items()})

    def _extended_rope(self, num_new: int) -> Tensor | None:
        """New text goes on from the largest position of its sequence, the same in time, height and width."""
        rope = self.rope_position_3BS
        if rope is None:
            return None
        last_B1 = rope.amax(dim=(0, 2))[:, None]
        new_BT = last_B1 + torch.arange(1, num_new + 1, device=rope.device)
        return torch.cat((rope, new_BT.expand(3, -1, -1)), dim=2)


def pad_prompts(
    prompts: Sequence[Sequence[int]],
    visuals: Sequence[VisualInputs | None],
    vision_token_ids: Sequence[int],
    pad_token_id: int,
    num_positions: int | None = None,
    rope_positions: Sequence[Tensor | None] | None = None,
) -> TokenBatch:
    """Prompts of different lengths, padded on the left to the longest (or to `num_positions`).

    Args:
        prompts: token ids, vision tokens in place.
        visuals: of each prompt, in their tokens' order; None for text.
        vision_token_ids: tokens that stand for one row of image features each.
        rope_positions: [3, positions of the prompt] each, or None where positions simply count.
    """
    length = num_positions or max(len(prompt) for prompt in prompts)
    token_ids_BS = torch.full((len(prompts), length), pad_token_id)
    is_real_BS = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        token_ids_BS[row, length - len(prompt) :] = torch.tensor(prompt)
        is_real_BS[row, length - len(prompt) :] = True
    is_vision_BS = torch.isin(token_ids_BS, torch.tensor(vision_token_ids)) & is_real_BS
    # Vision tokens are numbered in reading order over the whole batch: exactly the order of the features' rows.
    slot_BS = (is_vision_BS.flatten().cumsum(0) - 1).view_as(token_ids_BS)
    present = [visual for visual in visuals if visual is not None]
    num_features = sum(visual.num_features for visual in present)
    assert int(is_vision_BS.sum()) == num_features, f"{int(is_vision_BS.sum())} vision tokens, {num_features} features"
    grids = [visual.grid_V3 for visual in present if visual.grid_V3 is not None]
    return TokenBatch(
        token_ids_BS,
        is_real_BS,
        slot_BS.masked_fill(~is_vision_BS, -1),
        torch.cat([visual.pixel_values for visual in present]) if present else None,
        torch.cat(grids) if grids else None,
        _padded_rope(rope_positions, length),
    )


def _padded_rope(rope_positions: Sequence[Tensor | None] | None, length: int) -> Tensor | None:
    if rope_positions is None or any(position_3S is None for position_3S in rope_positions):
        return None
    padded = [pad(position_3S, (length - position_3S.shape[1], 0)) for position_3S in rope_positions]
    return torch.stack(padded, dim=1)
