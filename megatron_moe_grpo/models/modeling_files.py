"""Code of ours that stock transformers needs to load an exported folder; never a file out of a model folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_moe_grpo.models.qwen2_vl.config import MOE_MODEL
from megatron_moe_grpo.models.qwen2_vl.moe_config import MODELING_FILE

MODELING_FILES: dict[str, Path] = {MOE_MODEL: MODELING_FILE}


def copy_modeling_file(config: Mapping[str, Any], folder: Path) -> None:
    """Puts the file that `config`'s `auto_map` names into `folder`; most layouts need none."""
    source = MODELING_FILES.get(config.get("model_type", ""))
    if source is not None:
        shutil.copyfile(source, folder / source.name)
