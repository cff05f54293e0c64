"""Files that are never half written."""

from pathlib import Path

from megatron_moe_grpo.data.whole_file import write_atomically


def test_write_atomically_replaces_and_leaves_no_other_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "long old text")
    write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
