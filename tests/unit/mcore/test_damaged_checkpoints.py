"""What is wrong with a checkpoint is said by the name of the file, by whatever reads it, before anything is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoints import import_alone, write_kind

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.errors import CheckpointError, MoeGrpoError
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.resharding import Resharding
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.convert import export_huggingface
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.vlm import VisionLanguageModel

SHARD = "weights/__0_0.distcp"
FILES = (
    SHARD,
    "weights/.metadata",
    "weights/common.pt",
    "weights/metadata.json",
    "state.json",
    "assets/config.json",
    "assets/tokenizer.json",
)


def export(checkpoint: Path, out: Path) -> None:
    export_huggingface(checkpoint, out)


def reshard(checkpoint: Path, out: Path) -> None:
    parallel = ParallelConfig(tensor=2)

    def build_stage(layout: ParallelLayout) -> VisionLanguageModel:
        config = read_hf_config(checkpoint / "assets")
        return build_model(config, parallel, "fp32", layout.is_first_stage, layout.is_last_stage)

    Resharding(checkpoint, parallel, build_stage).write(out)


READERS: dict[str, Callable[[Path, Path], None]] = {"export": export, "reshard": reshard}


@pytest.fixture
def damaged(moe_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(moe_checkpoint, tmp_path / "damaged"))


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another model."""
    folder = tmp_path_factory.mktemp("other")
    return import_alone(write_kind("internvl_dense", folder), folder / "checkpoint")


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def refused(read: Callable[[Path, Path], None], checkpoint: Path) -> str:
    """The message; nothing new stands beside the checkpoint."""
    with pytest.raises(MoeGrpoError) as caught:
        read(checkpoint, checkpoint.parent / "out")
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    return str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_refused_by_the_name_of_the_file(reader: str, file: str, damaged: Path) -> None:
    num_bytes = (damaged / file).stat().st_size
    for place in (0, num_bytes // 2, num_bytes - 1):
        flip_bit(damaged / file, place)
        message = refused(READERS[reader], damaged)
        # A config.json that is no JSON any more is noticed even earlier.
        assert f"{file} has changed" in message or "config.json cannot be read" in message
        flip_bit(damaged / file, place)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_missing_or_short_is_refused_by_its_name(reader: str, damaged: Path, other_checkpoint: Path) -> None:
    read, shard, manifest = READERS[reader], damaged / SHARD, damaged / "manifest.json"
    whole, listed = shard.read_bytes(), manifest.read_text(encoding="utf-8")
    shard.write_bytes(whole[: len(whole) // 2])
    assert f"{SHARD} has the wrong size" in refused(read, damaged)
    shard.write_bytes(b"")
    assert "got:      0 bytes" in refused(read, damaged)
    shard.unlink()
    assert f"no {SHARD}" in refused(read, damaged)
    shard.write_bytes(whole)
    manifest.unlink()
    assert "damaged is not a complete checkpoint" in refused(read, damaged)
    shutil.copyfile(other_checkpoint / "manifest.json", manifest)
    assert "has the wrong size" in refused(read, damaged)
    manifest.write_text(listed.replace(SHARD, "weights/other.distcp"), encoding="utf-8")
    assert f"files that it was not written with\n  got:      {SHARD}" in refused(read, damaged)
    manifest.write_text(listed[:100], encoding="utf-8")
    assert "manifest.json is damaged" in refused(read, damaged)
    manifest.write_text(listed, encoding="utf-8")
    read(damaged, damaged.parent / "out")


@pytest.mark.parametrize("reader", READERS)
def test_a_shard_that_the_manifest_does_not_name_is_not_read(reader: str, damaged: Path) -> None:
    manifest = damaged / "manifest.json"
    lines = manifest.read_text(encoding="utf-8")
    start = lines.index(f'  "{SHARD}"')
    end = lines.index("},", start) + 2
    manifest.write_text(lines[:start] + lines[end:], encoding="utf-8")
    assert f"files that it was not written with\n  got:      {SHARD}" in refused(READERS[reader], damaged)


@pytest.mark.parametrize(("ties_embeddings", "key"), [(False, "mlp.linear_fc1.weight"), (True, "output_layer.weight")])
def test_a_checkpoint_of_another_model_is_not_resharded(
    ties_embeddings: bool, key: str, moe_checkpoint: Path, other_checkpoint: Path
) -> None:
    """A model that wants other weights, and one that wants fewer."""
    config = read_hf_config((moe_checkpoint if ties_embeddings else other_checkpoint) / "assets")
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = ties_embeddings

    def build_stage(layout: ParallelLayout) -> VisionLanguageModel:
        return build_model(config, ParallelConfig(), "fp32")

    with pytest.raises(CheckpointError, match=rf"holds other weights(?s:.*){key}"):
        Resharding(moe_checkpoint, ParallelConfig(), build_stage)
