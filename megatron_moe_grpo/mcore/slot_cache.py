"""A key-value cache that sequences join and leave between tokens, on Megatron's static inference context.

One sequence is one column.  All columns end at the same position and are padded on the left, as in `CachedForward`.
Megatron 0.16.1 keeps keys before their rotation and turns all of them anew in each forward (megatron/core/transformer/
attention.py, `_adjust_key_value_for_inference`, cuts `k_pos_emb` for the whole cache), so a column may move up or down:
only the distance of two positions counts.
"""

from typing import Any

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor


class SlotCache:
    """Forward passes of whatever sequences are there; on one process, inside `decoding_mode`."""

    def __init__(self, model: torch.nn.Module, num_slots: int, max_positions: int):
        """
        Args:
            num_slots: most sequences at a time.
            max_positions: longest prompt with its response.  Memory for both is taken at the first forward and kept.
        """
        self._model = model
        self._context = StaticInferenceContext(num_slots, max_positions)
        self.num_sequences = 0
        self.num_positions = 0
        """Of every sequence, padding included."""

    def join(self, batch: Any, features_FD: Tensor | None) -> Tensor:
        """Prompts become the last sequences; logits of their last position, [new B, V] fp32.

        Args:
            batch: a TokenBatch, padded on the left to `num_positions`; to any length where no sequence is there.
        """
        num_new, num_positions = batch.token_ids_BS.shape
        assert num_positions == self.num_positions or self.num_sequences == 0, "prompts of another length"
        self._context.enable_prefill_mode()
        self._context.sequence_len_offset, self._context.batch_size_offset = 0, self.num_sequences
        logits_BQV = self._model(batch, features_FD=features_FD, inference_context=self._context)
        self.num_sequences, self.num_positions = self.num_sequences + num_new, num_positions
        return logits_BQV[:, -1].float()

    def step(self, batch: Any) -> Tensor:
        """One more token for every sequence; logits [B, V] fp32.

        Args:
            batch: a TokenBatch of the new tokens whose `is_real_BS` covers all positions so far.
        """
        self._context.enable_decode_mode()
        self._context.sequence_len_offset, self._context.batch_size_offset = self.num_positions, 0
        logits_BQV = self._model(batch, features_FD=None, inference_context=self._context)
        self.num_positions += 1
        return logits_BQV[:, -1].float()

    def keep(self, index_B: Tensor) -> None:
        """Only these sequences stay, in this order."""
        for memory in self._memories():
            memory[: self.num_positions, : len(index_B)] = memory[: self.num_positions, index_B]
        self.num_sequences = len(index_B)

    def move_to(self, num_positions: int) -> None:
        """All sequences end at another position; what falls off the left edge has to be padding."""
        by = num_positions - self.num_positions
        if by == 0:
            return
        start = max(-by, 0)
        for memory in self._memories():
            moved = memory[start : self.num_positions, : self.num_sequences].clone()
            if by > 0:
                # Padding is masked; what memory held there before might be no number, and 0 times that is none.
                memory[:by, : self.num_sequences] = 0
            memory[start + by : num_positions, : self.num_sequences] = moved
        self.num_positions = num_positions

    def _memories(self) -> list[Tensor]:
        return [memory for pair in self._context.key_value_memory_dict.values() for memory in pair]
