"""analysis.json, read back: needs no model and no Megatron."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_moe_grpo.errors import ConfigError, DataError

NAME = "analysis.json"
FORMAT = 1


def read_analysis(folder: Path) -> Mapping[str, Any]:
    """The values of a folder's analysis.json.

    Raises ConfigError where there is none, DataError for one that cannot be read or of another format.
    """
    path = folder / NAME
    if not path.is_file():
        raise ConfigError("not the folder of an analysis", got=folder, remedy=f"make {NAME} with the verb `analyse`")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} cannot be read", got=str(error), remedy="analyse again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path} is of another format", expected=f"format {FORMAT}", remedy="analyse again")
    return values
