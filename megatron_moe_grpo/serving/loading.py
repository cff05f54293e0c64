"""A model to serve: our Megatron checkpoint, or a Hugging Face folder, on one process."""

from dataclasses import dataclass
from pathlib import Path

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.conversion.verified_source import verified
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.convert import load_megatron_state, load_model
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.vlm import VisionLanguageModel


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What the server needs of a folder."""

    model: VisionLanguageModel
    processing: Processing
    max_positions: int
    """Positions that the model was made for."""
    vocab_size: int


def load_to_serve(folder: Path, precision: str = "fp32") -> LoadedModel:
    """The folder's model; needs process groups of one process.

    Raises:
        CheckpointError, ConfigError, ConversionError: the folder is incomplete, damaged, or of no family we know.
    """
    is_checkpoint = (folder / "assets").is_dir()
    assets = folder / "assets" if is_checkpoint else folder
    hf_config = read_hf_config(assets)
    family = family_of(hf_config)
    processing = family.processing.from_folder(assets)
    if is_checkpoint:
        model = load_model(folder)
    else:
        model = build_model(hf_config, ParallelConfig(), precision, is_first_stage=True, is_last_stage=True)
        with verified(SafetensorsFolder(folder), folder) as source:
            load_megatron_state(model, Converter(family.weight_map(hf_config)).to_megatron(source))
    text = family.parse_architecture(hf_config).text
    return LoadedModel(model, processing, text.max_positions, text.vocab_size)
