"""A checkpoint that was streamed is the one that Megatron would have written, and appears whole or not at all."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_work import exit_code_of
from tiny_checkpoints import ALONE, build_model, import_alone
from torch.distributed.checkpoint import FileSystemReader

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion import Converter, MemorySource, TensorSource, read_all
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.errors import CheckpointError, ConversionError
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint, save_checkpoint
from megatron_moe_grpo.mcore.imagined_ranks import imagined_rank
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel
from megatron_moe_grpo.mcore.shard_writer import BYTES_AROUND_A_SHARD
from megatron_moe_grpo.mcore.streamed_checkpoint import MegatronCheckpoint, write_streamed_checkpoint
from megatron_moe_grpo.models.convert import load_megatron_state, megatron_state
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of

# Of two layers with four experts: `_extra_state` of two attention projections and two an expert.
NUM_OBJECTS = 2 * (2 + 2 * 4)
FILES = ("weights/__0_0.distcp", "weights/.metadata.tmp", "weights/metadata.json", "state.json", "manifest.json")


def megatron_source(folder: Path) -> TensorSource:
    converter = Converter(family_of(read_hf_config(folder)).weight_map(read_hf_config(folder)))
    return converter.to_megatron(SafetensorsFolder(folder))


@pytest.fixture(scope="module")
def megatron_written(moe_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights through a whole model in memory and Megatron's own writer."""
    out = tmp_path_factory.mktemp("megatron") / "checkpoint"
    start_parallel(ParallelConfig(), seed=0)
    model = build_model(moe_source, "bf16")
    load_megatron_state(model, megatron_source(moe_source))
    save_checkpoint(out, model, moe_source, {"step": 0})
    stop_parallel()
    return out


def contents(checkpoint: Path) -> dict[str, Any]:
    """What `.metadata` says, without where in which file."""
    described = {}
    for key, value in FileSystemReader(checkpoint / "weights").read_metadata().state_dict_metadata.items():
        if hasattr(value, "chunks"):
            chunks = {(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in value.chunks}
            described[key] = (tuple(value.size), value.properties, chunks)
        else:
            described[key] = "not a tensor"
    return described


def test_streamed_is_cut_and_named_as_megatron_does(moe_checkpoint: Path, megatron_written: Path) -> None:
    assert contents(moe_checkpoint) == contents(megatron_written)
    common = [torch.load(folder / "weights/common.pt") for folder in (moe_checkpoint, megatron_written)]
    assert common[0] == common[1]
    metadata = [(folder / "weights/metadata.json").read_text() for folder in (moe_checkpoint, megatron_written)]
    assert metadata[0] == metadata[1]


def test_each_reader_gives_what_the_other_writer_was_given(
    moe_source: Path, moe_checkpoint: Path, megatron_written: Path
) -> None:
    expected = read_all(megatron_source(moe_source))
    for checkpoint in (moe_checkpoint, megatron_written):
        source = MegatronCheckpoint(checkpoint)
        given = read_all(source)
        assert given.keys() == expected.keys() == source.shapes.keys()
        for name, tensor in given.items():
            assert tensor.dtype == source.dtypes[name] == torch.bfloat16
            assert tuple(tensor.shape) == source.shapes[name]
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_megatron_loads_a_streamed_checkpoint(precision: str, moe_source: Path, moe_checkpoint: Path) -> None:
    start_parallel(ParallelConfig(), seed=0)
    model = build_model(moe_source, precision)
    state = load_checkpoint(moe_checkpoint, model)
    stop_parallel()
    assert state == {"step": 0, "imported_from": "internvl_moe", "has_optimizer": False}
    expected = read_all(megatron_source(moe_source))
    for name, tensor in megatron_state(model).items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


def test_several_files_hold_the_same(
    moe_source: Path, moe_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_moe_grpo.mcore.shard_writer.MAX_FILE_BYTES", 100_000)
    many = import_alone(moe_source, tmp_path / "many")
    sizes = {path.name: path.stat().st_size for path in (many / "weights").glob("*.distcp")}
    assert len(sizes) > 5 and f"__0_{len(sizes) - 1}.distcp" in sizes
    one, other = MegatronCheckpoint(moe_checkpoint), MegatronCheckpoint(many)
    assert list(one.shapes) == list(other.shapes)
    assert all(torch.equal(one.read(name), other.read(name)) for name in one.shapes)


def test_streaming_reports_every_byte_and_writes_hardly_more(moe_source: Path, tmp_path: Path) -> None:
    reported: list[int] = []
    source = megatron_source(moe_source)
    stream(moe_source, source, tmp_path / "out", reported.append)
    num_bytes = sum(tensor.nbytes for tensor in read_all(source).values())
    assert sum(reported) == num_bytes
    written = sum(path.stat().st_size for path in (tmp_path / "out/weights").iterdir())
    # What the disk is asked for beforehand; objects that are not tensors take 1.3 KB each.
    assert num_bytes < written < num_bytes + BYTES_AROUND_A_SHARD * len(reported) + 1400 * NUM_OBJECTS


def stream(folder: Path, source: TensorSource, out: Path, progress: Callable[[int], object]) -> None:
    with imagined_rank(ALONE, rank=0, world_size=1):
        write_streamed_checkpoint(out, source, lambda: build_model(folder), folder, {"step": 0}, progress)


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
def test_weights_of_another_model_are_refused_before_anything_is_written(
    change: str, moe_source: Path, tmp_path: Path
) -> None:
    tensors = read_all(megatron_source(moe_source))
    name = "language_model.decoder.layers.1.mlp.router.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["lora"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:-1]
    with pytest.raises(ConversionError, match="lora" if change == "unexpected" else name):
        stream(moe_source, MemorySource(tensors), tmp_path / "out", lambda num_bytes: None)
    assert list(tmp_path.iterdir()) == []


def kill_at(moment: str) -> None:
    """SIGKILL to this process as soon as the file of that name is opened, or the folder is to get its name."""

    def watch(event: str, arguments: tuple) -> None:
        is_file = event == "open" and isinstance(arguments[0], str | os.PathLike) and moment in FILES
        is_opened = is_file and os.fspath(arguments[0]).endswith(f".unfinished/{moment}")
        is_renamed = event == moment == "os.rename" and os.fspath(arguments[1]).endswith("/out")
        if is_opened or is_renamed:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


@pytest.mark.parametrize("moment", [*FILES, "first tensor", "last tensor", "os.rename"])
def test_a_killed_import_leaves_no_checkpoint(moment: str, moe_source: Path, tmp_path: Path) -> None:
    source, out = megatron_source(moe_source), tmp_path / "out"
    names = list(source.shapes)

    class KillingSource:
        shapes, dtypes = source.shapes, source.dtypes

        def read(self, name: str) -> torch.Tensor:
            if name == {"first tensor": names[0], "last tensor": names[-1]}.get(moment):
                os.kill(os.getpid(), signal.SIGKILL)
            return source.read(name)

    def killed() -> None:
        kill_at(moment)
        stream(moe_source, KillingSource(), out, lambda num_bytes: None)

    assert exit_code_of(killed) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    if moment != "os.rename":
        with pytest.raises(CheckpointError, match="not a complete checkpoint"):
            MegatronCheckpoint(tmp_path / ".out.unfinished")
