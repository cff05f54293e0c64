"""A table as a file: which cells, over which seeds, from which start.  Strict like a recipe; needs no torch."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_moe_grpo.config import load_config
from megatron_moe_grpo.config.schema import Section
from megatron_moe_grpo.errors import ConfigError

# Where a run lies and which seed it has is the experiment's own business.
SET_BY_THE_EXPERIMENT = ("name", "output_dir", "seed")


class Stage(Section):
    """A command that every cell of a seed stands on: data, a model, a dense start."""

    title: str
    """What it makes, for the reader of the output."""
    command: str
    """As typed in the repository; `{start}` is the seed's folder for all stages, `{seed}` the seed."""
    output: str
    """What exists when the command is done, so that it is not run again."""


class Setup(Section):
    """What tables share: the base recipe, and how a seed's start is made."""

    base: str
    """Recipe that every cell changes, relative to this file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of every cell, `section.key: value`; texts may hold `{start}` and `{seed}`."""
    stages: tuple[Stage, ...] = ()
    """In order."""


class Evaluation(Section):
    """One more file of questions that each cell's last checkpoint answers after training."""

    name: str
    """Heading of its results."""
    data: str
    """JSONL file of rows; may hold `{start}` and `{seed}`."""
    arguments: str = ""
    """More arguments of the verb `evaluate`."""


class PaperTable(Section):
    """The paper's own table, copied."""

    source: str
    """Paper and table number."""
    setting: str
    """Model, data and unit: why its numbers and ours differ in scale."""
    columns: tuple[str, ...]
    """In the paper's order."""
    beside: str | None
    """The column beside our held-out questions; beside a further evaluation stands the column of its name, if any."""


class Cell(Section):
    """One row of the table."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    """What this cell changes, `section.key: value`."""
    paper: tuple[float, ...] = ()
    """The paper's numbers for it, one a column; (): the paper has no such row."""
    note: str | None = None
    """Printed under the table."""
    changes_data: bool = False
    """True: this cell sees other training data, or more of it, than the one it is compared with; without it that is an
    error."""
    compare_with: str | None = None
    """Cell that the difference is taken to; None: the first; its own name: none, others are compared with this one."""


class Table(Section):
    """A table of runs."""

    title: str
    setup: str
    """File of its Setup, relative to this one."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of every cell of this table."""
    cells: tuple[Cell, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluations: tuple[Evaluation, ...] = ()
    paper: PaperTable | None = None


def load_table(path: Path) -> tuple[Table, Setup, Path]:
    """The table, its setup, and the base recipe's path.  Raises ConfigError for whatever does not fit together."""
    table = load_config(path, tree=Table)
    _refuse_doubles("cells", path, (cell.name for cell in table.cells))
    _refuse_doubles("evaluations", path, (evaluation.name for evaluation in table.evaluations))
    _refuse_doubles("seeds", path, table.seeds)
    for cell in table.cells:
        _check_cell(cell, table, path)
    if table.paper is not None and table.paper.beside not in (None, *table.paper.columns):
        raise ConfigError(
            f"`paper.beside` of {path} names no column", got=table.paper.beside, expected=list(table.paper.columns)
        )
    setup_path = path.parent / table.setup
    setup = load_config(setup_path, tree=Setup)
    for where, settings in _named_settings(table, setup):
        _refuse_own_settings(settings, where, path)
    base = (setup_path.parent / setup.base).resolve()
    return table, setup, base


def reference(table: Table, cell: Cell) -> str | None:
    """Name of the cell that `cell` is compared with; None for one that only others are compared with."""
    name = cell.compare_with or table.cells[0].name
    return None if name == cell.name else name


def select_cells(table: Table, names: Iterable[str] | None) -> list[Cell]:
    """The named cells in the table's order; None: all."""
    if names is None:
        return list(table.cells)
    wanted, known = list(names), [cell.name for cell in table.cells]
    for name in wanted:
        if name not in known:
            raise ConfigError("the table has no such cell", got=name, expected=f"one of {', '.join(known)}")
    return [cell for cell in table.cells if cell.name in wanted]


def _check_cell(cell: Cell, table: Table, path: Path) -> None:
    names = [other.name for other in table.cells]
    if cell.compare_with is not None and cell.compare_with not in names:
        raise ConfigError(
            f"cell {cell.name!r} of {path} is compared with a cell that is not there",
            got=cell.compare_with,
            expected=f"one of {', '.join(names)}",
        )
    columns = () if table.paper is None else table.paper.columns
    if cell.paper and len(cell.paper) != len(columns):
        raise ConfigError(
            f"cell {cell.name!r} of {path} does not have one number of the paper a column",
            got=list(cell.paper),
            expected=f"columns {list(columns)}, as `paper.columns` of the table says",
        )


def _named_settings(table: Table, setup: Setup) -> list[tuple[str, dict[str, Any]]]:
    cells = [(f"cell {cell.name!r}", cell.settings) for cell in table.cells]
    return [("the setup", setup.settings), ("the table", table.settings), *cells]


def _refuse_own_settings(settings: dict[str, Any], where: str, path: Path) -> None:
    for name in SET_BY_THE_EXPERIMENT:
        if name in settings:
            raise ConfigError(f"{where} of {path} sets {name}, which the experiment sets", remedy="remove it")


def _refuse_doubles(what: str, path: Path, names: Iterable[object]) -> None:
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if doubles:
        raise ConfigError(f"two {what} of {path} have one name", got=doubles[0])
