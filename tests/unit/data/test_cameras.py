import numpy as np
import pytest

from megatron_moe_grpo.data.cameras import CAMERAS, noisy

PICTURE = np.array([[0.0, 0.5, 1.0]])


@pytest.mark.parametrize(("camera", "expected"), [("clear", [[0.0, 0.5, 1.0]]), ("washed_out", [[0.3, 0.475, 0.65]])])
def test_cameras_give_the_numbers_of_their_formula(camera: str, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(CAMERAS[camera](PICTURE, np.random.default_rng(0)), expected, rtol=0, atol=1e-15)


def test_noisy_adds_gaussian_noise_and_clips() -> None:
    grey = np.full((200, 200), 0.5)
    picture = noisy(grey, np.random.default_rng(0))
    assert picture.min() == 0.0 and picture.max() == 1.0
    # |noise| > 0.5 is clipped: 2 * (1 - Phi(0.5 / 0.45)) = 0.2665 of 40,000 pixels, standard error 0.0022
    assert np.isin(picture, (0.0, 1.0)).mean() == pytest.approx(0.2665, abs=0.009)
    assert picture.mean() == pytest.approx(0.5, abs=0.008)
    assert np.array_equal(picture, noisy(grey, np.random.default_rng(0)))
