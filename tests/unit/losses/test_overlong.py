import pytest
import torch

from megatron_moe_grpo.losses.overlong import overlong_penalty


def test_overlong_penalty_by_hand() -> None:
    # L_max 20, L_cache 4: nothing up to 16, then a quarter a token, -1 at the limit and beyond.
    penalty_B = overlong_penalty(torch.tensor([1, 15, 16, 17, 18, 19, 20, 25]), 20, 4)
    assert penalty_B.tolist() == [0, 0, 0, -0.25, -0.5, -0.75, -1, -1]
    assert penalty_B.dtype == torch.float32


def test_overlong_penalty_never_rises_with_length() -> None:
    penalty_B = overlong_penalty(torch.arange(64), 50, 30)
    assert (penalty_B.diff() <= 0).all() and penalty_B.min() == -1 and penalty_B.max() == 0
    inside_B = penalty_B[20:51].double()
    torch.testing.assert_close(inside_B, -torch.arange(31, dtype=torch.float64) / 30, atol=1e-7, rtol=0)


@pytest.mark.parametrize("length", [0, 1, 5])
def test_overlong_penalty_switched_off_is_exactly_zero(length: int) -> None:
    assert overlong_penalty(torch.tensor([length]), 5, 0).tolist() == [0.0]


def test_overlong_penalty_over_the_whole_length_is_minus_the_used_share() -> None:
    assert overlong_penalty(torch.tensor([0, 1, 4]), 4, 4).tolist() == [0, -0.25, -1]
