"""Upcycled models against the dense one, both run by transformers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, InternVLConfig, InternVLForConditionalGeneration

from megatron_moe_grpo.errors import ConfigError, ConversionError
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.internvl.weight_map import weight_map
from megatron_moe_grpo.models.parameter_counts import parameter_counts
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state, upcycled_config

EXPERT = "language_model.model.layers.{}.mlp.experts.{}.{}_proj.weight"
DENSE = "language_model.model.layers.{}.mlp.{}_proj.weight"


def logits_of(folder: Path) -> Tensor:
    """Logits of a fixed prompt with one picture, [1, S, V]."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(1)
    ids = torch.cat([torch.tensor([2, 3, 5, 5, 5, 5, 4]), torch.randint(7, 370, (20,), generator=generator)])[None]
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32, generator=generator)).logits


def upcycled_logits(dense_folder: Path, out: Path, **settings: Any) -> Tensor:
    dense_state, dense_config = read_hf_state(dense_folder), read_hf_config(dense_folder)
    state, config = upcycle_state(dense_state, dense_config, UpcycleSettings(**settings))
    write_hf_folder(out, state, config, assets=dense_folder)
    return logits_of(out)


def test_upcycle_state_by_copy_and_renormalise_is_the_dense_model(dense_folder: Path, tmp_path: Path) -> None:
    moe = upcycled_logits(dense_folder, tmp_path / "moe", expert_init="copy", renormalise=True)
    # Measured worst case: 1.3e-6 over 3 seeds, logits up to 1.9.
    torch.testing.assert_close(moe, logits_of(dense_folder), rtol=0, atol=1e-5)


def test_upcycle_state_by_folded_copy_is_exact_at_zero_router_logits(dense_folder: Path, tmp_path: Path) -> None:
    moe = upcycled_logits(dense_folder, tmp_path / "moe", expert_init="copy", router_init_std=0.0)
    torch.testing.assert_close(moe, logits_of(dense_folder), rtol=0, atol=1e-5)  # measured: 0.0 over 3 seeds


def test_upcycle_state_by_folded_copy_is_close_at_small_router_logits(dense_folder: Path, tmp_path: Path) -> None:
    dense = logits_of(dense_folder)
    moe = upcycled_logits(dense_folder, tmp_path / "moe", expert_init="copy")
    # The top-K weights sum to a little more than K/N (1.022 times at this width). Measured over 3 seeds: 0.018-0.023.
    assert 0.005 < (moe - dense).norm() / dense.norm() < 0.04


def test_upcycle_state_by_noise_stays_within_the_noise(dense_folder: Path, tmp_path: Path) -> None:
    dense = logits_of(dense_folder)
    moe = upcycled_logits(dense_folder, tmp_path / "moe", noise_scale=0.1, router_init_std=0.0)
    # Measured over 3 seeds: 0.097-0.129.
    assert 0.03 < (moe - dense).norm() / dense.norm() < 0.2


@pytest.mark.parametrize(("num_experts", "num_active", "granularity"), [(8, 2, 2), (8, 4, 2), (16, 4, 4), (3, 3, 3)])
def test_upcycle_state_by_slices_in_virtual_groups_is_the_dense_model(
    num_experts: int, num_active: int, granularity: int, dense_folder: Path, tmp_path: Path
) -> None:
    moe = upcycled_logits(
        dense_folder, tmp_path / "moe", expert_init="copy", renormalise=True, num_experts=num_experts,
        num_active=num_active, granularity=granularity, router_init_std=0.3,
    )  # fmt: skip
    # Measured worst case: 4.3e-6 over 3 seeds, logits up to 4.2.
    torch.testing.assert_close(moe, logits_of(dense_folder), rtol=0, atol=1e-5)


def test_upcycle_state_by_slices_folds_the_scale_of_weights_that_do_not_sum_to_one(
    dense_folder: Path, tmp_path: Path
) -> None:
    """Router logits near 0, but not equal: a tie would be cut anywhere, not between two copies."""
    moe = upcycled_logits(
        dense_folder, tmp_path / "moe", expert_init="copy", num_experts=16, num_active=4, granularity=2,
        router_init_std=1e-5,
    )  # fmt: skip
    # Measured over 3 seeds: 6.5e-4 to 6.9e-4, and a hundred times that at a hundred times the deviation.
    torch.testing.assert_close(moe, logits_of(dense_folder), rtol=0, atol=2e-3)


def test_upcycle_state_by_slices_one_by_one_is_dense_only_on_average(dense_folder: Path, tmp_path: Path) -> None:
    """K < m: what a token sees is a part of the feed-forward, scaled up."""
    dense = logits_of(dense_folder)
    moe = upcycled_logits(
        dense_folder, tmp_path / "moe", expert_init="copy", num_experts=8, num_active=2, granularity=4,
        router_init="random",
    )  # fmt: skip
    assert (moe - dense).norm() / dense.norm() > 0.5  # Measured over 3 seeds: 0.97-1.07.


@pytest.mark.parametrize("layers", ["1,3", "every:2", "0", "all"])
def test_upcycle_state_of_some_layers_is_the_dense_model(layers: str, dense_folder: Path, tmp_path: Path) -> None:
    moe = upcycled_logits(dense_folder, tmp_path / "moe", expert_init="copy", renormalise=True, layers=layers)
    torch.testing.assert_close(moe, logits_of(dense_folder), rtol=0, atol=1e-5)
    with torch.device("meta"):
        oracle = InternVLForConditionalGeneration(InternVLConfig(**read_hf_config(tmp_path / "moe")))
    num_routed = sum("experts" in dict(layer.mlp.named_children()) for layer in oracle.model.language_model.layers)
    assert num_routed == {"1,3": 2, "every:2": 2, "0": 1, "all": 4}[layers]


def test_upcycle_state_shares_what_it_does_not_change_and_keeps_the_dtype(dense_folder: Path) -> None:
    state = {key: weight.bfloat16() for key, weight in read_hf_state(dense_folder).items()}
    moe_state, _ = upcycle_state(state, read_hf_config(dense_folder), UpcycleSettings())
    kept = state.keys() & moe_state.keys()
    assert len(state) - len(kept) == 3 * 4  # gate, up and down of four layers
    assert all(moe_state[key] is state[key] for key in kept)
    assert {weight.dtype for weight in moe_state.values()} == {torch.bfloat16}
    pointers = [weight.untyped_storage().data_ptr() for weight in moe_state.values()]
    assert len(set(pointers)) == len(pointers)


def test_upcycle_state_is_seeded(dense_folder: Path) -> None:
    state, config = read_hf_state(dense_folder), read_hf_config(dense_folder)
    first, same, other = (upcycle_state(state, config, UpcycleSettings(seed=seed))[0] for seed in (3, 3, 4))
    assert all(torch.equal(first[key], same[key]) for key in first)
    key = EXPERT.format(2, 5, "up")
    assert not torch.equal(first[key], other[key])
    assert not torch.equal(first[key], first[EXPERT.format(2, 4, "up")])


def test_upcycle_state_noise_is_relative_to_each_weight(dense_folder: Path) -> None:
    state, config = read_hf_state(dense_folder), read_hf_config(dense_folder)
    state[DENSE.format(1, "gate")] = state[DENSE.format(1, "gate")] * 10
    moe_state, _ = upcycle_state(state, config, UpcycleSettings(noise_scale=0.5, renormalise=True))
    for part in ("gate", "up", "down"):
        dense = state[DENSE.format(1, part)]
        noise = moe_state[EXPERT.format(1, 0, part)] - dense
        # 27,648 numbers: the standard error of a standard deviation is 0.4 %.
        assert (noise.std() / dense.std()).item() == pytest.approx(0.5, rel=0.02)


def test_upcycle_state_drop_redraws_the_same_channels_of_all_three_weights(dense_folder: Path) -> None:
    state, config = read_hf_state(dense_folder), read_hf_config(dense_folder)
    settings = UpcycleSettings(expert_init="drop", drop_fraction=0.25, num_experts=4, num_active=2)
    moe_state, _ = upcycle_state(state, config, settings)
    kept = {}
    for part in ("gate", "up", "down"):
        expert, dense = moe_state[EXPERT.format(0, 3, part)], state[DENSE.format(0, part)]
        same = (expert == dense * settings.down_scale).all(0) if part == "down" else (expert == dense).all(1)
        assert same.sum() == 288 - 72
        scale = settings.down_scale if part == "down" else 1.0
        assert (expert.std() / dense.std()).item() == pytest.approx(scale, rel=0.02)
        kept[part] = same
    assert torch.equal(kept["gate"], kept["up"]) and torch.equal(kept["gate"], kept["down"])


def test_upcycle_state_folds_only_unnormalised_weights(dense_folder: Path) -> None:
    state, config = read_hf_state(dense_folder), read_hf_config(dense_folder)
    down = state[DENSE.format(3, "down")]
    for renormalise, factor in ((False, 4.0), (True, 1.0)):
        settings = UpcycleSettings(expert_init="copy", renormalise=renormalise)
        moe_state, moe_config = upcycle_state(state, config, settings)
        assert torch.equal(moe_state[EXPERT.format(3, 7, "down")], down * factor)
        assert moe_config["text_config"]["norm_topk_prob"] is renormalise


def test_upcycle_state_leaves_its_arguments_alone(dense_folder: Path) -> None:
    state, config = read_hf_state(dense_folder), read_hf_config(dense_folder)
    state_before, config_before = copy.deepcopy(state), copy.deepcopy(config)
    upcycle_state(state, config, UpcycleSettings(expert_init="drop"))
    assert config == config_before
    assert all(torch.equal(state[key], state_before[key]) for key in state)


def test_upcycle_state_refuses_a_state_that_lacks_a_feed_forward(dense_folder: Path) -> None:
    state = read_hf_state(dense_folder)
    del state[DENSE.format(2, "up")]
    with pytest.raises(ConversionError, match=f"missing: {DENSE.format(2, 'up')}"):
        upcycle_state(state, read_hf_config(dense_folder), UpcycleSettings())


def test_upcycled_config_refuses_a_model_with_experts(moe_folder: Path) -> None:
    with pytest.raises(ConfigError, match="experts already"):
        upcycled_config(read_hf_config(moe_folder), UpcycleSettings())


def test_upcycled_config_refuses_a_width_that_does_not_divide(dense_folder: Path) -> None:
    with pytest.raises(ConfigError, match="inner width 288, granularity 5"):
        upcycled_config(read_hf_config(dense_folder), UpcycleSettings(num_experts=5, num_active=5, granularity=5))


def test_upcycled_config_says_which_layers_stay_dense(dense_folder: Path) -> None:
    settings = UpcycleSettings(layers="1,3", granularity=2, num_experts=12, num_active=4)
    config = upcycled_config(read_hf_config(dense_folder), settings)
    sizes = family_of(config).parse_architecture(config).text
    assert (sizes.dense_layers, sizes.moe_layers) == ((0, 2), (1, 3))
    assert (sizes.num_experts, sizes.num_active, sizes.ffn_size, sizes.expert_ffn_size) == (12, 4, 288, 144)


def internvl_3_5_1b_config() -> dict[str, Any]:
    """InternViT-300M and Qwen3-0.6B with an output layer of its own, as in InternVL3.5-1B."""
    text = {
        "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "rope_theta": 1000000, "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "hidden_act": "silu",
    }  # fmt: skip
    vision = {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True, "use_qk_norm": False,
        "norm_type": "layer_norm", "use_mean_pooling": True, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    }  # fmt: skip
    return {
        "model_type": "internvl", "text_config": text, "vision_config": vision, "downsample_ratio": 0.5,
        "image_seq_length": 256, "image_token_id": 151671, "tie_word_embeddings": False,
    }  # fmt: skip


def test_parameter_counts_of_internvl_3_5_1b_are_the_papers() -> None:
    config, settings = internvl_3_5_1b_config(), UpcycleSettings()
    moe = parameter_counts(weight_map(upcycled_config(config, settings)), settings.num_active)
    assert (round(moe.total / 1e9, 1), round(moe.active / 1e9, 1)) == (2.9, 1.3)
    # By hand: 28 layers, each a router of 8 x 1024 and experts of 3 x 1024 x 3072.
    dense = parameter_counts(weight_map(config), None)
    assert dense.active == dense.total
    assert moe.total - dense.total == 28 * (8 * 1024 + 7 * 3 * 1024 * 3072)
    assert moe.total - moe.active == 28 * 6 * 3 * 1024 * 3072


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("layers", ["all", "every:4"])
def test_parameter_counts_equal_transformers(layers: str, is_tied: bool) -> None:
    config, settings = internvl_3_5_1b_config(), UpcycleSettings(layers=layers)
    config["tie_word_embeddings"] = is_tied
    for hf_config, num_active in ((config, None), (upcycled_config(config, settings), 2)):
        with torch.device("meta"):
            oracle = InternVLForConditionalGeneration(InternVLConfig(**copy.deepcopy(hf_config)))
        counts = parameter_counts(weight_map(hf_config), num_active)
        assert counts.total == oracle.num_parameters()
        experts = [weight for name, weight in oracle.named_parameters() if ".experts." in name]
        assert counts.total - counts.active == sum(weight.numel() for weight in experts) * 6 // 8
