"""Where visuals stand in a prompt, what names a model, and what makes two questions the same."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_moe_grpo.conversion.manifest import write_manifest
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.evaluation.asking import prompt_parts
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.model_identity import folder_identity
from megatron_moe_grpo.evaluation.question_digest import joined_digest, question_digest

PICTURE, OTHER = VisualFiles((Path("a.png"),)), VisualFiles((Path("b.png"),))
CLIP = VisualFiles((Path("a.mp4"),), is_video=True)


@pytest.mark.parametrize(
    ("prompt", "visuals", "parts"),
    [
        ("Which?", (), ["Which?"]),
        ("Which?", (PICTURE, OTHER), [PICTURE, OTHER, "Which?"]),
        ("<image>\nWhich?", (PICTURE,), [PICTURE, "Which?"]),
        ("On <image> or <image>?", (PICTURE, OTHER), ["On ", PICTURE, " or ", OTHER, "?"]),
        ("<video>\nor <image>", (CLIP, PICTURE), [CLIP, "or ", PICTURE]),
        # Words of the benchmark's own text: not one tag a visual, or of another kind.
        ("What does <image> mean?", (PICTURE, OTHER), [PICTURE, OTHER, "What does <image> mean?"]),
        ("What does <video> mean?", (PICTURE,), [PICTURE, "What does <video> mean?"]),
        ("What does <image> mean?", (), ["What does <image> mean?"]),
    ],
)
def test_prompt_parts(prompt: str, visuals: tuple[VisualFiles, ...], parts: list[object]) -> None:
    assert prompt_parts(Question("q", prompt, visuals, "A"), "{question}") == parts


def test_prompt_parts_puts_the_template_around() -> None:
    question = Question("q", "Which?", (PICTURE,), "A")
    assert prompt_parts(question, "Look. {question} Think.") == [PICTURE, "Look. Which? Think."]


def model_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"12345678")
    return folder


def test_folder_identity_changes_with_the_weights(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    before = folder_identity(folder, "huggingface")
    assert before == folder_identity(folder, "huggingface")
    (folder / "model.safetensors").write_bytes(b"12345679")
    os.utime(folder / "model.safetensors", ns=(0, 0))
    assert folder_identity(folder, "huggingface") != before


def test_folder_identity_is_the_manifests_where_there_is_one(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    write_manifest(folder)
    before = folder_identity(folder, "checkpoint")
    os.utime(folder / "model.safetensors", ns=(0, 0))
    assert folder_identity(folder, "checkpoint") == before
    (folder / "model.safetensors").write_bytes(b"12345679")
    write_manifest(folder)
    assert folder_identity(folder, "checkpoint") != before


def test_question_digest_is_of_content_not_of_place(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    question = Question("q", "Which?", (VisualFiles((tmp_path / "a",)),), "A", ("A. x", "B. y"))
    same = replace(question, visuals=(VisualFiles((tmp_path / "b",)),))
    assert question_digest(question) == question_digest(same)
    others = [
        replace(question, id="r"),
        replace(question, prompt="Which one?"),
        replace(question, reference="B"),
        replace(question, options=("A. y", "B. x")),
        replace(question, visuals=(VisualFiles((tmp_path / "c",)),)),
        replace(question, visuals=()),
        replace(question, missing_file="a"),
    ]
    digests = [question_digest(other) for other in [question, *others]]
    assert len(set(digests)) == len(digests)
    assert joined_digest(digests) != joined_digest(digests[::-1])


def test_question_digest_tells_parts_of_a_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"1")
    parts = [(0.0, 1.0), (1.0, 2.0), None]
    questions = [Question("q", "?", (VisualFiles((tmp_path / "a.mp4",), True, part),), "A") for part in parts]
    assert len({question_digest(question) for question in questions}) == 3
