"""Incremental forward passes with Megatron's static key-value cache, through pipeline stages where there are any."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from megatron_moe_grpo.mcore.parallel import ParallelLayout


@contextmanager
def decoding_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or sequence parallelism (a decode step has one position, not a multiple of tp).

    Not Megatron's `set_model_to_sequence_parallel`: switching back, it would also turn on the scattering inside the
    embedding (we scatter after images are spliced in), and it finds modules by the id of a model that may be gone.
    """
    was_training, was_sequence_parallel = model.training, model.config.sequence_parallel
    scattering = [module for module in model.modules() if vars(module).get("sequence_parallel", False)]
    model.eval()
    _set_sequence_parallel(model, scattering, False)
    try:
        with torch.no_grad():
            yield
    finally:
        _set_sequence_parallel(model, scattering, was_sequence_parallel)
        model.train(was_training)


def _set_sequence_parallel(model: torch.nn.Module, scattering: list[torch.nn.Module], is_on: bool) -> None:
    model.config.sequence_parallel = is_on
    for module in scattering:
        module.sequence_parallel = is_on


class CachedForward:
    """One batch's forward passes, prompt first, then token by token.

    Prompts are padded on the left: Megatron's rotary embedding counts positions from the left edge of the batch, and
    only relative positions matter, so left padding is exact and right padding would not be.
    """

    def __init__(self, model: torch.nn.Module, layout: ParallelLayout, num_sequences: int, max_positions: int):
        self._model, self._layout = model, layout
        self._cache = StaticInferenceContext(num_sequences, max_positions)

    def __call__(self, batch: Any, features_FD: Tensor | None) -> Tensor:
        """Logits of the last position, [B, V] fp32, on every pipeline stage.

        `batch`: a TokenBatch whose tokens are the new ones and whose `is_real_BS` covers all positions so far.
        """
        num_sequences, num_queries = batch.token_ids_BS.shape
        if not self._layout.is_first_stage:
            self._model.set_input_tensor(self._receive_hidden(num_queries, num_sequences))
        output = self._model(batch, features_FD=features_FD, inference_context=self._cache)
        self._cache.increment_sequence_len_offset(num_queries)
        self._cache.enable_decode_mode()
        return self._share_logits(output, num_sequences)

    def _receive_hidden(self, num_queries: int, num_sequences: int) -> Tensor:
        config = self._model.config
        hidden = torch.empty(
            num_queries, num_sequences, config.hidden_size, dtype=config.pipeline_dtype, device=_device()
        )
        dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        return hidden

    def _share_logits(self, output: Tensor, num_sequences: int) -> Tensor:
        layout = self._layout
        if not layout.is_last_stage:
            dist.send(output.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
        if layout.pipeline_size == 1:
            return output[:, -1].float()
        vocabulary = self._model.language_model.vocab_size
        logits_BV = torch.empty(num_sequences, vocabulary, device=_device())
        if layout.is_last_stage:
            logits_BV.copy_(output[:, -1])
        return layout.from_last_stage(logits_BV)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
