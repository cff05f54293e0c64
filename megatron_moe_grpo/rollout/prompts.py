"""Checked rows to prompts: encoded once at the start, visuals decoded once a step and never copied for a group."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_moe_grpo.config.schema import DataConfig
from megatron_moe_grpo.data.prompt_templates import answer_template, answer_text, prompt_template, question_text
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.sources import LoadedRows, load_rows
from megatron_moe_grpo.data.visuals import VIDEO_FRAMES, blanked, read_visual, read_visual_size
from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.token_batch import TokenBatch, pad_prompts
from megatron_moe_grpo.models.visual_inputs import VisualInputs
from megatron_moe_grpo.rewards.judge import Judge


@dataclass(frozen=True)
class EncodedRow:
    """A row with its prompt and right answer as token ids."""

    row: Row
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    video_frames: int = VIDEO_FRAMES
    """Frames that a video was encoded with, at most."""


def check_rows(
    path: str, data: DataConfig, processing: Processing, judge: Judge | None = None, is_taught: bool = True
) -> LoadedRows:
    """Reads and checks every row and visual before training starts; `data.on_bad_row` decides on bad ones.

    Args:
        judge: what must be able to judge a response to every row; None: nothing is judged.
        is_taught: whether the rows' answers become training targets, so `data.answer_template` must fit every row.
    Raises:
        ConfigError: a template that cannot be used.  DataError: see `load_rows`.
    """
    prompt, answer = prompt_template(data.prompt_template), answer_template(data.answer_template)

    def problem_as_prompt(row: Row) -> str | None:
        try:
            num_tokens = len(_prompt_ids(row, processing, data.video_frames, prompt))
            if is_taught:
                processing.answer_ids(answer_text(answer, row))
        except DataError as error:
            # Returned, not raised: the reader of rows adds file, line and id.
            return str(error)
        if num_tokens > data.max_prompt_tokens:
            return (
                f"the prompt has {num_tokens} tokens, vision tokens included; data.max_prompt_tokens is "
                f"{data.max_prompt_tokens} (prompts are never truncated: raise the limit or drop the row)"
            )
        return judge.problem_with(row) if judge is not None else None

    return load_rows(
        path,
        None if data.image_root is None else Path(data.image_root),
        data.on_bad_row,
        known_problem=problem_as_prompt,
        video_frames=data.video_frames,
        data_format=data.format,
    )


def encode_rows(
    rows: Sequence[Row],
    processing: Processing,
    video_frames: int = VIDEO_FRAMES,
    prompts: str = "plain",
    answers: str | None = "{solution}",
) -> list[EncodedRow]:
    """Prompts and right answers of checked rows as token ids.

    Args:
        prompts: `data.prompt_template`.
        answers: `data.answer_template`; None: nothing is taught, and `answer_ids` are empty.
    Raises:
        ConfigError: a template that cannot be used.  DataError: a row that `check_rows` refuses.
    """
    prompt, answer = prompt_template(prompts), None if answers is None else answer_template(answers)
    return [
        EncodedRow(
            row,
            tuple(_prompt_ids(row, processing, video_frames, prompt)),
            () if answer is None else tuple(processing.answer_ids(answer_text(answer, row))),
            video_frames,
        )
        for row in rows
    ]


def check_and_encode(
    path: str, data: DataConfig, processing: Processing, judge: Judge, is_taught: bool
) -> tuple[LoadedRows, list[EncodedRow]]:
    """The rows of a run's file, checked, and as token ids.  Arguments and errors as for `check_rows`."""
    loaded = check_rows(path, data, processing, judge, is_taught)
    answers = data.answer_template if is_taught else None
    return loaded, encode_rows(loaded.rows, processing, data.video_frames, data.prompt_template, answers)


def _prompt_ids(row: Row, processing: Processing, video_frames: int, prompt: str) -> list[int]:
    """What a visual takes in tokens follows from its size alone, which its header tells."""
    sizes = [read_visual_size(files, video_frames) for files in row.visuals]
    return processing.encode(question_text(prompt, row), (), sizes)


@dataclass(frozen=True, eq=False)
class PreparedPrompts:
    """One rank's prompts of a step with their visuals' pixel values; batches of any part are cut from it."""

    rows: list[EncodedRow]
    visuals: list[VisualInputs | None]
    num_positions: int
    """Positions of every prompt batch: the longest prompt of the step on any rank, padding included."""
    processing: Processing

    def batch(self, start: int, stop: int) -> TokenBatch:
        """Prompts start..stop-1, padded on the left to `num_positions`."""
        rows, visuals = self.rows[start:stop], self.visuals[start:stop]
        grids = [None if visual is None else visual.grid_V3 for visual in visuals]
        batch = pad_prompts(
            [row.prompt_ids for row in rows],
            visuals,
            self.processing.vision_token_ids,
            self.processing.pad_token_id,
            self.num_positions,
            [self.processing.rope_position_3S(row.prompt_ids, grid) for row, grid in zip(rows, grids, strict=True)],
        )
        return batch.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def prepare_prompts(
    rows: Sequence[EncodedRow], num_positions: int, processing: Processing, blank_images: bool = False
) -> PreparedPrompts:
    """Decodes the rows' pictures and videos; `blank_images` replaces each frame by mid-grey, for the control."""
    visuals: list[VisualInputs | None] = []
    for row in rows:
        seen = [read_visual(files, row.video_frames) for files in row.row.visuals]
        visuals.append(processing.visual_inputs([blanked(visual) for visual in seen] if blank_images else seen))
    return PreparedPrompts(list(rows), visuals, num_positions, processing)


def check_positions(rows: Sequence[EncodedRow], max_new_tokens: int, max_positions: int) -> None:
    """Every prompt with its longest answer, taught or generated, stays within the positions the model was made for.

    Beyond them models with scaled rotary embeddings (InternVL3's `dynamic`) turn otherwise than Megatron does.

    Raises:
        ConfigError: it does not; names the row.
    """
    num_new = [max(len(row.answer_ids), max_new_tokens) for row in rows]
    index = max(range(len(rows)), key=lambda index: len(rows[index].prompt_ids) + num_new[index])
    longest = rows[index]
    if len(longest.prompt_ids) + num_new[index] > max_positions:
        raise ConfigError(
            "A prompt and its answer are longer than the model allows.",
            got=f"row {longest.row.id}: {len(longest.prompt_ids)} prompt tokens and {num_new[index]} new ones",
            expected=f"at most {max_positions} together (max_position_embeddings)",
            remedy="lower data.max_prompt_tokens with data.on_bad_row: skip, rollout.max_new_tokens, or the number of "
            "tiles or frames",
        )


def padded_positions(rows: Sequence[EncodedRow], num_appended: int, multiple_of: int) -> int:
    """Longest prompt, plus padding so that prompt and `num_appended` tokens are a multiple (sequence parallelism)."""
    longest = max(len(row.prompt_ids) for row in rows)
    return longest + -(longest + num_appended) % multiple_of
