"""Whatever layout wrote a checkpoint, its weights are read and exported alike; resharding changes the files alone."""

from pathlib import Path

import pytest
import torch
from forked_commands import run_command
from tiny_training import expect_success
from torch.distributed.checkpoint import FileSystemReader

from megatron_moe_grpo.conversion import read_all
from megatron_moe_grpo.mcore.streamed_checkpoint import OPTIMIZER_PREFIX, MegatronCheckpoint
from megatron_moe_grpo.models.convert import export_huggingface
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder

LAYOUTS: dict[str, tuple[int, int, int, int]] = {
    "tensor": (2, 1, 1, 2),
    "pipeline": (1, 2, 1, 1),
    "expert": (1, 1, 2, 1),
    "tensor_expert": (2, 1, 2, 1),
}
"""tensor, pipeline, expert, expert_tensor"""
AXES = ("--tensor", "--pipeline", "--expert", "--expert-tensor")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resharding")


@pytest.fixture(scope="module")
def huggingface(policy_folder: Path, home: Path) -> Path:
    """The tiny policy, bf16."""
    state = {key: tensor.to(torch.bfloat16) for key, tensor in read_hf_state(policy_folder).items()}
    write_hf_folder(home / "huggingface", state, read_hf_config(policy_folder), assets=policy_folder)
    return home / "huggingface"


@pytest.fixture(scope="module")
def one(huggingface: Path, home: Path) -> Path:
    """What one process imports."""
    expect_success(run_command(["import", huggingface, home / "one"], home / "log_import"))
    return home / "one"


def save_under(pairs: dict[str, tuple[Path, Path]], log: Path) -> None:
    """Each pair (from, to) is loaded and saved under the layout of that name."""
    arguments = [argument for name, pair in pairs.items() for argument in (*pair, *LAYOUTS[name])]
    expect_success(run_command(["tests/invariants/save_under.py", *arguments], log, num_ranks=2))


@pytest.fixture(scope="module")
def saved(one: Path, home: Path) -> dict[str, Path]:
    """The same weights, and an optimizer's state, written by Megatron under each layout."""
    folders = {name: home / "saved" / name for name in LAYOUTS}
    save_under({name: (one, folder) for name, folder in folders.items()}, home / "log_saved")
    return folders


@pytest.fixture(scope="module")
def resharded(saved: dict[str, Path], home: Path) -> dict[str, Path]:
    """For each layout, a checkpoint that another one wrote, resharded."""
    names = list(LAYOUTS)
    folders = {}
    for name, source in zip(names, names[1:] + names[:1], strict=True):
        folders[name] = home / "resharded" / name
        sizes = [argument for pair in zip(AXES, LAYOUTS[name], strict=True) for argument in pair]
        command = ["tools/reshard_checkpoint.py", saved[source], folders[name], *sizes, "--verify"]
        (finished,) = run_command(command, home / f"log_reshard_{name}")
        expect_success([finished])
        assert "verified: every tensor is the same, bit for bit" in finished.output
    return folders


def exported_bytes(checkpoint: Path, out: Path) -> dict[str, bytes]:
    export_huggingface(checkpoint, out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def expected_bytes(huggingface: Path, one: Path, home: Path) -> dict[str, bytes]:
    """What one process exports: the tensors that it imported."""
    expected = exported_bytes(one, home / "exported")
    imported, exported = read_hf_state(huggingface), read_hf_state(home / "exported")
    assert imported.keys() == exported.keys()
    assert all(torch.equal(tensor, exported[key]) for key, tensor in imported.items())
    return expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_exports_the_bytes_that_one_process_exports(
    layout: str, expected_bytes: dict[str, bytes], saved: dict[str, Path], tmp_path: Path
) -> None:
    assert exported_bytes(saved[layout], tmp_path / "out") == expected_bytes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_optimizer_weights_are_told_apart_from_the_model_s(layout: str, saved: dict[str, Path]) -> None:
    tensors = read_all(MegatronCheckpoint(saved[layout], has_optimizer_state=True))
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(OPTIMIZER_PREFIX)}
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert len(tensors) == 4 * len(weights)
    for name, tensor in weights.items():
        main = tensors[f"optimizer.state.param.{name}"]
        assert main.dtype == torch.float32 and main.shape == tensor.shape
        assert not torch.equal(main.to(torch.bfloat16), tensor), name


def places(checkpoint: Path) -> dict[tuple, int]:
    """(key, offsets) -> the rank whose file holds that piece."""
    storage = FileSystemReader(checkpoint / "weights").read_metadata().storage_data
    return {
        (index.fqn, None if index.offset is None else tuple(index.offset)): int(info.relative_path.split("_")[2])
        for index, info in storage.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resharded_files_are_cut_as_real_ranks_cut_theirs(
    layout: str, saved: dict[str, Path], resharded: dict[str, Path]
) -> None:
    expected = places(saved[layout])
    assert set(expected.values()) == {0, 1}
    assert places(resharded[layout]) == expected


def test_real_ranks_load_what_was_resharded(
    expected_bytes: dict[str, bytes], resharded: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    """Loaded under its layout by two processes and saved by them, it is still what was imported."""
    again = {name: (folder, home / "again" / name) for name, folder in resharded.items()}
    save_under(again, home / "log_again")
    for name, (_, folder) in again.items():
        assert exported_bytes(folder, tmp_path / name) == expected_bytes


def test_resharding_does_not_mind_where_it_came_from(saved: dict[str, Path], resharded: dict[str, Path]) -> None:
    for name, folder in resharded.items():
        ours = read_all(MegatronCheckpoint(folder, has_optimizer_state=True))
        theirs = read_all(MegatronCheckpoint(saved[name], has_optimizer_state=True))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[tensor_name], tensor) for tensor_name, tensor in theirs.items())
