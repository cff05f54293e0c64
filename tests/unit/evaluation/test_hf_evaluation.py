"""Plain-transformers evaluation, against stock transformers calls made one row at a time."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

import megatron_moe_grpo
from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.conversion.manifest import write_manifest
from megatron_moe_grpo.errors import DataError, MoeGrpoError
from megatron_moe_grpo.evaluation import hf_evaluation
from megatron_moe_grpo.evaluation.hf_evaluation import evaluate_hf_folder
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl

NEW_TOKENS = 6
# One picture, two pictures, text only, one picture again: prompts of different lengths in one batch.
ROWS = [
    {"id": "one", "image": "a.png", "problem": "Where is the 3?", "problem_type": "where"},
    {"id": "two", "images": ["a.png", "b.png"], "problem": "How many 5s are there?", "problem_type": "count"},
    {"id": "none", "problem": "Which is the largest?", "problem_type": "largest"},
    {"id": "last", "image": "b.png", "problem": "Where is the 4 in this picture?", "problem_type": "where"},
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    sizes = TinySizes(
        vision_hidden_size=32,
        hidden_size=32,
        head_dim=16,
        heads=2,
        kv_heads=1,
        layers=2,
        ffn_size=64,
        initializer_std=0.3,
    )
    build_tiny_internvl(root / "hf", sizes, seed=3)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name)
    lines = [{"options": ["A. 3", "B. 4"], "solution": "<answer>B</answer>", **row} for row in ROWS]
    (root / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


def stock_response(root: Path, row: dict, blank: bool = False, around: str = "{question}") -> str:
    """One row, no padding, every part by transformers' own classes."""
    tokenizer = AutoTokenizer.from_pretrained(root / "hf")
    model = InternVLForConditionalGeneration.from_pretrained(root / "hf").eval()
    paths = row.get("images", [row["image"]] if "image" in row else [])
    picture = "<img>" + "<IMG_CONTEXT>" * model.config.image_seq_length + "</img>\n"
    content = picture * len(paths) + around.format(question=row["problem"] + "\nA. 3\nB. 4")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    if paths:
        images = [Image.new("RGB", (32, 32), (128, 128, 128)) if blank else Image.open(root / path) for path in paths]
        processor = GotOcr2ImageProcessorPil.from_pretrained(root / "hf")
        inputs["pixel_values"] = processor(images, return_tensors="pt")["pixel_values"]
    # Answers are text: no special token but the end of turn.
    specials = sorted(set(tokenizer.all_special_ids) - {tokenizer.eos_token_id})
    padding_rows = list(range(len(tokenizer), model.config.text_config.vocab_size))
    ids = model.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=specials + padding_rows,
    )  # fmt: skip
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_evaluate_hf_folder_answers_as_stock_calls_on_single_rows(exported: Path, batch_size: int) -> None:
    records = evaluate_hf_folder(
        exported / "hf", exported / "rows.jsonl", max_new_tokens=NEW_TOKENS, batch_size=batch_size
    )
    assert [record.id for record in records] == ["one", "two", "none", "last"]
    assert [record.problem_type for record in records] == ["where", "count", "largest", "where"]
    responses = [record.response for record in records]
    assert responses == [stock_response(exported, row) for row in ROWS]
    # The comparison means something only if the untrained model answers rows differently.
    assert len(set(responses)) == 4


def test_evaluate_hf_folder_blank_images_hides_the_pictures_only(exported: Path) -> None:
    arguments = {"max_new_tokens": NEW_TOKENS, "batch_size": 4}
    seen = evaluate_hf_folder(exported / "hf", exported / "rows.jsonl", **arguments)
    blank = evaluate_hf_folder(exported / "hf", exported / "rows.jsonl", **arguments, blank_images=True)
    assert [record.response for record in blank] == [stock_response(exported, row, blank=True) for row in ROWS]
    assert seen[0].response != blank[0].response
    assert seen[2] == blank[2]


def test_evaluate_hf_folder_marks_the_right_letter(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_evaluation, "_greedy_responses", lambda *arguments: ["A", "B", "B. 4", ""])
    records = evaluate_hf_folder(exported / "hf", exported / "rows.jsonl", max_new_tokens=1, batch_size=4)
    assert [record.is_correct for record in records] == [False, True, True, False]


def test_evaluate_hf_folder_asks_by_the_runs_template(exported: Path) -> None:
    around = "{question}\nAnswer with the option's letter from the given choices directly."
    records = evaluate_hf_folder(
        exported / "hf", exported / "rows.jsonl", max_new_tokens=NEW_TOKENS, batch_size=4, prompts="direct_letter"
    )
    responses = [record.response for record in records]
    assert responses == [stock_response(exported, row, around=around) for row in ROWS]
    assert responses != [stock_response(exported, row) for row in ROWS]


def test_evaluate_hf_folder_judges_as_it_is_told(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_evaluation, "_greedy_responses", lambda *arguments: ["It is B, I say"] * len(ROWS))
    is_correct = {}
    for extraction in ("strict", "official"):
        reward = RewardConfig(extraction=extraction)
        arguments = {"max_new_tokens": 1, "batch_size": 4, "reward": reward}
        records = evaluate_hf_folder(exported / "hf", exported / "rows.jsonl", **arguments)
        is_correct[extraction] = [record.is_correct for record in records]
    assert is_correct == {"strict": [False] * 4, "official": [True] * 4}


def test_evaluate_hf_folder_names_a_bad_row(exported: Path) -> None:
    bad = exported / "bad.jsonl"
    bad.write_text(json.dumps({**ROWS[0], "options": ["A. 3", "B. 4"], "solution": "E"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="bad.jsonl:1"):
        evaluate_hf_folder(exported / "hf", bad, max_new_tokens=1, batch_size=1)


def test_hf_evaluation_imports_nothing_of_megatron_through_any_of_our_modules() -> None:
    # Read from the source, because importing torch and transformers in a fresh process takes seconds.
    package_root = Path(megatron_moe_grpo.__file__).parent.parent
    waiting, seen = ["megatron_moe_grpo.evaluation.hf_evaluation"], set()
    while waiting:
        name = waiting.pop()
        ours = name.split(".")[0] == "megatron_moe_grpo"
        if name in seen or not ours:
            seen.add(name)
            continue
        seen.add(name)
        path = package_root.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        waiting += [parent for parent in (name.rpartition(".")[0],) if parent]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting.append(node.module)
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
    assert {"megatron_moe_grpo.data.sources", "megatron_moe_grpo.models.internvl.processing", "torch"} <= seen
    assert [name for name in seen if name.split(".")[0] == "megatron"] == []


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 8
    path.write_bytes(content)


def pickle_the_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "model.safetensors has changed"),
        (pickle_the_weights, "pickle files, which are never read"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter"),
    ],
)
def test_evaluate_hf_folder_refuses_what_transformers_would_load(
    exported: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(exported / "hf", folder)
    write_manifest(folder)
    damage(folder)
    with pytest.raises(MoeGrpoError, match=message):
        evaluate_hf_folder(folder, exported / "rows.jsonl", max_new_tokens=2, batch_size=4)
