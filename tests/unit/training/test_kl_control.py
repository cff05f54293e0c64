import pytest

from megatron_moe_grpo.config.schema import KlConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.training.kl_control import KlControl, kl_schedule

COUNTING = {"beta_min": 0.04, "beta_max": 0.1}


@pytest.mark.parametrize(
    "schedule, betas",
    [
        ("constant", (0.2, 0.2, 0.2, 0.2)),
        ("dynamic", (0.07, 0.04, 0.07, 0.1)),
        ("linear", (0.1, 0.082, 0.061, 0.04)),
    ],
)
def test_kl_control_follows_the_schedule_that_the_settings_name(schedule, betas):
    control = KlControl(KlConfig(schedule=schedule, beta=0.2, **COUNTING), total_steps=100)
    assert [control.beta_at(step) for step in (0, 30, 65, 100)] == pytest.approx(list(betas), abs=1e-9)


def test_kl_control_of_a_schedule_does_not_listen():
    control = KlControl(KlConfig(schedule="dynamic", **COUNTING), total_steps=100)
    control.observe(5.0)
    assert control.beta_at(30) == pytest.approx(0.04)


def test_kl_control_adaptive_follows_what_is_measured_and_resumes_there():
    settings = KlConfig(schedule="adaptive", beta=0.5, target_nats=0.02, adaptation=0.1)
    control, resumed = KlControl(settings, total_steps=100), KlControl(settings, total_steps=100)
    assert control.beta_at(0) == 0.5
    control.observe(1.0)
    assert control.beta_at(1) == pytest.approx(0.55)
    resumed.restore(control.state())
    for each in (control, resumed):
        each.observe(0.0)
    assert resumed.beta_at(2) == control.beta_at(2) == pytest.approx(0.495)


@pytest.mark.parametrize("schedule", ["adaptive", "none"])
def test_kl_schedule_refuses_what_has_no_curve(schedule):
    with pytest.raises(ConfigError, match="no curve"):
        kl_schedule(KlConfig(schedule=schedule), total_steps=100)
