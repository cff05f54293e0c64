"""Answers of an exported folder under plain transformers: the check that training's engine and the export agree.

Nothing of Megatron is imported: a user who downloads the folder has no more than this.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.conversion.manifest import NAME as MANIFEST
from megatron_moe_grpo.conversion.manifest import verify_manifest
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.data.prompt_templates import prompt_template, question_text
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.data.visuals import VIDEO_FRAMES, Visual, blanked, read_visual
from megatron_moe_grpo.evaluation.accuracy import ExampleRecord
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.token_batch import pad_prompts
from megatron_moe_grpo.rewards.judge import Judge


def evaluate_hf_folder(
    folder: Path,
    rows_file: Path,
    *,
    max_new_tokens: int,
    batch_size: int,
    blank_images: bool = False,
    image_root: Path | None = None,
    video_frames: int = VIDEO_FRAMES,
    prompts: str = "plain",
    reward: RewardConfig | None = None,
) -> list[ExampleRecord]:
    """Greedy answers of the family's transformers class to every row, in file order.

    Uses the GPU where there is one, and the weights' own precision.

    Args:
        folder: Hugging Face folder: config, safetensors, tokenizer, image processor's settings.
        rows_file: rows, in any format that training reads.
        max_new_tokens: longest answer, end of turn included.
        batch_size: rows answered together, padded on the left.
        blank_images: every picture becomes mid-grey, as in training's own evaluation: the control that shows what the
            questions alone give away.
        image_root: folder that image paths start from; None: the folder of `rows_file`.
        video_frames: frames of a video that are shown, at most (`data.video_frames` of a training run).
        prompts: `data.prompt_template` of the training run.
        reward: how answers are judged; None: the defaults.
    Raises:
        ConfigError: an incomplete folder.  ConversionError: no safetensors, or an adapter.  CheckpointError: the folder
            has a manifest and is not what it says.  DataError: the first bad row.
    """
    judge, template = Judge(reward or RewardConfig()), prompt_template(prompts)
    rows = load_rows(rows_file, image_root, known_problem=judge.problem_with, video_frames=video_frames).rows
    model, processing = open_model(folder)
    records = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        visuals = [[read_visual(files, video_frames) for files in row.visuals] for row in batch]
        if blank_images:
            visuals = [[blanked(visual) for visual in of_row] for of_row in visuals]
        texts = [question_text(template, row) for row in batch]
        responses = _greedy_responses(model, processing, texts, visuals, max_new_tokens)
        records.extend(_record(row, response, judge) for row, response in zip(batch, responses, strict=True))
    return records


def open_model(folder: Path) -> tuple[PreTrainedModel, Processing]:
    """The folder's model, on the GPU where there is one, and its processing.

    Raises:
        ConfigError: an incomplete folder.  ConversionError: no safetensors, or an adapter.  CheckpointError: the folder
            has a manifest and is not what it says.
    """
    family = family_of(read_hf_config(folder))
    # transformers would load pickles and adapters without a word, and does not know our manifest.
    SafetensorsFolder(folder)
    if (folder / MANIFEST).is_file():
        verify_manifest(folder)
    processing = family.processing.from_folder(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = family.huggingface_class().from_pretrained(
        folder, dtype="auto", local_files_only=True, use_safetensors=True
    )
    return model.to(device).eval(), processing


@torch.inference_mode()
def greedy_ids(
    model: PreTrainedModel,
    processing: Processing,
    prompts: Sequence[Sequence[int]],
    visuals: Sequence[Sequence[Visual]],
    max_new_tokens: int,
) -> list[list[int]]:
    """Token ids of each prompt's answer, end of turn and padding included."""
    inputs = [processing.visual_inputs(of_row) for of_row in visuals]
    batch = pad_prompts(prompts, inputs, processing.vision_token_ids, processing.pad_token_id).to(model.device)
    ids_BS = model.generate(
        **_in_precision(processing.huggingface_inputs(batch), model.dtype),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=processing.eos_token_id,
        pad_token_id=processing.pad_token_id,
        # As our own engine decodes: an answer holds no image placeholders.
        suppress_tokens=list(processing.suppressed_token_ids),
    )
    return ids_BS[:, batch.token_ids_BS.shape[1] :].tolist()


def _greedy_responses(
    model: PreTrainedModel,
    processing: Processing,
    questions: Sequence[str],
    visuals: Sequence[Sequence[Visual]],
    max_new_tokens: int,
) -> list[str]:
    prompts = [
        processing.encode(question, (), [visual.size for visual in of_row])
        for question, of_row in zip(questions, visuals, strict=True)
    ]
    return [processing.decode(ids) for ids in greedy_ids(model, processing, prompts, visuals, max_new_tokens)]


def _in_precision(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Pixel values in the weights' precision, ids and masks as they are."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def _record(row: Row, response: str, judge: Judge) -> ExampleRecord:
    return ExampleRecord(row.id, row.problem_type, response, judge(response, row).is_correct)
