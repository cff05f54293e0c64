"""Hugging Face folder <-> Megatron checkpoint, on one process; the checkpoint loads under any parallel layout."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion import Converter, TensorSource
from megatron_moe_grpo.conversion.new_folder import refuse_existing
from megatron_moe_grpo.conversion.progress import progress_bar
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.conversion.tensor_bytes import source_bytes
from megatron_moe_grpo.conversion.torch_threads import torch_on_one_thread
from megatron_moe_grpo.conversion.verified_source import verified
from megatron_moe_grpo.errors import ConversionError
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint
from megatron_moe_grpo.mcore.streamed_checkpoint import MegatronCheckpoint, write_streamed_checkpoint
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.export_assets import Layout, export_assets
from megatron_moe_grpo.models.hf_folder import (
    CONFIG_FILE,
    config_in_dtype,
    copy_assets,
    read_hf_config,
    write_safetensors_folder,
)
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.vlm import VisionLanguageModel


@torch_on_one_thread()
def import_huggingface(source: Path, out: Path, is_bar_forced: bool = False) -> None:
    """Writes `out`, a Megatron checkpoint with the Hugging Face folder's weights and assets, one tensor at a time.

    Needs process groups of one process.

    Args:
        is_bar_forced: show the progress bar where there is no terminal, too.
    Raises:
        ConversionError: keys, shapes or dtypes do not fit, the disk is too full, or `out` exists.
        CheckpointError: `source` has a manifest and is not what it says.
    """
    refuse_existing(out)
    hf_config = read_hf_config(source)
    with verified(SafetensorsFolder(source), source) as huggingface, tempfile.TemporaryDirectory() as temporary:
        megatron = _converter(hf_config).to_megatron(huggingface)
        # A folder of its own: the temporary one may be read by nobody else, and the copy keeps its mode.
        assets = Path(temporary) / "assets"
        assets.mkdir()
        shutil.copyfile(source / CONFIG_FILE, assets / CONFIG_FILE)
        copy_assets(source, assets)
        state = {"step": 0, "imported_from": source.name}
        with progress_bar("import", source_bytes(megatron), is_bar_forced) as progress:
            write_streamed_checkpoint(out, megatron, lambda: _build(hf_config), assets, state, progress)


@torch_on_one_thread()
def export_huggingface(checkpoint: Path, out: Path, layout: Layout = "same", is_bar_forced: bool = False) -> None:
    """Writes `out`, a Hugging Face folder, from a checkpoint of any parallel layout; no optimizer state.

    Args:
        layout: see `export_assets`.
        is_bar_forced: show the progress bar where there is no terminal, too.
    Raises:
        ConversionError: keys, shapes or dtypes do not fit, the disk is too full, or `out` exists.
        CheckpointError: the checkpoint is not what its manifest says.
    """
    refuse_existing(out)
    with export_assets(checkpoint / "assets", layout) as assets:
        hf_config = read_hf_config(assets)
        huggingface = _converter(hf_config).to_huggingface(MegatronCheckpoint(checkpoint))
        if _was_trained(checkpoint):
            (dtype,) = set(huggingface.dtypes.values())
            hf_config = config_in_dtype(hf_config, str(dtype).removeprefix("torch."))
        with progress_bar("export", source_bytes(huggingface), is_bar_forced) as progress:
            modeling_file = family_of(hf_config).modeling_file
            write_safetensors_folder(
                out, huggingface, hf_config, assets, modeling_file=modeling_file, progress=progress
            )


def _was_trained(checkpoint: Path) -> bool:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"] > 0


def _converter(hf_config: dict[str, Any]) -> Converter:
    return Converter(family_of(hf_config).weight_map(hf_config))


def load_model(checkpoint: Path) -> VisionLanguageModel:
    """The model of a checkpoint, whole, on this process."""
    model = _build(read_hf_config(checkpoint / "assets"))
    load_checkpoint(checkpoint, model)
    return model


def load_megatron_state(model: torch.nn.Module, source: TensorSource) -> None:
    """Fills every parameter and buffer of an unsharded `model`, one tensor at a time."""
    state = megatron_state(model)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if dict(source.shapes) != expected:
        missing, unexpected = expected.items() - source.shapes.items(), source.shapes.items() - expected.items()
        raise ConversionError(
            "The converted weights do not fit the Megatron model.",
            got=f"missing {sorted(missing)[:5]}, unexpected {sorted(unexpected)[:5]}",
        )
    for name, tensor in state.items():
        tensor.copy_(source.read(name))


def megatron_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of an unsharded `model`, without Megatron's bookkeeping entries."""
    return {key: value for key, value in model.state_dict().items() if not key.endswith("_extra_state")}


def _build(hf_config: dict[str, Any]) -> VisionLanguageModel:
    return build_model(hf_config, ParallelConfig(), "fp32")
