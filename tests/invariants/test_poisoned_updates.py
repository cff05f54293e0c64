"""A NaN or an infinity anywhere in an update, on one rank of two: no rank's weights change by a bit, training goes on.

The sites are the pixels of a picture, the logits, a router's logits, the ratio (old log-prob), the KL term (the
reference's), a reward, an advantage, the loss, and the gradient of a router, of an expert and of the vision tower.  The
last is the hardest: each tensor-parallel rank has it whole, and Megatron's norm reads the first rank's only.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from forked_commands import run_command
from poisoned_updates import LAYOUTS, SITES, VALUES
from tiny_policy import load_policy, write_assets
from tiny_training import expect_success

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.checkpoint import save_checkpoint
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel

Ranks = list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def outcomes(policy_folder: Path, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("poisoned")
    start_parallel(ParallelConfig(), seed=0)
    save_checkpoint(folder / "policy", load_policy(policy_folder), write_assets(policy_folder, folder / "assets"), {})
    stop_parallel()
    command = ["tests/invariants/poisoned_updates.py", folder / "policy", pictures[0].parent, folder]
    expect_success(run_command(command, folder / "log", num_ranks=2))
    return [json.loads((folder / f"rank_{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_every_site_was_poisoned(outcomes: Ranks) -> None:
    places = [(outcome["layout"], outcome["site"], outcome["value"]) for outcome in outcomes[0]]
    assert {(layout, site, "nan") for layout in LAYOUTS for site in SITES} <= set(places)
    assert len(places) == len(SITES) * (len(VALUES) + len(LAYOUTS) - 1) - 1
    assert places == [(outcome["layout"], outcome["site"], outcome["value"]) for outcome in outcomes[1]]


def test_no_rank_changes_a_bit(outcomes: Ranks) -> None:
    for outcome in outcomes[0] + outcomes[1]:
        assert outcome["is_skipped"] and not outcome["has_changed"] and not outcome["has_gradient_left"], outcome


def test_training_goes_on_with_finite_weights(outcomes: Ranks) -> None:
    for outcome in outcomes[0] + outcomes[1]:
        assert not outcome["later_is_skipped"] and outcome["later_has_changed"] and outcome["later_is_finite"], outcome


def test_ranks_judge_the_very_same_norm(outcomes: Ranks) -> None:
    for first, second in zip(*outcomes, strict=True):
        assert (first["grad_norm"], first["later_norm"]) == (second["grad_norm"], second["later_norm"])
