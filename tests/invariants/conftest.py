"""One process with Megatron's groups, and tiny policies on disk, once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from parallel_runs import ParallelRuns, run_all_layouts
from tiny_policy import Bench, make_rows, write_pictures, write_policy

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of


@pytest.fixture(scope="module")
def one_process() -> Iterator[ParallelLayout]:
    """Megatron's process groups of this process alone."""
    layout = start_parallel(ParallelConfig(), seed=0)
    yield layout
    stop_parallel()


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face folder of the tiny policy in which routing matters."""
    return write_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures enough for every row."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), 4)


@pytest.fixture(scope="module")
def bench(one_process: ParallelLayout, policy_folder: Path, pictures: list[Path]) -> Bench:
    """Everything of a step but the model."""
    processing = family_of(read_hf_config(policy_folder)).processing.from_folder(policy_folder)
    return Bench(one_process, policy_folder, processing, make_rows(pictures, processing))


@pytest.fixture(scope="session")
def parallel_runs(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> ParallelRuns:
    """Every two-process layout, run once."""
    return run_all_layouts(tmp_path_factory.mktemp("parallel"), pictures[0].parent)
