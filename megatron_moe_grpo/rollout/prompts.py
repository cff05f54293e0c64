"""Checked rows to prompts: encoded once at the start, pictures decoded once a step and never copied for a group."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import DataConfig
from megatron_moe_grpo.data.images import read_image
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.sources import LoadedRows, load_rows
from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.token_batch import TokenBatch, pad_prompts


@dataclass(frozen=True)
class EncodedRow:
    """A row with its prompt and right answer as token ids."""

    row: Row
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


def check_rows(path: str, data: DataConfig, processing: InternVLProcessing) -> LoadedRows:
    """Reads and checks every row and picture before training starts; `data.on_bad_row` decides on bad ones."""

    def problem_as_prompt(row: Row) -> str | None:
        try:
            num_tokens = len(processing.encode(row.problem, row.options, len(row.image_paths)))
        except DataError as error:
            # Returned, not raised: the reader of rows adds file, line and id.
            return str(error)
        if num_tokens <= data.max_prompt_tokens:
            return None
        return (
            f"the prompt has {num_tokens} tokens, image tokens included; data.max_prompt_tokens is "
            f"{data.max_prompt_tokens} (prompts are never truncated: raise the limit or drop the row)"
        )

    root = None if data.image_root is None else Path(data.image_root)
    return load_rows(Path(path), root, data.on_bad_row, known_problem=problem_as_prompt)


def encode_rows(rows: Sequence[Row], processing: InternVLProcessing) -> list[EncodedRow]:
    """Prompts and right answers of checked rows as token ids."""
    return [
        EncodedRow(
            row,
            tuple(processing.encode(row.problem, row.options, len(row.image_paths))),
            tuple(processing.answer_ids(row.solution)),
        )
        for row in rows
    ]


@dataclass(frozen=True, eq=False)
class PreparedPrompts:
    """One rank's prompts of a step with their pictures' pixel values; batches of any part are cut from it."""

    rows: list[EncodedRow]
    images: list[Tensor | None]
    num_positions: int
    """Positions of every prompt batch: the longest prompt of the step on any rank, padding included."""
    processing: InternVLProcessing

    def batch(self, start: int, stop: int) -> TokenBatch:
        """Prompts start..stop-1, padded on the left to `num_positions`."""
        batch = pad_prompts(
            [row.prompt_ids for row in self.rows[start:stop]],
            self.images[start:stop],
            self.processing.image_token_id,
            self.processing.num_image_tokens,
            self.processing.pad_token_id,
            self.num_positions,
        )
        return batch.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def prepare_prompts(
    rows: Sequence[EncodedRow], num_positions: int, processing: InternVLProcessing, blank_images: bool = False
) -> PreparedPrompts:
    """Decodes the rows' pictures; `blank_images` replaces each by mid-grey, for the control."""
    images: list[Tensor | None] = []
    for row in rows:
        pictures = [read_image(path) for path in row.row.image_paths]
        if blank_images:
            pictures = [picture.point(lambda _: 128) for picture in pictures]
        images.append(processing.pixel_values(pictures) if pictures else None)
    return PreparedPrompts(list(rows), images, num_positions, processing)


def padded_positions(rows: Sequence[EncodedRow], num_appended: int, multiple_of: int) -> int:
    """Longest prompt, plus padding so that prompt and `num_appended` tokens are a multiple (sequence parallelism)."""
    longest = max(len(row.prompt_ids) for row in rows)
    return longest + -(longest + num_appended) % multiple_of
