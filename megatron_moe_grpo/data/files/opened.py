"""From what `data.train` says to raw rows: which kind of file it is."""

from pathlib import Path

from megatron_moe_grpo.config.schema import DataFormat
from megatron_moe_grpo.data.files.json_file import json_rows
from megatron_moe_grpo.data.files.parquet_file import parquet_rows
from megatron_moe_grpo.data.files.raw_rows import RawRows
from megatron_moe_grpo.data.files.saved_dataset import HUB_PREFIX, hub_rows, saved_rows
from megatron_moe_grpo.data.files.tsv_file import tsv_rows
from megatron_moe_grpo.errors import DataError

READERS = {"jsonl": json_rows, "parquet": parquet_rows, "tsv": tsv_rows, "saved_dataset": saved_rows}
SUFFIXES = {".parquet": "parquet", ".tsv": "tsv"}


def raw_rows(source: str, data_format: DataFormat = "auto") -> RawRows:
    """Rows of a file, a folder or "hub:NAME:SPLIT" as its own columns have them; `data_format` as `data.format`.

    Raises:
        DataError: nothing of that name; a file that is not of its kind, as far as the first rows tell.
    """
    if source.startswith(HUB_PREFIX):
        return hub_rows(source)
    path = Path(source)
    if not path.exists():
        raise DataError(
            f"the data file {source} does not exist",
            expected="a .jsonl, .json, .parquet or .tsv file, a folder of parquet files, a folder from save_to_disk, "
            f"or {HUB_PREFIX}OWNER/NAME:SPLIT",
            remedy="for a hub dataset: datasets.load_dataset(NAME, split=...).save_to_disk(FOLDER), then give FOLDER",
        )
    kind = _kind_of(path) if data_format == "auto" else data_format
    if path.is_dir() and kind in ("jsonl", "tsv"):
        raise DataError(
            f"{path} is a folder", got=f"data.format={kind}", expected="a file, or data.format parquet or saved_dataset"
        )
    return READERS[kind](path)


def _kind_of(path: Path) -> str:
    if path.is_dir():
        has_shards = any(path.glob("*.parquet")) and not (path / "state.json").is_file()
        return "parquet" if has_shards else "saved_dataset"
    return SUFFIXES.get(path.suffix.lower(), "jsonl")
