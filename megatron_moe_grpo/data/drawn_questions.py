"""Drawn questions as PNG and JSONL files, one folder a look, in the row format users bring their own data in.

OUT/dataset.json                                what was asked for, counts, SHA-256 of every JSONL file
OUT/<look>/{pretrain,train,test}.jsonl          open answers: a number, or one times pi
OUT/<look>/{pretrain,train,test}_choice.jsonl   the same questions and pictures with four options (counting only)
OUT/<look>/images/<split>/00000.png
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from megatron_moe_grpo.errors import DataError

LETTERS = "ABCD"


@dataclass(frozen=True)
class DrawnQuestion:
    """One row with its picture."""

    picture: Image.Image
    problem: str
    solution: str
    problem_type: str
    rationale: str
    options: tuple[str, ...] = ()
    """Candidates without letters, the solution among them; none: no row with options is written."""
    facts: tuple[tuple[str, str], ...] = ()
    """More keys of the row; readers ignore them."""


def write_drawn_set(
    out: Path, splits: Mapping[tuple[str, str], Iterable[DrawnQuestion]], summary: Mapping[str, Any]
) -> None:
    """Writes (look, split) -> questions to a folder beside `out` and renames it, so `out` is whole or absent.

    Args:
        summary: what `dataset.json` says beside counts and checksums.
    Raises:
        DataError: `out` exists.
    """
    if out.exists():
        raise DataError(f"{out} already exists", remedy="choose another folder, or delete it first")
    unfinished = out.with_name(f"{out.name}.unfinished-{os.getpid()}")
    counts: dict[str, int] = {}
    checksums: dict[str, str] = {}
    try:
        for (look, split), questions in splits.items():
            counts[f"{look}/{split}"] = _write_split(unfinished / look, split, questions)
            for file in sorted((unfinished / look).glob(f"{split}*.jsonl")):
                checksums[f"{look}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
        text = json.dumps({**summary, "counts": counts, "sha256": checksums}, indent=2)
        (unfinished / "dataset.json").write_text(f"{text}\n", encoding="utf-8")
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_split(folder: Path, split: str, questions: Iterable[DrawnQuestion]) -> int:
    """Writes one split's pictures and JSONL files; returns the number of its questions."""
    (folder / "images" / split).mkdir(parents=True)
    rows, choices = [], []
    for index, question in enumerate(questions):
        image = f"images/{split}/{index:05d}.png"
        question.picture.save(folder / image)
        row = _row(f"{split}-{index:05d}", image, question)
        rows.append(row)
        if question.options:
            choices.append(_choice(row, question))
    _write_lines(folder / f"{split}.jsonl", rows)
    if choices:
        _write_lines(folder / f"{split}_choice.jsonl", choices)
    return len(rows)


def _row(row_id: str, image: str, question: DrawnQuestion) -> dict[str, Any]:
    return {
        "id": row_id,
        "image": image,
        "problem": question.problem,
        "solution": question.solution,
        "problem_type": question.problem_type,
        "rationale": question.rationale,
        **dict(question.facts),
    }


def _choice(row: dict[str, Any], question: DrawnQuestion) -> dict[str, Any]:
    options = [f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=True)]
    letter = LETTERS[question.options.index(question.solution)]
    return {**row, "options": options, "solution": f"<answer>{letter}</answer>"}


def _write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8", newline="\n")
