"""Answers of an exported folder under plain transformers: the check that training's engine and the export agree.

Nothing of Megatron is imported: a user who downloads the folder has no more than this.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from megatron_moe_grpo.data.images import read_image
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.evaluation.accuracy import ExampleRecord
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.rewards.multiple_choice import multiple_choice_reward

MID_GREY = 128


def evaluate_hf_folder(
    folder: Path,
    rows_file: Path,
    *,
    max_new_tokens: int,
    batch_size: int,
    blank_images: bool = False,
    image_root: Path | None = None,
) -> list[ExampleRecord]:
    """Greedy answers of `InternVLForConditionalGeneration` to every row, in file order.

    Uses the GPU where there is one, and the weights' own precision.

    Args:
        folder: Hugging Face folder: config, safetensors, tokenizer, image processor's settings.
        rows_file: JSONL file of rows.
        max_new_tokens: longest answer, end of turn included.
        batch_size: rows answered together, padded on the left.
        blank_images: every picture becomes mid-grey, as in training's own evaluation: the control that shows what the
            questions alone give away.
        image_root: folder that image paths start from; None: the folder of `rows_file`.
    Raises:
        ConfigError: an incomplete folder.  DataError: the first bad row.
    """
    processing = InternVLProcessing.from_folder(folder)
    rows = load_rows(rows_file, image_root).rows
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = InternVLForConditionalGeneration.from_pretrained(folder, dtype="auto", local_files_only=True)
    model = model.to(device).eval()
    records = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        responses = _greedy_responses(model, processing, batch, max_new_tokens, blank_images)
        records.extend(_record(row, response) for row, response in zip(batch, responses, strict=True))
    return records


@torch.inference_mode()
def _greedy_responses(
    model: InternVLForConditionalGeneration,
    processing: InternVLProcessing,
    rows: Sequence[Row],
    max_new_tokens: int,
    blank_images: bool,
) -> list[str]:
    prompts = [processing.encode(row.problem, row.options, len(row.image_paths)) for row in rows]
    input_ids_BS, is_token_BS = _left_padded(prompts, processing.pad_token_id)
    images = [read_image(path) for row in rows for path in row.image_paths]
    if blank_images:
        images = [image.point(lambda _: MID_GREY) for image in images]
    pixel_values = processing.pixel_values(images)
    # A batch without pictures must not name them at all: transformers takes neither None nor an empty tensor.
    pictures = {"pixel_values": pixel_values.to(model.device, model.dtype)} if len(pixel_values) else {}
    ids_BS = model.generate(
        input_ids=input_ids_BS.to(model.device),
        attention_mask=is_token_BS.long().to(model.device),
        **pictures,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=processing.eos_token_id,
        pad_token_id=processing.pad_token_id,
    )
    return [processing.decode(ids) for ids in ids_BS[:, input_ids_BS.shape[1] :].tolist()]


def _left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """(input_ids_BS, is_token_BS): every prompt ends in the last column."""
    num_positions = max(map(len, prompts))
    input_ids_BS = torch.tensor([[pad_token_id] * (num_positions - len(prompt)) + list(prompt) for prompt in prompts])
    lengths_B1 = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    return input_ids_BS, torch.arange(num_positions) >= num_positions - lengths_B1


def _record(row: Row, response: str) -> ExampleRecord:
    is_correct = multiple_choice_reward(response, row.solution, row.options) == 1.0
    return ExampleRecord(row.id, row.problem_type, response, is_correct)
