"""A native InternVL3 (Qwen2.5 text) through the tools: upcycled in some layers, imported, described, exported."""

import json
from pathlib import Path

import torch
from forked_commands import run_command
from tiny_internvl3 import write_tiny_internvl3
from tiny_training import TinyStart, expect_success
from transformers import AutoModelForImageTextToText

from megatron_moe_grpo.conversion.manifest import verify_manifest
from megatron_moe_grpo.models.hf_folder import read_hf_state


def test_an_upcycled_internvl3_goes_through_the_tools(start: TinyStart, tmp_path: Path) -> None:
    dense, moe, checkpoint, exported = (tmp_path / name for name in ("dense", "moe", "checkpoint", "exported"))
    write_tiny_internvl3(dense, start.dense)
    upcycle = ["tools/upcycle_checkpoint.py", dense, moe, "--num-experts", 4, "--granularity", 2, "--layers", "0,2"]
    convert = "tools/convert_checkpoint.py"
    commands: list[list[object]] = [
        upcycle, [convert, "--inspect", moe], [convert, "import", moe, checkpoint],
        [convert, "--inspect", checkpoint], [convert, "export", checkpoint, exported],
    ]  # fmt: skip
    finished = [run_command(command, tmp_path / f"log_{number}") for number, command in enumerate(commands)]
    for ranks in finished:
        expect_success(ranks)
    for ranks in (finished[1], finished[3]):
        assert "num_experts 4, num_active 2, expert_ffn_size 12" in ranks[0].output
        assert "nothing is wrong" in ranks[0].output
    assert "layers.{0,2}.mlp.shared_expert_gate.weight [1, 40] fp32 x 2" in finished[1][0].output
    assert "shared_expert" not in finished[3][0].output
    verify_manifest(exported)
    before, after = read_hf_state(moe), read_hf_state(exported)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((exported / "config.json").read_text()) == json.loads((moe / "config.json").read_text())
    _, loading = AutoModelForImageTextToText.from_pretrained(exported, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
