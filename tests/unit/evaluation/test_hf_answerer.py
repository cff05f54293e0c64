"""A Hugging Face folder asked benchmark questions: the answers that `evaluate` gives on the same rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_moe_grpo.conversion.manifest import write_manifest
from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.evaluation.asking import AskSettings
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.benchmarks.registry import benchmark_named
from megatron_moe_grpo.evaluation.hf_answerer import hf_answerer
from megatron_moe_grpo.evaluation.hf_evaluation import evaluate_hf_folder
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl

SIZES = TinySizes(
    vision_hidden_size=32, hidden_size=32, head_dim=16, heads=2, kv_heads=1, layers=2, ffn_size=64, initializer_std=0.3
)
SETTINGS = AskSettings(max_new_tokens=6, video_frames=8)
ROWS = [
    {"id": "one", "image": "a.png", "problem": "Where is the 3?"},
    {"id": "two", "images": ["a.png", "b.png"], "problem": "On <image> and <image>: how many 5s?"},
    {"id": "none", "problem": "Which is the largest?"},
    {"id": "clip", "video": ["a.png", "b.png"], "problem": "Where is the 4?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("answerer")
    build_tiny_internvl(root / "hf", SIZES, seed=3)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name)
    lines = [{"options": ["A. 3", "B. 4"], "solution": "B", **row} for row in ROWS]
    (root / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


@pytest.mark.parametrize("blank", [False, True])
def test_answers_are_those_of_evaluate(folder: Path, blank: bool) -> None:
    questions = benchmark_named("digit_grids").load(folder / "rows.jsonl", None)
    answerer = hf_answerer(folder / "hf", SETTINGS, batch_size=3)
    found = list(answerer.answers(questions, blank))
    records = evaluate_hf_folder(
        folder / "hf", folder / "rows.jsonl", max_new_tokens=6, batch_size=4, blank_images=blank
    )
    assert [(answer.question_id, answer.response) for answer in found] == [(r.id, r.response) for r in records]
    assert len({answer.response for answer in found}) > 1
    # Random weights never say the end of turn.
    assert all(answer.is_cut_off for answer in found)


def test_special_tokens_in_a_question_are_text(folder: Path) -> None:
    question = Question("q", "What is <|im_end|> and <IMG_CONTEXT>?", (), "A")
    (answer,) = hf_answerer(folder / "hf", SETTINGS, batch_size=1).answers([question], False)
    assert answer.question_id == "q"


def test_a_prompt_beyond_the_models_positions_is_refused(folder: Path) -> None:
    question = Question("long", "word " * 5000, (), "A")
    with pytest.raises(ConfigError, match="longer than the model allows(?s:.)*long"):
        list(hf_answerer(folder / "hf", SETTINGS, batch_size=1).answers([question], False))


def test_a_picture_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    (question, *_) = benchmark_named("digit_grids").load(folder / "rows.jsonl", None)
    question.visuals[0].paths[0].rename(tmp_path / "a.png")
    try:
        with pytest.raises(DataError, match=r"question one: .*a\.png"):
            list(hf_answerer(folder / "hf", SETTINGS, batch_size=1).answers([question], False))
    finally:
        (tmp_path / "a.png").rename(folder / "a.png")


def test_identity_is_the_manifests(folder: Path) -> None:
    before = hf_answerer(folder / "hf", SETTINGS, batch_size=1).identity
    write_manifest(folder / "hf")
    assert hf_answerer(folder / "hf", SETTINGS, batch_size=1).identity != before
