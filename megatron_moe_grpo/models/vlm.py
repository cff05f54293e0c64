"""A vision-language model for Megatron: any vision encoder, a splice, and Megatron's GPTModel with our router.

Positions are batch-first in everything this module takes; Megatron's own tensors are [s, b, h].
"""

import torch
from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.mcore.layer_spec import decoder_block_spec
from megatron_moe_grpo.models.token_batch import TokenBatch


def forbidden_attention(is_real_BS: Tensor, num_queries: int | None = None) -> Tensor | None:
    """Megatron's mask [B, 1, Q, S] for the last Q positions: True where attention is forbidden (future or padding).

    None when nothing is padded and all positions ask: plain causal attention.  Padding attends to itself, so that no
    row is empty.
    """
    batch, length = is_real_BS.shape
    num_queries = num_queries or length
    if num_queries == length and bool(is_real_BS.all()):
        return None
    key = torch.arange(length, device=is_real_BS.device)
    query = key[length - num_queries :, None]
    allowed = (key <= query) & is_real_BS[:, None, :] | (key == query)
    return ~allowed.view(batch, 1, num_queries, length)


class VisionLanguageModel(MegatronModule):
    """Vision tower and projector on the first pipeline stage, GPTModel on all.

    `vision_tower` and `projector` are replicated over tensor-parallel ranks: with sequence parallelism off or on, the
    gradient that reaches the embeddings is whole on each of them, so the replicas stay equal without a reduction.
    """

    def __init__(
        self,
        config: TransformerConfig,
        sizes: DecoderSizes,
        vision_tower: nn.Module | None,
        projector: nn.Module | None,
        is_first_stage: bool,
        is_last_stage: bool,
    ):
        super().__init__(config=config)
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process, self.post_process = is_first_stage, is_last_stage
        self.share_embeddings_and_output_weights = sizes.ties_embeddings
        if is_first_stage:
            self.vision_tower, self.projector = vision_tower, projector
        self.language_model = GPTModel(
            config,
            decoder_block_spec(config),
            vocab_size=sizes.vocab_size,
            max_sequence_length=sizes.max_positions,
            pre_process=is_first_stage,
            post_process=is_last_stage,
            share_embeddings_and_output_weights=sizes.ties_embeddings,
            position_embedding_type="rope" if sizes.mrope_section is None else "mrope",
            rotary_base=sizes.rope_theta,
            # Images are spliced into whole sequences first; we scatter afterwards.
            scatter_embedding_sequence_parallel=False,
        )

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor]) -> None:
        """Hidden states from the stage before; Megatron's schedules call it."""
        self.language_model.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """The tied weight, where Megatron looks for it when it sums its gradient over the first and last stage."""
        return self.language_model.shared_embedding_or_output_weight()

    def image_features(self, batch: TokenBatch) -> Tensor:
        """Features of every vision token of the batch, [F, D], in reading order; overridden by each family."""
        raise NotImplementedError

    def forward(
        self,
        batch: TokenBatch,
        labels_BS: Tensor | None = None,
        features_FD: Tensor | None = None,
        inference_context: StaticInferenceContext | None = None,
    ) -> Tensor:
        """Negative log-likelihood of the labels [B, S] fp32, logits [B, Q, V] without labels, hidden states inside.

        `features_FD`: image features made earlier (a rollout makes them once); None: run the vision tower here.
        With `inference_context` the batch's tokens are the last Q positions and `is_real_BS` covers all S so far.
        """
        num_queries = batch.token_ids_BS.shape[1]
        hidden_SBD = self._embed(batch, features_FD) if self.pre_process else None
        return self.language_model(
            input_ids=batch.token_ids_BS,
            # Only the multimodal rotary embedding reads positions; the plain one counts from the left edge.
            position_ids=batch.rope_position_3BS,
            attention_mask=forbidden_attention(batch.is_real_BS, num_queries),
            decoder_input=hidden_SBD,
            labels=labels_BS,
            inference_context=inference_context,
            runtime_gather_output=labels_BS is None,
        )

    def _embed(self, batch: TokenBatch, features_FD: Tensor | None) -> Tensor:
        """Token embeddings with image features in their places, [S, B, D], scattered under sequence parallelism."""
        hidden_SBD = self.language_model.embedding(input_ids=batch.token_ids_BS, position_ids=None)
        if features_FD is None and batch.pixel_values is not None:
            features_FD = self.image_features(batch)
        if features_FD is not None:
            # Contiguous, or the transposed strides reach the pipeline's send, which refuses them.
            slot_SB = batch.image_slot_BS.T.contiguous()
            image_SBD = features_FD.to(hidden_SBD.dtype)[slot_SB.clamp(min=0)]
            hidden_SBD = torch.where((slot_SB >= 0).unsqueeze(-1), image_SBD, hidden_SBD)
        elif torch.is_grad_enabled():
            hidden_SBD = hidden_SBD + self._untouched_vision()
        if self.config.sequence_parallel:
            hidden_SBD = tensor_parallel.scatter_to_sequence_parallel_region(hidden_SBD)
        return hidden_SBD

    def _untouched_vision(self) -> Tensor:
        """Zero, through every vision parameter: a text-only micro-batch must still report their (zero) gradients,
        or ranks with images would wait for it in Megatron's gradient reduction."""
        parameters = [*self.vision_tower.parameters(), *self.projector.parameters()]
        return sum(parameter.flatten()[0] for parameter in parameters if parameter.requires_grad) * 0.0
