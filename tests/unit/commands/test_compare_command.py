"""`compare` knows what kind of folders it was given."""

import argparse
from pathlib import Path

import pytest

from megatron_moe_grpo.commands import compare
from megatron_moe_grpo.errors import EvaluationError, MoeGrpoError


def folders(tmp_path: Path, *names: str) -> argparse.Namespace:
    made = []
    for index, name in enumerate(names):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / name).write_text("{}", encoding="utf-8")
        made.append(folder)
    return argparse.Namespace(folders=made)


def test_analyses_are_compared_as_analyses(tmp_path: Path) -> None:
    """Empty ones are refused by the reader of analyses, not by that of answers."""
    with pytest.raises(MoeGrpoError) as caught:
        compare.run(folders(tmp_path, "analysis.json", "analysis.json"))
    assert "analysis" in str(caught.value)


def test_a_mixture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds no evaluation"):
        compare.run(folders(tmp_path, "analysis.json", "answers.jsonl"))
