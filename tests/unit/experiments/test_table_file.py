"""A table that cannot be run as it stands is refused before anything runs, and the message names the place."""

from pathlib import Path
from typing import Any

import pytest
from table_files import SETUP, write_table

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.experiments.table_file import load_table, select_cells

PAPER = {"source": "A paper, Table 1", "setting": "another scale", "columns": ["Avg."], "beside": "Avg."}


def test_load_table_finds_setup_and_recipe_beside_the_file(tmp_path: Path) -> None:
    table, setup, base = load_table(write_table(tmp_path))
    assert [cell.name for cell in table.cells] == ["both", "token"]
    assert setup.stages[0].output == "{start}/data"
    assert base == tmp_path / "recipe.yaml"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cell": []}, "did you mean 'cells'?"),
        ({"cells": [{"name": "a", "settngs": {}}]}, "did you mean 'settings'?"),
        ({"paper": PAPER | {"colums": []}}, "did you mean 'columns'?"),
        ({"cells": []}, "'cells' in"),
        ({"cells": [{"settings": {}}]}, "'cells.0.name' is missing"),
        ({"cells": [{"name": "a"}, {"name": "a"}]}, "two cells"),
        ({"seeds": [0, 0]}, "two seeds"),
        ({"cells": [{"name": "a", "compare_with": "b"}]}, "compared with a cell that is not there"),
        ({"cells": [{"name": "a", "settings": {"seed": 1}}]}, "sets seed"),
        ({"settings": {"output_dir": "x"}}, "sets output_dir"),
        ({"cells": [{"name": "a", "paper": [1.0]}]}, "one number of the paper a column"),
        ({"paper": PAPER, "cells": [{"name": "a", "paper": [1.0, 2.0]}]}, "one number of the paper a column"),
        ({"paper": PAPER | {"beside": "MME"}}, "names no column"),
        ({"setup": "absent.yaml"}, "does not exist"),
    ],
)
def test_load_table_refuses(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_table(write_table(tmp_path, **changes))
    assert expected in str(caught.value)


def test_load_table_names_an_unknown_key_of_a_stage(tmp_path: Path) -> None:
    stage = {**SETUP["stages"][0], "outptu": "x"}
    with pytest.raises(ConfigError, match=r"'stages\.0\.outptu'[\s\S]*did you mean 'output'"):
        load_table(write_table(tmp_path, setup_values=SETUP | {"stages": [stage]}))


def test_select_cells_keeps_the_order_of_the_table(tmp_path: Path) -> None:
    table, _, _ = load_table(write_table(tmp_path))
    assert [cell.name for cell in select_cells(table, ["token", "both"])] == ["both", "token"]
    assert select_cells(table, None) == list(table.cells)
    with pytest.raises(ConfigError, match="no such cell"):
        select_cells(table, ["gate"])
