"""Weights that are not plain safetensors, or not plain numbers: each kind is refused in its own words."""

from collections.abc import Sequence
from pathlib import Path

from megatron_moe_grpo.errors import ConversionError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def refuse_adapters(folder: Path) -> None:
    """Raises ConversionError for an adapter, alone or beside a model: `from_pretrained` would add it, silently."""
    found = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if found:
        raise ConversionError(
            "The folder holds an adapter, which changes the weights of a model.",
            got=f"{folder}: {', '.join(found)}",
            expected="a model without adapters",
            remedy="merge it first: peft's `merge_and_unload()`, then `save_pretrained`",
        )


def refuse_other_formats(folder: Path) -> None:
    """Raises ConversionError that says what `folder`, which has no safetensors, has instead."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    gguf = [name for name in names if name.endswith(".gguf")]
    if pickles:
        raise ConversionError(
            "The weights are pickle files, which are never read, because they can run code.",
            got=f"{folder}: {', '.join(pickles[:5])}",
            expected="safetensors",
            remedy="in an environment you trust, load the model with transformers and "
            "`save_pretrained(folder, safe_serialization=True)`",
        )
    if gguf:
        raise ConversionError(
            "The weights are GGUF files, which hold quantised numbers under other names.",
            got=f"{folder}: {', '.join(gguf[:5])}",
            expected="safetensors",
            remedy="download the model's original safetensors folder",
        )
    raise ConversionError(
        "There are no weights here." if folder.is_dir() else "There is no such folder.",
        got=folder,
        expected="a Hugging Face model folder with safetensors",
    )


def quantised_weights(named: Sequence[str]) -> ConversionError:
    """What to raise for the tensors named."""
    return ConversionError(
        "The weights are quantised, and cannot be trained.",
        got=", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else ""),
        expected="bfloat16, float16 or float32 weights",
        remedy="download the model's unquantised version",
    )
