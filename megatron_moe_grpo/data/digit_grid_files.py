"""The digit grids as PNG and JSONL files, one folder a camera, in the row format users bring their own data in.

OUT/dataset.json                        seed, counts, SHA-256 of every JSONL file
OUT/<camera>/{train,test}.jsonl
OUT/<camera>/images/{train,test}/00000.png
OUT/clear/pretrain.jsonl                more grids of the train split's digits, for the dense start
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from megatron_moe_grpo.data.cameras import CAMERAS, CameraName
from megatron_moe_grpo.data.digit_grids import LETTERS, Grid, SplitName, make_grids
from megatron_moe_grpo.errors import DataError

NOISE_STREAMS: dict[SplitName, int] = {"train": 3, "test": 4, "pretrain": 6}
"""Random streams of the cameras' noise."""


def write_digit_grids(
    out: Path,
    num_train: int,
    num_test: int,
    seed: int,
    cameras: tuple[CameraName, ...] = ("clear", "washed_out", "noisy"),
    scale: int = 2,
    on_written: Callable[[], None] = lambda: None,
    num_pretrain: int = 0,
) -> None:
    """Writes the set to a folder beside `out` and renames it, so `out` is whole or absent.

    The same arguments give the same bytes.  All cameras get the same questions and grids; their noise differs.

    Args:
        scale: each source pixel becomes scale x scale pixels.
        on_written: called after every picture (for a progress bar).
        num_pretrain: grids of the `pretrain` split, clear camera only; 0: none.
    Raises:
        DataError: `out` exists, or a count, camera or scale that cannot be.
    """
    _refuse_unusable(out, num_train, num_test, cameras, scale)
    counts: dict[SplitName, int] = {"train": num_train, "test": num_test}
    unfinished = out.with_name(f"{out.name}.unfinished-{os.getpid()}")
    try:
        checksums: dict[str, str] = {}
        for split, count in counts.items():
            grids = make_grids(split, count, seed)
            for camera in cameras:
                file = _write_split(unfinished / camera, split, camera, grids, seed, scale, on_written)
                checksums[str(file.relative_to(unfinished))] = hashlib.sha256(file.read_bytes()).hexdigest()
        if num_pretrain:
            counts["pretrain"] = num_pretrain
            grids = make_grids("pretrain", num_pretrain, seed)
            file = _write_split(unfinished / "clear", "pretrain", "clear", grids, seed, scale, on_written)
            checksums[str(file.relative_to(unfinished))] = hashlib.sha256(file.read_bytes()).hexdigest()
        summary = {"seed": seed, "counts": counts, "cameras": list(cameras), "scale": scale, "sha256": checksums}
        (unfinished / "dataset.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _refuse_unusable(out: Path, num_train: int, num_test: int, cameras: tuple[CameraName, ...], scale: int) -> None:
    unknown = [camera for camera in cameras if camera not in CAMERAS]
    if unknown or not cameras or len(set(cameras)) != len(cameras):
        raise DataError(
            "cameras cannot be used",
            got=", ".join(cameras) or "none",
            expected=f"some of {', '.join(CAMERAS)}, each once",
        )
    if min(num_train, num_test, scale) < 1:
        raise DataError("counts and scale must be at least 1", got=f"{num_train} train, {num_test} test, scale {scale}")
    if out.exists():
        raise DataError(f"{out} already exists", remedy="choose another folder, or delete it first")


def _write_split(
    folder: Path,
    split: SplitName,
    camera: CameraName,
    grids: list[Grid],
    seed: int,
    scale: int,
    on_written: Callable[[], None],
) -> Path:
    """Writes one JSONL file with its pictures; returns its path."""
    (folder / "images" / split).mkdir(parents=True)
    file = folder / f"{split}.jsonl"
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        for index, grid in enumerate(grids):
            # A generator of its own for every picture: the noise does not depend on how many pictures come before.
            rng = np.random.default_rng([seed, NOISE_STREAMS[split], index])
            image = f"images/{split}/{index:05d}.png"
            _to_png(CAMERAS[camera](grid.picture, rng), scale).save(folder / image)
            lines.write(json.dumps(_record(f"{split}-{index:05d}", image, camera, grid)) + "\n")
            on_written()
    return file


def _to_png(picture: np.ndarray, scale: int) -> Image.Image:
    levels = np.rint(picture * 255).astype(np.uint8)
    return Image.fromarray(levels.repeat(scale, axis=0).repeat(scale, axis=1))


def _record(row_id: str, image: str, camera: CameraName, grid: Grid) -> dict[str, Any]:
    question = grid.question
    return {
        "id": row_id,
        "image": image,
        "problem": question.problem,
        "options": [f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=True)],
        "solution": f"<answer>{LETTERS[question.answer]}</answer>",
        "problem_type": question.kind,
        "digits": list(question.digits),
        "sources": list(grid.sources),
        "camera": camera,
    }
