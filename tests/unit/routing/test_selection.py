import math

import pytest
import torch

from megatron_moe_grpo.routing.selection import (
    combination_weights,
    count_selections,
    counter_uniform,
    gaussian_noise,
    gumbel_noise,
    gumbel_top_k,
    noisy_top_k,
    top_k,
)

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def positions(num_streams: int, num_positions: int) -> torch.Tensor:
    return torch.arange(num_positions).expand(num_streams, num_positions)


def grid(seed: int = 7, num_layers: int = 4, num_streams: int = 32, num_positions: int = 128, num_draws: int = 16):
    """262,144 draws by default: uniform_LBSN."""
    return counter_uniform(
        seed, torch.arange(num_streams), torch.arange(num_layers), positions(num_streams, num_positions), num_draws
    )


def splitmix(value: int) -> int:
    """The published output function on Python's unbounded integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def test_splitmix_oracle_matches_the_published_vectors():
    # First outputs of SplitMix64 for seeds 0 and 1234567, as printed with the reference C code.
    assert splitmix(GOLDEN) == 0xE220A8397B1DCDAF
    assert splitmix((1234567 + GOLDEN) & MASK) == 6457827717110365317


@pytest.mark.parametrize("coordinates", [(0, 0, 0, 0, 0), (7, 3, 123456789, 511, 7), (2**62, -1, 2**40, 0, 2)])
def test_counter_uniform_equals_integer_arithmetic_by_hand(coordinates):
    seed, layer, stream, position, expert = coordinates
    state = splitmix((seed + GOLDEN) & MASK)
    for coordinate in (layer, stream, position, expert):
        state = splitmix((state + GOLDEN * coordinate) & MASK)
    uniform_LBSN = counter_uniform(
        seed, torch.tensor([stream]), torch.tensor([layer]), torch.tensor([[position]]), expert + 1
    )
    assert uniform_LBSN.dtype == torch.float64
    assert uniform_LBSN[0, 0, 0, expert].item() == ((state >> 12) + 0.5) / 2**52


def test_counter_uniform_does_not_depend_on_batch_layout():
    uniform_LBSN = grid(num_draws=8)
    order_B = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    some_layers_L = torch.tensor([2, 0])
    some_positions_BS = torch.tensor([[5, 127, 5]]).expand(32, 3)
    part_LBSN = counter_uniform(7, order_B, some_layers_L, some_positions_BS, 3)
    expected_LBSN = uniform_LBSN[some_layers_L][:, order_B][:, :, [5, 127, 5]][..., :3]
    assert torch.equal(part_LBSN, expected_LBSN)


def test_counter_uniform_formula_stays_inside_the_unit_interval_at_its_extremes():
    # The all-zero and all-one bit patterns cannot be reached by a search, so the last line of the function is repeated.
    largest = (torch.tensor([2**52 - 1]).to(torch.float64) + 0.5) * 2.0**-52
    smallest = torch.tensor([0.5], dtype=torch.float64) * 2.0**-52
    assert smallest.item() > 0 and largest.item() < 1
    assert -math.log(-math.log(largest.item())) < 36.8
    assert -math.log(-math.log(smallest.item())) > -3.7


def test_counter_uniform_is_uniform():
    uniform = grid().flatten()
    counts = torch.histc(uniform.float(), bins=256, min=0, max=1)
    expected = uniform.numel() / 256
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    # 255 degrees of freedom: mean 255, standard deviation 22.6; measured 244.
    assert abs(chi_square - 255) < 4 * 22.6
    empirical = (torch.arange(uniform.numel(), dtype=torch.float64) + 0.5) / uniform.numel()
    distance = (uniform.sort().values - empirical).abs().max().item()
    # Kolmogorov-Smirnov: the scaled distance exceeds 1.95 once in 1000 generators; measured 0.79.
    assert distance * math.sqrt(uniform.numel()) < 1.95


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("step", [1, 2])
def test_counter_uniform_neighbours_are_uncorrelated(axis, step):
    uniform_LBSN = grid(num_layers=8, num_positions=64) - 0.5
    length = uniform_LBSN.shape[axis] - step
    first, second = uniform_LBSN.narrow(axis, 0, length), uniform_LBSN.narrow(axis, step, length)
    for power in (1, 2):
        x, y = first**power, second**power
        correlation = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item()
        # Standard deviation 1 / sqrt(n); measured at most 3.0 of them here, and over 480 such pairs (60 seeds) mean
        # -0.01, deviation 0.98, largest 2.8: as independent numbers would.
        assert abs(correlation) < 4 / math.sqrt(x.numel())


def test_counter_uniform_neighbouring_seeds_are_uncorrelated():
    first, second = grid(seed=7).flatten(), grid(seed=8).flatten()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    assert abs(correlation) < 4 / math.sqrt(first.numel())


def test_counter_uniform_coordinates_never_collide_or_change_places():
    uniform_LBSN = grid(num_layers=16, num_streams=16, num_positions=16, num_draws=16)
    others = [grid(seed=seed, num_layers=16, num_streams=16, num_positions=16, num_draws=16) for seed in (0, 1, 8)]
    every = torch.cat([uniform_LBSN.flatten(), *(other.flatten() for other in others)])
    # 2^18 draws of 52 bits: a chance collision has probability 8e-6.
    assert every.unique().numel() == every.numel()


@pytest.mark.parametrize("coordinate", ["seed", "stream", "layer", "position"])
def test_counter_uniform_one_flipped_bit_moves_half_of_the_bits(coordinate):
    flips = []
    for bit in (0, 1, 17, 40):
        values = {"seed": 5, "stream": 9, "layer": 2, "position": 31}
        bits = []
        for value in (values[coordinate], values[coordinate] ^ (1 << bit)):
            values[coordinate] = value
            uniform = counter_uniform(
                values["seed"],
                torch.tensor([values["stream"]]),
                torch.tensor([values["layer"]]),
                torch.tensor([[values["position"]]]),
                256,
            )
            bits.append((uniform.flatten() * 2**52).long().tolist())
        flips += [(first ^ second).bit_count() for first, second in zip(*bits, strict=True)]
    # 52 bits: mean 26, standard deviation 3.6 each, 0.11 over 1024; measured within 0.14 and at least 12.
    assert abs(sum(flips) / len(flips) - 26) < 0.56
    assert min(flips) > 8


def test_gumbel_noise_has_gumbel_moments():
    gumbel = gumbel_noise(3, torch.arange(64), torch.arange(4), positions(64, 64), 16)
    assert gumbel.dtype == torch.float32
    gumbel = gumbel.double()
    # Mean is Euler's constant, variance pi^2 / 6; 262,144 draws: standard errors 0.0025 and 0.0067.
    assert abs(gumbel.mean().item() - 0.5772157) < 4 * 0.0025
    assert abs(gumbel.var().item() - math.pi**2 / 6) < 4 * 0.0067
    assert torch.isfinite(gumbel).all()


def test_gaussian_noise_has_normal_moments():
    gaussian = gaussian_noise(3, torch.arange(64), torch.arange(4), positions(64, 64), 16)
    assert gaussian.dtype == torch.float32
    gaussian = gaussian.double()
    # Standard errors over 262,144 draws: mean 0.002, variance 0.0028, fourth moment 0.019.
    assert abs(gaussian.mean().item()) < 4 * 0.002
    assert abs(gaussian.var().item() - 1) < 4 * 0.0028
    assert abs((gaussian**4).mean().item() - 3) < 4 * 0.019


def test_top_k_orders_best_first_and_never_takes_a_closed_expert():
    logits_MN = torch.tensor([[0.1, 3.0, -1.0, 2.0], [-5.0, -torch.inf, -torch.inf, -9.0]])
    assert top_k(logits_MN, 2).tolist() == [[1, 3], [0, 3]]


def test_gumbel_top_k_never_takes_a_closed_expert_when_exactly_k_are_open():
    logits_MN = torch.tensor([[-50.0, -torch.inf, 0.0, -torch.inf]]).expand(512, 4)
    gumbel_MN = gumbel_noise(1, torch.arange(512), torch.tensor([0]), positions(512, 1), 4)[0, :, 0]
    experts_MK = gumbel_top_k(logits_MN, gumbel_MN, 2)
    assert set(experts_MK.flatten().tolist()) == {0, 2}


def test_noisy_top_k_adds_the_scaled_noise():
    logits_MN = torch.tensor([[1.0, 0.0, 0.0]])
    gaussian_MN = torch.tensor([[0.0, 0.4, -3.0]])
    assert noisy_top_k(logits_MN, gaussian_MN, 2.0, 2).tolist() == [[0, 1]]
    assert noisy_top_k(logits_MN, gaussian_MN, 3.0, 2).tolist() == [[1, 0]]


def test_combination_weights_by_hand():
    logits_MN = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    experts_MK = torch.tensor([[3, 0]])
    plain = combination_weights(logits_MN, experts_MK, renormalise=False)
    shared = combination_weights(logits_MN, experts_MK, renormalise=True)
    # Measured equal; another softmax may round differently.
    torch.testing.assert_close(plain, torch.tensor([[0.4, 0.1]]), atol=2e-7, rtol=0)
    torch.testing.assert_close(shared, torch.tensor([[0.8, 0.2]]), atol=2e-7, rtol=0)


@pytest.mark.parametrize("renormalise", [False, True])
def test_combination_weights_gradient_is_exact_and_zero_at_closed_experts(renormalise):
    logits_MN = torch.tensor([[0.5, -torch.inf, 1.0, -0.3, 0.2]], dtype=torch.float64)
    experts_MK = torch.tensor([[2, 0]])
    is_open_N = torch.isfinite(logits_MN[0])

    def from_open(open_logits):
        masked = torch.full((1, 5), -torch.inf, dtype=torch.float64)
        return combination_weights(masked.masked_scatter(is_open_N, open_logits), experts_MK, renormalise=renormalise)

    assert torch.autograd.gradcheck(from_open, logits_MN[:, is_open_N].requires_grad_())
    logits_MN.requires_grad_()
    combination_weights(logits_MN, experts_MK, renormalise=renormalise)[0, 0].backward()
    assert logits_MN.grad[0, 1] == 0 and torch.isfinite(logits_MN.grad).all()
    # The unchosen experts share in the softmax over N only without renormalisation.
    assert (logits_MN.grad[0, 3] == 0) == renormalise


def test_combination_weights_survive_a_chosen_expert_of_vanishing_probability():
    logits_MN = torch.tensor([[0.0, -200.0, -201.0]])
    weights = combination_weights(logits_MN, torch.tensor([[1, 2]]), renormalise=True)
    torch.testing.assert_close(weights, torch.tensor([[0.7310586, 0.2689414]]))


def test_count_selections_counts_only_what_is_counted():
    experts_MK = torch.tensor([[0, 2], [2, 1], [2, 0]], dtype=torch.int16)
    counts = count_selections(experts_MK, 4, torch.tensor([True, False, True]))
    assert counts.tolist() == [2.0, 0.0, 2.0, 0.0]
