"""The model families, by the `model_type` of their Hugging Face config.  To add one, copy `internvl/` and name it here
and in `build.py`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.conversion import Rule
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl.chat_assets import write_native_assets
from megatron_moe_grpo.models.internvl.config import InternVLArchitecture
from megatron_moe_grpo.models.internvl.moe_config import upcycled_config as internvl_upcycled_config
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.weight_map import weight_map as internvl_weight_map
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.qwen2_vl.config import Qwen2VLArchitecture
from megatron_moe_grpo.models.qwen2_vl.moe_config import MODELING_FILE as QWEN2_VL_MODELING_FILE
from megatron_moe_grpo.models.qwen2_vl.moe_config import upcycled_config as qwen2_vl_upcycled_config
from megatron_moe_grpo.models.qwen2_vl.processing import Qwen2VLProcessing
from megatron_moe_grpo.models.qwen2_vl.weight_map import weight_map as qwen2_vl_weight_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HfConfig = Mapping[str, Any]


class Architecture(Protocol):
    """The sizes of a checkpoint; families add their vision tower's."""

    text: DecoderSizes


@dataclass(frozen=True)
class Family:
    """What a family brings."""

    parse_architecture: Callable[[HfConfig], Architecture]
    """config.json dict -> sizes; ConfigError for what is not supported."""
    processing: type[Processing]
    """Text and visuals -> model inputs."""
    weight_map: Callable[[HfConfig], list[Rule]]
    """config.json dict -> conversion rules."""
    upcycled_config: Callable[[HfConfig, Mapping[str, Any]], dict[str, Any]]
    """A dense model's config.json dict, and what the text config shall say about experts -> the upcycled model's."""
    huggingface_class: Callable[[], "type[PreTrainedModel]"]
    """The transformers class that loads an exported folder."""
    write_native_assets: Callable[[Path, Path], None] | None = None
    """Assets of an original layout -> the files, `config.json` included, with which stock transformers runs the model,
    into an existing folder.  None: the assets are such files already."""
    modeling_file: Path | None = None
    """Code of ours that stock transformers needs to load an exported folder, and that travels with it."""
    has_own_code: bool = False
    """Its `config.json` may name Python files (`auto_map`), which this package does without."""


def _internvl_class() -> "type[PreTrainedModel]":
    from transformers import InternVLForConditionalGeneration

    return InternVLForConditionalGeneration


def _no_class_without_remote_code() -> "type[PreTrainedModel]":
    raise ConfigError(
        "transformers has no class for InternVL's original layout, and the folder's own code is never run.",
        got="model_type: internvl_chat",
        expected="model_type: internvl",
        remedy="export the checkpoint with --layout native",
    )


def _qwen2_vl_class() -> "type[PreTrainedModel]":
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration


def _qwen2_vl_moe_class() -> "type[PreTrainedModel]":
    """Our own file, not the copy of it that lies in an exported folder."""
    from megatron_moe_grpo.models.qwen2_vl.modeling_qwen2_vl_moe import Qwen2VLMoeForConditionalGeneration

    return Qwen2VLMoeForConditionalGeneration


_INTERNVL = Family(
    parse_architecture=InternVLArchitecture.from_huggingface,
    processing=InternVLProcessing,
    weight_map=internvl_weight_map,
    upcycled_config=internvl_upcycled_config,
    huggingface_class=_internvl_class,
)
_QWEN2_VL = Family(
    parse_architecture=Qwen2VLArchitecture.from_huggingface,
    processing=Qwen2VLProcessing,
    weight_map=qwen2_vl_weight_map,
    upcycled_config=qwen2_vl_upcycled_config,
    huggingface_class=_qwen2_vl_class,
)
FAMILIES: dict[str, Family] = {
    "internvl": _INTERNVL,
    "internvl_chat": replace(
        _INTERNVL,
        huggingface_class=_no_class_without_remote_code,
        write_native_assets=write_native_assets,
        has_own_code=True,
    ),
    "qwen2_vl": _QWEN2_VL,
    "qwen2_vl_moe": replace(
        _QWEN2_VL,
        huggingface_class=_qwen2_vl_moe_class,
        modeling_file=QWEN2_VL_MODELING_FILE,
        has_own_code=True,
    ),
}


def family_of(hf_config: HfConfig) -> Family:
    """The family of a `config.json` dict.

    Raises:
        ConfigError: no family of that name; the message lists those there are.  Or the model is defined by code of its
            own.
    """
    _refuse_own_code(hf_config)
    name = hf_config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(
            "This model family is not supported.",
            got=f"model_type: {name}",
            expected=f"model_type: {' or '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[name]


def _refuse_own_code(hf_config: HfConfig) -> None:
    """`auto_map` names Python files of the folder; the layouts that need none of them are exempt."""
    exempt = [name for name, family in FAMILIES.items() if family.has_own_code]
    if "auto_map" in hf_config and hf_config.get("model_type") not in exempt:
        raise ConfigError(
            "The model is defined by code of its own (auto_map), which is never imported.",
            got=f"model_type: {hf_config.get('model_type')}, auto_map: {hf_config['auto_map']}",
            expected=f"a model without auto_map, or of type {' or '.join(exempt)}, whose layout is known",
            remedy="use a version of the model in transformers' own layout (InternVL: the repositories ending in -HF)",
        )
