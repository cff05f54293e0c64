"""Answers of a Megatron checkpoint: our own engine, top-K experts, greedy tokens, one process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.evaluation.asking import Answer, Answerer, AskSettings, Failure
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.local_batch import LocalModel, encoded_rows
from megatron_moe_grpo.evaluation.model_identity import folder_identity
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel
from megatron_moe_grpo.mcore.routing_context import SelectionPolicy
from megatron_moe_grpo.models.convert import load_model
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rewards.judge import Judgement
from megatron_moe_grpo.rewards.judge import Question as JudgedQuestion
from megatron_moe_grpo.rollout.collect import StepRows, collect_rollouts
from megatron_moe_grpo.rollout.decode import DecodeSettings
from megatron_moe_grpo.rollout.records import Responses
from megatron_moe_grpo.routing.trace import RouteMode


class CheckpointAnswerer:
    """Asks in batches, in file order."""

    def __init__(
        self,
        model: VisionLanguageModel,
        local: LocalModel,
        layout: ParallelLayout,
        settings: AskSettings,
        batch_size: int,
        identity: Mapping[str, object],
    ):
        self._model, self._local, self._layout = model, local, layout
        self._settings, self._batch_size, self.identity = settings, batch_size, identity
        self._decoding = DecodeSettings(
            mode=RouteMode.TOP_K,
            policy=SelectionPolicy(),
            max_new_tokens=settings.max_new_tokens,
            end_token_id=local.processing.eos_token_id,
            suppressed_token_ids=torch.tensor(local.processing.suppressed_token_ids, device=layout.device),
        )

    def answers(self, questions: Sequence[Question], blank_images: bool) -> Iterator[Answer | Failure]:
        """See `Answerer`; nothing fails here but the whole."""
        for start in range(0, len(questions), self._batch_size):
            batch = questions[start : start + self._batch_size]
            rows = encoded_rows(batch, self._local, self._settings)
            step_rows = StepRows(rows, first_stream=0)
            found = collect_rollouts(
                self._model,
                self._layout,
                step_rows,
                self._local.processing,
                self._decoding,
                _no_judgement,
                1,
                len(rows),
                blank_images,
            )
            cut_off = _is_cut_off(found.responses, self._decoding)
            for question, text, is_cut_off in zip(batch, found.texts, cut_off, strict=True):
                yield Answer(question.id, text, is_cut_off)


@contextmanager
def checkpoint_answerer(checkpoint: Path, settings: AskSettings, batch_size: int) -> Iterator[Answerer]:
    """The checkpoint, loaded; its process groups end with the block.

    Raises:
        CheckpointError: it is not what its manifest says.
    """
    hf_config = read_hf_config(checkpoint / "assets")
    family = family_of(hf_config)
    local = LocalModel(
        family.processing.from_folder(checkpoint / "assets"),
        family.parse_architecture(hf_config).text.max_positions,
    )
    layout = start_parallel(ParallelConfig(), seed=0)
    try:
        identity = folder_identity(checkpoint, "checkpoint")
        yield CheckpointAnswerer(load_model(checkpoint), local, layout, settings, batch_size, identity)
    finally:
        stop_parallel()


def _no_judgement(response: str, question: JudgedQuestion) -> Judgement:
    """The benchmark judges."""
    return Judgement(0.0, 0.0, 0.0)


def _is_cut_off(responses: Responses, decoding: DecodeSettings) -> list[bool]:
    has_ended_B = ((responses.token_ids_BT == decoding.end_token_id) & responses.is_response_BT).any(dim=1)
    return (~has_ended_B).tolist()
