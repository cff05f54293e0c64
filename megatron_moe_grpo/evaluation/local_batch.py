"""A few questions as token ids and pixels, for the models that run in this process."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.visuals import VisualFiles, VisualSize, read_visual_size
from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.asking import AskSettings, prompt_parts
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.models.chat_prompt import ChatTurn
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.rollout.prompts import EncodedRow, check_positions


@dataclass(frozen=True)
class LocalModel:
    """What encoding needs to know of a model."""

    processing: Processing
    max_positions: int


def encoded_rows(questions: Sequence[Question], model: LocalModel, settings: AskSettings) -> list[EncodedRow]:
    """The questions as the engine takes them; what their texts spell is text, special tokens too.

    Raises:
        DataError: a visual that cannot be read.  ConfigError: a prompt with its answer is longer than the model allows.
    """
    rows = [_encoded(question, model.processing, settings) for question in questions]
    check_positions(rows, settings.max_new_tokens, model.max_positions)
    return rows


def _encoded(question: Question, processing: Processing, settings: AskSettings) -> EncodedRow:
    parts = prompt_parts(question, settings.template)
    visuals = tuple(part for part in parts if isinstance(part, VisualFiles))
    turn = ChatTurn("user", tuple(part if isinstance(part, str) else _size(part, question, settings) for part in parts))
    # The row carries the visuals; its texts are not read again.
    row = Row(question.id, question.prompt, (), question.reference, "", visuals)
    return EncodedRow(row, tuple(processing.chat_ids([turn])), (), settings.video_frames)


def _size(files: VisualFiles, question: Question, settings: AskSettings) -> VisualSize:
    try:
        return read_visual_size(files, settings.video_frames)
    except DataError as error:
        raise DataError(
            f"question {question.id}: {error.what}", got=error.got, expected=error.expected, remedy=error.remedy
        ) from error
