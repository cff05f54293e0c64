"""Small files in the forms in which benchmarks are handed out: pandas' TSV, parquet with pictures, JSON, clips."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
from PIL import Image
from video_clips import flat_frames, write_clip

from megatron_moe_grpo.evaluation.benchmarks.benchmark import Benchmark, Question, Score
from megatron_moe_grpo.rewards.answer_format import Extraction


def png(grey: int = 100) -> bytes:
    """A picture of noise around a grey level: long enough in base64 to be no index."""
    noise = np.random.default_rng(grey).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def base64_png(grey: int = 100) -> str:
    """The same as a TSV cell."""
    return base64.b64encode(png(grey)).decode()


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """As VLMEvalKit's tables are written."""
    pandas.DataFrame(list(rows)).to_csv(path, sep="\t", index=False)
    return path


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """As `datasets` writes them: `image` is bytes with a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list([dict(row) for row in rows])
    if "image" in table.column_names:
        table = table.cast_column("image", datasets.Image())
    table.to_parquet(path)
    return path


def write_json(path: Path, value: Any) -> Path:
    """One JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_video(path: Path, num_frames: int = 4) -> Path:
    """A clip of 25 frames a second, each frame of its own grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, flat_frames(num_frames))


def scores_of(
    benchmark: Benchmark, questions: Sequence[Question], responses: Sequence[str], extraction: Extraction
) -> dict[str, Score]:
    """The benchmark's table for these responses, by name."""
    is_correct = {
        question.id: benchmark.is_correct(question, response, extraction)
        for question, response in zip(questions, responses, strict=True)
    }
    return {score.name: score for score in benchmark.score(questions, is_correct)}


def values_of(scores: Mapping[str, Score]) -> dict[str, float]:
    """Only the numbers."""
    return {name: score.value for name, score in scores.items()}
