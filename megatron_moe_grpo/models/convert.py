"""Hugging Face folder <-> Megatron checkpoint, on one process; the checkpoint loads under any parallel layout."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.errors import ConversionError
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint, save_checkpoint
from megatron_moe_grpo.models.hf_folder import (
    copy_assets,
    read_hf_config,
    read_hf_state,
    refuse_existing,
    write_hf_folder,
)
from megatron_moe_grpo.models.internvl.model import InternVLModel, build_internvl
from megatron_moe_grpo.models.registry import family_of


def import_huggingface(source: Path, out: Path) -> None:
    """Writes `out`, a Megatron checkpoint with the Hugging Face folder's weights and assets.

    Needs process groups of one process.  Raises ConversionError for keys or shapes that do not fit, or if `out` exists.
    """
    refuse_existing(out)
    hf_config = read_hf_config(source)
    model = _build(hf_config)
    converter = Converter(family_of(hf_config).weight_map(hf_config))
    load_megatron_state(model, converter.to_megatron(read_hf_state(source)))
    with tempfile.TemporaryDirectory() as assets:
        shutil.copyfile(source / "config.json", Path(assets) / "config.json")
        copy_assets(source, Path(assets))
        out.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(out, model, Path(assets), {"step": 0, "imported_from": source.name})


def export_huggingface(checkpoint: Path, out: Path) -> None:
    """Writes `out`, a stock Hugging Face folder, from a checkpoint of any parallel layout; no optimizer state."""
    refuse_existing(out)
    hf_config = read_hf_config(checkpoint / "assets")
    model = load_model(checkpoint)
    state = Converter(family_of(hf_config).weight_map(hf_config)).to_huggingface(megatron_state(model))
    write_hf_folder(out, state, hf_config, assets=checkpoint / "assets")


def load_model(checkpoint: Path) -> InternVLModel:
    """The model of a checkpoint, whole, on this process."""
    model = _build(read_hf_config(checkpoint / "assets"))
    load_checkpoint(checkpoint, model)
    return model


def load_megatron_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Fills every parameter and buffer of an unsharded `model`."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.endswith("_extra_state")]
    if missing or unexpected:
        raise ConversionError(
            "The converted weights do not fit the Megatron model.",
            got=f"missing {missing[:5]}, unexpected {unexpected[:5]}",
        )


def megatron_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of an unsharded `model`, without Megatron's bookkeeping entries."""
    return {key: value for key, value in model.state_dict().items() if not key.endswith("_extra_state")}


def _build(hf_config: dict[str, Any]) -> InternVLModel:
    architecture = family_of(hf_config).parse_architecture(hf_config)
    return build_internvl(architecture, hf_config, ParallelConfig(), "fp32")
