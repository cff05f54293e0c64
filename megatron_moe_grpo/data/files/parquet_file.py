"""One parquet file, or a folder with the parquet shards of one split, read a few rows at a time."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from megatron_moe_grpo.data.files.raw_rows import RawRows
from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.errors import DataError

# Pictures lie inside the rows, so a few rows are many bytes.
ROWS_AT_ONCE = 16
# How `datasets` names shards: train-00003-of-00008.parquet.
SHARD = re.compile(r"(.+)-\d+-of-(\d+)")


def parquet_rows(source: Path) -> RawRows:
    """Rows of all shards in the order of their names, numbered through.

    Raises DataError: a folder without parquet files, with several splits or with shards missing; a damaged file; in the
    row's reader: text that is not UTF-8.
    """
    files = shards(source) if source.is_dir() else [source]
    number = 0
    for file in files:
        try:
            opened = parquet.ParquetFile(file)
            _refuse_twin_columns(opened.schema_arrow.names, file)
            for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False):
                for index in range(batch.num_rows):
                    number += 1
                    yield number, partial(_row, batch, index, RowPlace(str(source), number))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{file} cannot be read as parquet",
                got=f"{type(error).__name__}: {error}",
                expected="a whole parquet file",
                remedy="download it again; a file of another kind is named by data.format or its suffix",
            ) from error


def shards(folder: Path) -> list[Path]:
    """The folder's parquet files in order.  Raises DataError: none, several splits, or fewer than their names say."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(f"{folder} holds no parquet file", expected="train-00000-of-00001.parquet, ...")
    named = [match for file in files if (match := SHARD.fullmatch(file.stem))]
    splits = sorted({match[1] for match in named})
    if len(splits) > 1:
        raise DataError(
            f"{folder} holds several splits",
            got=", ".join(splits),
            expected="the shards of one split",
            remedy="move each split's files into a folder of its own",
        )
    if named and len(named) != int(named[0][2]):
        raise DataError(
            f"{folder} does not hold all shards of {splits[0]}",
            got=f"{len(named)} files",
            expected=f"{int(named[0][2])}, as their names say",
            remedy="download the missing ones, or rename those that shall do",
        )
    return files


def _row(batch: pyarrow.RecordBatch, index: int, place: RowPlace) -> dict[str, Any]:
    try:
        return {name: batch.column(name)[index].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        raise place.problem("row", "text that is not UTF-8", got=str(error)) from error


def _refuse_twin_columns(names: Sequence[str], file: Path) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise DataError(f"columns of {file} have the same name", got=", ".join(twins))
