"""What is said about good folders and about bad ones."""

import json
from pathlib import Path

import pytest

from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.inspection import inspect_folder


def test_inspect_folder_describes_a_sound_folder(moe_folder: Path) -> None:
    inspection = inspect_folder(moe_folder)
    text = str(inspection)
    assert inspection.problems == [] and text.endswith("nothing is wrong")
    assert "family: internvl, text model qwen3_moe" in text
    assert "num_layers 2, hidden_size 24" in text and "num_experts 5, num_active 2, expert_ffn_size 20" in text
    # By hand: of five experts of 3 x 24 x 20 in each of two layers, three are idle.
    total = sum(weight.numel() for weight in read_hf_state(moe_folder).values())
    assert f"{total:,} parameters, {total - 2 * 3 * 3 * 24 * 20:,} active" in text
    assert f"{total * 4:,} bytes fp32, in 1 file(s)" in text
    assert "  language_model.model.layers.{0..1}.mlp.experts.{0..4}.up_proj.weight [20, 24] fp32 x 10" in text


def test_inspect_folder_goes_on_after_each_problem(dense_folder: Path, tmp_path: Path) -> None:
    state = read_hf_state(dense_folder)
    del state["language_model.lm_head.weight"]
    write_hf_folder(tmp_path / "out", state, read_hf_config(dense_folder), dense_folder)
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    inspection = inspect_folder(tmp_path / "out")
    fit, files = inspection.problems
    assert "missing: language_model.lm_head.weight [416, 96]" in fit
    assert "tokenizer.json has the wrong size" in files
    assert "family: internvl" in str(inspection) and "layers.{0..3}.mlp.up_proj.weight" in str(inspection)


def test_inspect_folder_shows_the_keys_of_a_family_it_does_not_know(dense_folder: Path, tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "out", read_hf_state(dense_folder), {"model_type": "llava"}, dense_folder)
    inspection = inspect_folder(tmp_path / "out")
    (problem,) = inspection.problems
    assert "model_type: llava" in problem and "internvl" in problem
    assert "layers.{0..3}.mlp.up_proj.weight" in str(inspection)
    assert "manifest.json: every file is as it was written" in str(inspection)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"config.json": {}},
        {"config.json": {"model_type": ["a"]}},
        {"config.json": {"model_type": "qwen2_vl", "text_config": None}},
        {"adapter_config.json": {}},
    ],
)
def test_inspect_folder_survives_anything(tmp_path: Path, content: dict[str, object]) -> None:
    for name, values in content.items():
        (tmp_path / name).write_text(json.dumps(values))
    assert inspect_folder(tmp_path).problems
    assert inspect_folder(tmp_path / "absent").problems
