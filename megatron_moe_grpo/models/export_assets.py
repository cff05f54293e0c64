"""Config, tokenizer and processor files of an exported folder: the checkpoint's own, or those of the native layout."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from megatron_moe_grpo.errors import ConversionError
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of

Layout = Literal["same", "native"]


@contextmanager
def export_assets(assets: Path, layout: Layout = "same") -> Iterator[Path]:
    """The folder to export by; its `config.json` names the layout that the weights take, too.

    Args:
        assets: the checkpoint's.
        layout: `same`: that of the folder which was imported; `native`: the one that stock transformers loads.
    Raises:
        ConversionError: there is no other layout than the one the checkpoint is in.
    """
    if layout == "same":
        yield assets
        return
    config = read_hf_config(assets)
    write_native_assets = family_of(config).write_native_assets
    if write_native_assets is None:
        raise ConversionError(
            "This model has no other layout to be exported in.",
            got=f"layout native, model_type: {config.get('model_type')}",
            expected="a model in an original layout: internvl_chat",
            remedy="export it without --layout",
        )
    with tempfile.TemporaryDirectory() as folder:
        write_native_assets(assets, Path(folder))
        yield Path(folder)
