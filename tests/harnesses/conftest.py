"""What every harness is run against, once a session."""

from collections.abc import Iterator

import pytest
from served_model import Grids, OurAnswers, ServedModel, evaluate_checkpoint, serve, write_harness_rows
from tiny_training import TinyStart, tiny_start

from megatron_moe_grpo.data.digit_grid_files import write_digit_grids

NUM_ROWS = 24


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> TinyStart:
    """A tiny model that answers with letters, right ones and wrong ones."""
    return tiny_start(tmp_path_factory.getbasetemp() / "tiny_start")


@pytest.fixture(scope="session")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Grids:
    folder = tmp_path_factory.mktemp("grids")
    write_digit_grids(folder / "digits", 1, NUM_ROWS, seed=7, cameras=("clear",), scale=1)
    rows = folder / "digits" / "clear" / "test.jsonl"
    return Grids(rows, write_harness_rows(rows, folder / "rows.jsonl"))


@pytest.fixture(scope="session")
def served(start: TinyStart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    with serve(start.warm, tmp_path_factory.mktemp("server") / "server.log") as server:
        yield server


@pytest.fixture(scope="session")
def ours(start: TinyStart, grids: Grids, tmp_path_factory: pytest.TempPathFactory) -> OurAnswers:
    """Right and wrong answers, or equal scores would prove little."""
    answers = evaluate_checkpoint(start.warm, grids.ours, tmp_path_factory.mktemp("ours") / "evaluation")
    assert len(answers.responses) == NUM_ROWS
    assert 0 < sum(answers.correct) < NUM_ROWS
    assert len(set(answers.responses)) > 1
    return answers
