"""Hugging Face model folders: config.json and safetensors in, the same out; nothing is unpickled or executed."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from megatron_moe_grpo.conversion.manifest import write_manifest
from megatron_moe_grpo.conversion.new_folder import new_folder
from megatron_moe_grpo.conversion.progress import Progress, no_progress
from megatron_moe_grpo.conversion.safetensors_folder import INDEX_FILE, SafetensorsFolder
from megatron_moe_grpo.conversion.safetensors_writer import write_safetensors
from megatron_moe_grpo.conversion.tensor_bytes import num_bytes_of, source_bytes
from megatron_moe_grpo.conversion.tensor_source import MemorySource, TensorSource, read_all
from megatron_moe_grpo.conversion.weight_formats import refuse_adapters, refuse_other_formats
from megatron_moe_grpo.errors import ConversionError

CONFIG_FILE = "config.json"
MAX_SHARD_BYTES = 5 * 10**9
# Copied from model to model; a closed list, so that no code travels with the weights.
ASSET_FILES = (
    "tokenizer.json",
    "tokenizer.model",
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
        ConversionError: the file is missing or is not a JSON object; the model is quantised or an adapter.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        refuse_adapters(folder)
        if not list(folder.glob("*.safetensors")):
            refuse_other_formats(folder)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(
            "config.json cannot be read.", got=f"{folder}: {error}", expected="a Hugging Face model folder"
        ) from error
    if not isinstance(config, dict):
        raise ConversionError("config.json is not a JSON object.", got=path)
    _refuse_quantisation(path, config)
    return config


def read_hf_state(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder that fits into memory.

    Raises:
        ConversionError: as SafetensorsFolder.
    """
    return read_all(SafetensorsFolder(folder))


def write_hf_folder(
    folder: Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    assets: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    modeling_file: Path | None = None,
) -> None:
    """As `write_safetensors_folder`, from weights in memory."""
    write_safetensors_folder(folder, MemorySource(state), config, assets, max_shard_bytes, modeling_file)


def write_safetensors_folder(
    folder: Path,
    source: TensorSource,
    config: Mapping[str, Any],
    assets: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    modeling_file: Path | None = None,
    progress: Progress = no_progress,
) -> None:
    """Writes a model folder as transformers would, one tensor in memory at a time; it appears whole or not at all.

    Args:
        assets: folder whose tokenizer and processor files go along, byte for byte; its config.json too, if `config`
            says the same.
        max_shard_bytes: larger models are split into shards with an index.
        modeling_file: `Family.modeling_file`, goes along; never a file of the model folder.
    Raises:
        ConversionError: `folder` exists already, or the disk is too full; before anything is written.
    """
    split = split_state_dict_into_shards_factory(
        {name: (shape, source.dtypes[name]) for name, shape in source.shapes.items()},
        get_storage_size=lambda described: num_bytes_of(*described),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    with new_folder(folder, source_bytes(source) + _asset_bytes(assets)) as unfinished:
        _write_config(unfinished, config, assets)
        copy_assets(assets, unfinished)
        if modeling_file is not None:
            shutil.copyfile(modeling_file, unfinished / modeling_file.name)
        digests = {
            file: write_safetensors(unfinished / file, source, names, progress)
            for file, names in split.filename_to_tensors.items()
        }
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (unfinished / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")
        write_manifest(unfinished, digests)


def config_in_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """`config` with every dtype that it states, sub-configs included, changed to `dtype` ("bfloat16").

    transformers' `dtype="auto"` believes the config, not the weights: fp32 weights trained from a bf16 folder would be
    rounded without a word.
    """
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            changed[key] = config_in_dtype(value, dtype)
        else:
            changed[key] = dtype if key in ("dtype", "torch_dtype") and value is not None else value
    return changed


def copy_assets(source: Path, target: Path) -> None:
    """Copies the tokenizer and processor files that `source` has."""
    for path in _asset_paths(source):
        shutil.copyfile(path, target / path.name)


def _asset_paths(folder: Path) -> list[Path]:
    return [folder / name for name in ASSET_FILES if (folder / name).is_file()]


def _asset_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _asset_paths(folder))


def _write_config(folder: Path, config: Mapping[str, Any], assets: Path) -> None:
    """The bytes of the source's own file where it says the same, so that an unchanged config stays unchanged."""
    original = assets / CONFIG_FILE
    if original.is_file() and json.loads(original.read_text(encoding="utf-8")) == config:
        shutil.copyfile(original, folder / CONFIG_FILE)
        return
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _parts(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The config and the configs of its parts, by what to call them."""
    nested = {key: value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)}
    return {"": config} | {f"{key}.": value for key, value in nested.items()}


def _refuse_quantisation(path: Path, config: Mapping[str, Any]) -> None:
    for part, values in _parts(config).items():
        quantisation = values.get("quantization_config")
        if quantisation:
            method = quantisation.get("quant_method", "") if isinstance(quantisation, dict) else quantisation
            raise ConversionError(
                "The model is quantised, and cannot be trained.",
                got=f"{path}: {part}quantization_config {method}",
                expected="bfloat16, float16 or float32 weights",
                remedy="download the model's unquantised version",
            )
