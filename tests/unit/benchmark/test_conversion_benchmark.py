"""The shapes are those of the published models; the table says what the numbers are."""

from pathlib import Path

import pytest
import torch

from megatron_moe_grpo.benchmark.conversion import RandomSource, write_random_model
from megatron_moe_grpo.benchmark.conversion_table import conversion_table
from megatron_moe_grpo.benchmark.real_configs import REAL_CONFIGS
from megatron_moe_grpo.conversion.manifest import verify_manifest
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.models.parameter_counts import parameter_counts
from megatron_moe_grpo.models.registry import family_of


# Of the models' cards on the hub; ours leave no weight out.
@pytest.mark.parametrize(
    ("model", "billions"),
    [("internvl3.5-1b", 1.06), ("internvl3.5-1b-upcycled", 2.91), ("internvl3.5-8b", 8.53), ("qwen2-vl-2b", 2.21)],
)
def test_real_configs_have_the_published_sizes(model: str, billions: float) -> None:
    config = REAL_CONFIGS[model]()
    counts = parameter_counts(family_of(config).weight_map(config), num_active=2)
    assert counts.total / 1e9 == pytest.approx(billions, abs=0.005)


def test_random_source_draws_every_bit_anew() -> None:
    source = RandomSource({"a": (300, 300), "b": (300, 300)}, seed=0)
    first, second = source.read("a"), source.read("b")
    assert first.dtype == torch.bfloat16 and not torch.equal(first.view(torch.int16), second.view(torch.int16))
    bits = first.view(torch.int16).int() & 0xFFFF
    # 90,000 draws: a bit's share has a standard error of 0.0017.
    assert all(0.49 < ((bits >> bit) & 1).float().mean() < 0.51 for bit in range(16))


def test_write_random_model_writes_a_folder_that_is_what_it_says(tmp_path: Path) -> None:
    config = REAL_CONFIGS["internvl3.5-1b"]()
    config["text_config"] |= {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 32}
    config["text_config"] |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config["vision_config"] |= {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    config["vision_config"] |= {"num_attention_heads": 1}
    write_random_model(config, tmp_path / "model")
    verify_manifest(tmp_path / "model")
    assert SafetensorsFolder(tmp_path / "model").shapes["language_model.lm_head.weight"] == (32, 16)


def timed(wall_s: float, over_cp: float, over_flushed: float, **rest: object) -> dict[str, object]:
    numbers = {"wall_s": wall_s, "speed_over_cp": over_cp, "speed_over_cp_flushed": over_flushed, **rest}
    return {"best_s": wall_s / 2} | {
        key: {"median": value, "low": value / 2, "high": 2 * value} if isinstance(value, float) else value
        for key, value in numbers.items()
    }


@pytest.mark.parametrize(("import_ratio", "peak_bytes", "says"), [(0.5, 2**30, 2), (0.49, 2**30, 1), (0.5, 2**31, 1)])
def test_conversion_table_judges_both_bars(import_ratio: float, peak_bytes: int, says: int) -> None:
    numbers = {
        "model": "m", "bytes": 2_000_000_000, "rounds": 3, "cores": 2, "load_average_at_end": 0.5,
        "peak_bound_bytes": 2**30, "cp": timed(1.0, 1.0, 2.0), "cp_flushed": timed(2.0, 0.5, 1.0),
        "import": timed(4.0, 0.25, import_ratio, cpu_s=3.0, peak_bytes=peak_bytes, imports_bytes=2**29),
        "export": timed(2.5, 0.4, 0.8, cpu_s=2.0, peak_bytes=2**29, imports_bytes=2**28),
    }  # fmt: skip
    table = conversion_table(numbers)
    (row,) = [line.split() for line in table.splitlines() if line.startswith("import")]
    assert row[:7] == ["import", "4.000", "2.000", "0.500", "0.250", "[0.125,", "0.500]"]
    assert row[7] == f"{import_ratio:.3f}" and row[10:] == ["3.000", str(peak_bytes // 2**20), "512"]
    assert (table.count("meets"), table.count("MISSES")) == (says, 2 - says)
