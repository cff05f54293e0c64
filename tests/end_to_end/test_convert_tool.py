"""The tool from the command line: a folder goes in and comes back, is described, and is refused in one sentence."""

import shutil
from pathlib import Path

import pytest
import torch
from forked_commands import Finished, run_command
from tiny_training import TinyStart

from megatron_moe_grpo.conversion import read_all
from megatron_moe_grpo.conversion.manifest import write_manifest
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder

TOOL = "tools/convert_checkpoint.py"


def run_tool(log: Path, *arguments: object) -> Finished:
    (finished,) = run_command([TOOL, *arguments], log)
    return finished


def test_a_folder_comes_back_unchanged_and_is_described(start: TinyStart, tmp_path: Path) -> None:
    folder, checkpoint, exported = start.moe, tmp_path / "checkpoint", tmp_path / "exported"
    imported = run_tool(tmp_path / "1", "import", folder, checkpoint, "--progress")
    assert imported.exit_code == 0 and f"written: {checkpoint}" in imported.output, imported.output
    assert "import: 100%" in imported.output
    described = run_tool(tmp_path / "2", "--inspect", checkpoint)
    assert described.exit_code == 0, described.output
    assert f"{checkpoint}: Megatron checkpoint after step 0, without optimizer state" in described.output
    assert "mlp.experts.local_experts.{0..7}.linear_fc1.weight" in described.output
    assert "nothing is wrong" in described.output
    again = run_tool(tmp_path / "3", "export", checkpoint, exported)
    assert again.exit_code == 0 and "export: " not in again.output, again.output
    before, after = (read_all(SafetensorsFolder(path)) for path in (folder, exported))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    for path in exported.iterdir():
        if path.suffix != ".safetensors" and path.name != "manifest.json":
            assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_a_flipped_bit_is_found_before_the_checkpoint_gets_its_name(start: TinyStart, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(start.moe, folder)
    damaged = bytearray((folder / "model.safetensors").read_bytes())
    damaged[-100] ^= 8
    (folder / "model.safetensors").write_bytes(damaged)
    imported = run_tool(tmp_path / "1", "import", folder, tmp_path / "checkpoint")
    assert imported.exit_code == 1 and "model.safetensors has changed since it was written" in imported.output
    assert "Traceback" not in imported.output and not (tmp_path / "checkpoint").exists()
    described = run_tool(tmp_path / "2", "--inspect", folder)
    assert described.exit_code == 1 and "problem: " in described.output and "has changed" in described.output


def test_a_flipped_bit_is_not_upcycled(start: TinyStart, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    shutil.copytree(start.dense, dense)
    write_manifest(dense)
    damaged = bytearray((dense / "model.safetensors").read_bytes())
    damaged[-100] ^= 8
    (dense / "model.safetensors").write_bytes(damaged)
    (finished,) = run_command(["tools/upcycle_checkpoint.py", dense, tmp_path / "moe"], tmp_path / "log")
    assert finished.exit_code == 1 and "model.safetensors has changed since it was written" in finished.output
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize("arguments", [[], ["--inspect", "x", "import", "y", "z"], ["convert"]])
def test_a_wrong_command_is_explained(tmp_path: Path, arguments: list[str]) -> None:
    finished = run_tool(tmp_path / "log", *arguments)
    assert finished.exit_code == 2 and "usage:" in finished.output
