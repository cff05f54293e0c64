"""Answers of a Hugging Face folder under plain transformers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from megatron_moe_grpo.evaluation.asking import Answer, AskSettings, Failure, seen
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.hf_evaluation import greedy_ids, open_model
from megatron_moe_grpo.evaluation.local_batch import LocalModel, encoded_rows
from megatron_moe_grpo.evaluation.model_identity import folder_identity
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of


class HfAnswerer:
    """Asks in batches, in file order."""

    def __init__(
        self,
        model: PreTrainedModel,
        local: LocalModel,
        settings: AskSettings,
        batch_size: int,
        identity: Mapping[str, object],
    ):
        self._model, self._local, self._settings = model, local, settings
        self._batch_size, self.identity = batch_size, identity

    def answers(self, questions: Sequence[Question], blank_images: bool) -> Iterator[Answer | Failure]:
        """See `Answerer`; nothing fails here but the whole."""
        processing = self._local.processing
        for start in range(0, len(questions), self._batch_size):
            batch = questions[start : start + self._batch_size]
            rows = encoded_rows(batch, self._local, self._settings)
            visuals = [[seen(files, self._settings, blank_images) for files in row.row.visuals] for row in rows]
            prompts = [row.prompt_ids for row in rows]
            found = greedy_ids(self._model, processing, prompts, visuals, self._settings.max_new_tokens)
            for question, ids in zip(batch, found, strict=True):
                yield Answer(question.id, processing.decode(ids), processing.eos_token_id not in ids)


def hf_answerer(folder: Path, settings: AskSettings, batch_size: int) -> HfAnswerer:
    """The folder's model, loaded.  Raises as `open_model` does."""
    model, processing = open_model(folder)
    hf_config = read_hf_config(folder)
    local = LocalModel(processing, family_of(hf_config).parse_architecture(hf_config).text.max_positions)
    return HfAnswerer(model, local, settings, batch_size, folder_identity(folder, "huggingface"))
