"""Hugging Face model folders: config.json and safetensors in, the same out; nothing is unpickled or executed."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatron_moe_grpo.errors import ConversionError

INDEX_FILE = "model.safetensors.index.json"
# Copied from model to model; a closed list, so that no code travels with the weights.
ASSET_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)


def read_hf_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        ConversionError: the file is missing or is not a JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(
            "config.json cannot be read.", got=f"{folder}: {error}", expected="a Hugging Face model folder"
        ) from error
    if not isinstance(config, dict):
        raise ConversionError("config.json is not a JSON object.", got=folder / "config.json")
    return config


def read_hf_state(folder: Path) -> dict[str, Tensor]:
    """All weights of the folder, from one safetensors file or from the shards its index names.

    Raises:
        ConversionError: no safetensors, a missing or damaged shard, or a weight that the index names and no shard has.
    """
    key_to_file = _read_index(folder)
    names = sorted(set(key_to_file.values())) if key_to_file else ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConversionError(
            "Weight files are missing.",
            got=f"{folder} lacks {', '.join(missing)}",
            expected="safetensors (other formats are not read, because they can run code)",
        )
    state: dict[str, Tensor] = {}
    for name in names:
        try:
            state.update(load_file(folder / name))
        except (SafetensorError, OSError) as error:
            raise ConversionError(
                "A weight file is damaged.", got=f"{folder / name}: {error}", remedy="copy or download it again"
            ) from error
    lost = sorted(set(key_to_file) - set(state))
    if lost:
        raise ConversionError("Weights named by the index are in no shard.", got=", ".join(lost))
    return state


def write_hf_folder(
    folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], assets: Path, max_shard_size: str = "5GB"
) -> None:
    """Writes a model folder, whole or not at all: into a temporary folder beside it, renamed at the end.

    Args:
        assets: folder whose tokenizer and processor files go along.
        max_shard_size: larger models are split into shards with an index.
    Raises:
        ConversionError: `folder` exists already.
    """
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        unfinished.chmod(0o755)
        save_torch_state_dict(dict(state), unfinished, max_shard_size=max_shard_size)
        (unfinished / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        copy_assets(assets, unfinished)
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def refuse_existing(folder: Path) -> None:
    """Raises ConversionError if `folder` exists: nothing is ever overwritten."""
    if folder.exists():
        raise ConversionError("The output folder exists already.", got=folder, remedy="remove it or name another one")


def copy_assets(source: Path, target: Path) -> None:
    """Copies the tokenizer and processor files that `source` has."""
    for name in ASSET_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _read_index(folder: Path) -> dict[str, str]:
    """Key -> shard file, empty without an index; file names must stay inside the folder."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return {}
    try:
        key_to_file = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        outside = [name for name in key_to_file.values() if Path(name).name != name]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConversionError("The index of the weight files cannot be read.", got=f"{path}: {error!r}") from error
    if outside:
        raise ConversionError("The index names files outside the folder.", got=", ".join(outside))
    return key_to_file
