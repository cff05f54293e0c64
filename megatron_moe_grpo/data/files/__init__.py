"""How rows lie on the disk: JSON lines or lists, parquet, TSV, folders of `save_to_disk`, names of the hub."""
