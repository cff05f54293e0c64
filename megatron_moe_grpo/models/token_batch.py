"""Sequences with images as a model sees them: left-padded prompts, each image once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """B sequences of S positions.

    Images stand once: `pixel_values` holds each image of the batch one time, however many sequences show it, and
    `image_slot_BS` points into the rows of their features.
    """

    token_ids_BS: Tensor
    is_real_BS: Tensor
    """False on padding.  In a decode step it covers all positions so far, the tokens only the new ones."""
    image_slot_BS: Tensor
    """Row of the image features that replaces the token's embedding; -1 for text."""
    pixel_values: Tensor | None
    """[images, 3, H, W] float32; None when the batch has no image."""

    @property
    def is_vision_BS(self) -> Tensor:
        """True on image tokens."""
        return self.image_slot_BS >= 0

    @property
    def position_BS(self) -> Tensor:
        """Position of each token in its own sequence, from 0; padding holds 0."""
        return (self.is_real_BS.long().cumsum(dim=1) - 1).clamp_(min=0)

    def repeated(self, group_size: int) -> "TokenBatch":
        """Every sequence G times in a row; the images are shared, not copied."""
        return replace(
            self,
            token_ids_BS=self.token_ids_BS.repeat_interleave(group_size, dim=0),
            is_real_BS=self.is_real_BS.repeat_interleave(group_size, dim=0),
            image_slot_BS=self.image_slot_BS.repeat_interleave(group_size, dim=0),
        )

    def extended(self, token_ids_BT: Tensor, is_real_BT: Tensor) -> "TokenBatch":
        """Text appended on the right of every sequence."""
        return replace(
            self,
            token_ids_BS=torch.cat((self.token_ids_BS, token_ids_BT), dim=1),
            is_real_BS=torch.cat((self.is_real_BS, is_real_BT), dim=1),
            image_slot_BS=torch.cat((self.image_slot_BS, torch.full_like(token_ids_BT, -1)), dim=1),
        )

    def to(self, device: torch.device) -> "TokenBatch":
        """The same batch on `device`."""
        return TokenBatch(
            self.token_ids_BS.to(device),
            self.is_real_BS.to(device),
            self.image_slot_BS.to(device),
            None if self.pixel_values is None else self.pixel_values.to(device),
        )


def pad_prompts(
    prompts: Sequence[Sequence[int]],
    images: Sequence[Tensor | None],
    image_token_id: int,
    tokens_per_image: int,
    pad_token_id: int,
    num_positions: int | None = None,
) -> TokenBatch:
    """Prompts of different lengths, padded on the left to the longest (or to `num_positions`).

    Args:
        prompts: token ids, image tokens in place.
        images: pixel values [images of the prompt, 3, H, W] of each prompt, in their tokens' order; None for text.
        tokens_per_image: image tokens that one image stands for.
    """
    length = num_positions or max(len(prompt) for prompt in prompts)
    token_ids_BS = torch.full((len(prompts), length), pad_token_id)
    is_real_BS = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        token_ids_BS[row, length - len(prompt) :] = torch.tensor(prompt)
        is_real_BS[row, length - len(prompt) :] = True
    is_vision_BS = (token_ids_BS == image_token_id) & is_real_BS
    # Image tokens are numbered in reading order over the whole batch: exactly the order of the features' rows.
    slot_BS = (is_vision_BS.flatten().cumsum(0) - 1).view_as(token_ids_BS)
    pixels = [image for image in images if image is not None]
    num_slots = sum(len(image) for image in pixels) * tokens_per_image
    assert int(is_vision_BS.sum()) == num_slots, f"{int(is_vision_BS.sum())} image tokens for {num_slots} features"
    return TokenBatch(
        token_ids_BS, is_real_BS, slot_BS.masked_fill(~is_vision_BS, -1), torch.cat(pixels) if pixels else None
    )
