"""An upcycled InternVL3 (Qwen2.5 text): the dense model's answers, a stock export, and the same bits back.

Its own logits, greedy answers and round trip, beside those of all other models: `test_internvl_logits.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_internvl import OriginalSizes, write_original_internvl
from PIL import Image
from tiny_internvl3 import write_tiny_internvl3
from torch import Tensor
from transformers import InternVLForConditionalGeneration

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion import TensorSource
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.data.visuals import Visual
from megatron_moe_grpo.errors import ConversionError
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel
from megatron_moe_grpo.mcore.streamed_checkpoint import MegatronCheckpoint
from megatron_moe_grpo.models.convert import export_huggingface, import_huggingface, load_model
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.inspection import inspect_folder
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl
from megatron_moe_grpo.models.token_batch import TokenBatch, pad_prompts
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state

SIZES = TinySizes(image_size=16, patch_size=4, vision_hidden_size=16, vision_heads=2, max_positions=256)
COPIES: dict[str, dict[str, Any]] = {
    "folded": {"router_init_std": 0.0},
    "renormalised": {"router_init_std": 0.3, "renormalise": True},
    "some_layers": {"router_init_std": 0.0, "layers": "0,2"},
    "slices": {"router_init_std": 0.3, "renormalise": True, "granularity": 2, "num_active": 4, "layers": "every:2"},
}
GATE = "language_model.model.layers.1.mlp.shared_expert_gate.weight"


@pytest.fixture(scope="module")
def one_process() -> Iterator[ParallelLayout]:
    yield start_parallel(ParallelConfig(), seed=0)
    stop_parallel()


@pytest.fixture(scope="module", params=["native", "original"])
def dense(
    request: pytest.FixtureRequest, one_process: ParallelLayout, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A dense InternVL3 of either layout."""
    folder = tmp_path_factory.mktemp("internvl3")
    if request.param == "native":
        build_tiny_internvl(folder / "internvl3_5", SIZES, seed=0)
        return write_tiny_internvl3(folder / "dense", folder / "internvl3_5")
    write_original_internvl(folder / "dense", OriginalSizes("qwen2"))
    return folder / "dense"


def upcycled(dense: Path, folder: Path, **settings: Any) -> Path:
    state, config = upcycle_state(read_hf_state(dense), read_hf_config(dense), UpcycleSettings(**settings))
    write_hf_folder(folder, state, config, assets=dense)
    return folder


def exported(checkpoint: Path, out: Path) -> Path:
    is_original = read_hf_config(checkpoint / "assets")["model_type"] == "internvl_chat"
    export_huggingface(checkpoint, out, layout="native" if is_original else "same")
    return out


def prompts(folder: Path) -> TokenBatch:
    """Text, a picture and a video, padded on the left."""
    processing = InternVLProcessing.from_folder(folder)
    frames = list(map(Image.fromarray, np.random.default_rng(3).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)))
    seen: list[list[Visual]] = [[], [Visual((frames[0],))], [Visual(tuple(frames[1:]), is_video=True)]]
    return pad_prompts(
        [processing.encode("Which is it?", ("A. 0", "B. 1"), [v.size for v in visuals]) for visuals in seen],
        [processing.visual_inputs(visuals) for visuals in seen],
        processing.vision_token_ids,
        processing.pad_token_id,
    )


@torch.no_grad()
def megatron_logits(folder: Path, checkpoint: Path) -> Tensor:
    """Of the real positions, [M, V]; imports the folder."""
    import_huggingface(folder, checkpoint)
    batch = prompts(folder)
    return load_model(checkpoint).eval()(batch)[batch.is_real_BS]


def assert_same_bits(first: TensorSource, second: TensorSource) -> None:
    assert first.shapes == second.shapes and first.dtypes == second.dtypes
    for name in first.shapes:
        assert torch.equal(*(source.read(name).reshape(-1).view(torch.uint8) for source in (first, second))), name


@pytest.mark.parametrize("settings", COPIES.values(), ids=list(COPIES))
def test_upcycled_copies_answer_as_the_dense_model(dense: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    expected_MV = megatron_logits(dense, tmp_path / "dense")
    moe = upcycled(dense, tmp_path / "moe", expert_init="copy", **settings)
    got_MV = megatron_logits(moe, tmp_path / "checkpoint")
    assert expected_MV.std() > 0.5
    # Measured: 0 with folded scales, 2.1e-6 with renormalised weights; logits of up to 5.5.
    assert (got_MV - expected_MV).abs().max() < 1e-4


@pytest.mark.parametrize("layers", ["all", "1"])
@torch.no_grad()
def test_an_export_is_stock_and_comes_back_to_the_bit(dense: Path, layers: str, tmp_path: Path) -> None:
    moe = upcycled(dense, tmp_path / "moe", noise_scale=1.0, router_init_std=0.3, layers=layers)
    expected_MV = megatron_logits(moe, tmp_path / "checkpoint")
    native = exported(tmp_path / "checkpoint", tmp_path / "native")
    stock, loading = InternVLForConditionalGeneration.from_pretrained(
        native, dtype=torch.float32, output_loading_info=True
    )
    assert stock.config.text_config.model_type == "qwen2_moe"
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    batch, processing = prompts(native), InternVLProcessing.from_folder(native)
    got_MV = stock.eval()(**processing.huggingface_inputs(batch)).logits[batch.is_real_BS]
    # Measured: 6.1e-6, on logits of up to 6.3.
    assert (got_MV - expected_MV).abs().max() < 1e-4
    import_huggingface(native, tmp_path / "again")
    assert_same_bits(MegatronCheckpoint(tmp_path / "checkpoint"), MegatronCheckpoint(tmp_path / "again"))
    # As transformers itself writes it, too.
    stock.save_pretrained(tmp_path / "saved")
    assert_same_bits(SafetensorsFolder(native), SafetensorsFolder(tmp_path / "saved"))


def test_an_export_in_its_own_layout_is_what_was_imported(dense: Path, tmp_path: Path) -> None:
    moe = upcycled(dense, tmp_path / "moe", layers="every:2")
    import_huggingface(moe, tmp_path / "checkpoint")
    export_huggingface(tmp_path / "checkpoint", tmp_path / "exported")
    assert_same_bits(SafetensorsFolder(moe), SafetensorsFolder(tmp_path / "exported"))
    assert (moe / "config.json").read_bytes() == (tmp_path / "exported" / "config.json").read_bytes()


def test_inspection_counts_what_transformers_counts(dense: Path, tmp_path: Path) -> None:
    moe = upcycled(dense, tmp_path / "moe", layers="every:2", num_experts=4, num_active=1)
    import_huggingface(moe, tmp_path / "checkpoint")
    native = exported(tmp_path / "checkpoint", tmp_path / "native")
    total = InternVLForConditionalGeneration.from_pretrained(native).num_parameters()
    config = read_hf_config(native)["text_config"]
    # One routed layer; three of its four experts are idle.
    idle = 3 * 3 * config["hidden_size"] * config["moe_intermediate_size"]
    for folder in (moe, native, tmp_path / "checkpoint"):
        inspection = inspect_folder(folder)
        assert inspection.problems == []
        assert f"{total:,} parameters, {total - idle:,} active" in str(inspection)


def test_a_shared_gate_that_is_not_zero_is_refused_by_name(dense: Path, tmp_path: Path) -> None:
    moe = upcycled(dense, tmp_path / "moe")
    state = read_hf_state(moe)
    state[GATE][0, 3] = 1e-30
    write_hf_folder(tmp_path / "changed", state, read_hf_config(moe), assets=moe)
    (problem,) = inspect_folder(tmp_path / "changed").problems
    assert f"got:      {GATE}\n" in problem
    with pytest.raises(ConversionError, match=f"(?s)are not zero.*{GATE}"):
        import_huggingface(tmp_path / "changed", tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
