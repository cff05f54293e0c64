"""Megatron's InternVL against transformers' own InternVLForConditionalGeneration, on the same weights.

Random weights large enough that attention, routing and the vision tower all matter; text, one picture, several
pictures, a picture in tiles, a video, and all of them in one left-padded batch.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_internvl3 import write_tiny_internvl3
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    Qwen3MoeConfig,
)

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.data.visuals import Visual
from megatron_moe_grpo.mcore.checkpoint import save_checkpoint
from megatron_moe_grpo.mcore.decoding import decoding_mode
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel
from megatron_moe_grpo.mcore.routing_context import SelectionPolicy
from megatron_moe_grpo.models.convert import export_huggingface, import_huggingface, load_megatron_state
from megatron_moe_grpo.models.hf_folder import copy_assets, read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.internvl.model import InternVLModel, build_internvl
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.token_batch import TokenBatch, pad_prompts
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state
from megatron_moe_grpo.models.visual_inputs import VisualInputs
from megatron_moe_grpo.rollout.decode import DecodeSettings, decode
from megatron_moe_grpo.routing.trace import RouteMode

SIZES = TinySizes(
    image_size=16, patch_size=4, vision_hidden_size=16, vision_layers=2, vision_heads=2, hidden_size=32, layers=4,
    heads=4, kv_heads=2, head_dim=8, ffn_size=24, max_positions=256, initializer_std=0.2,
)  # fmt: skip
UPCYCLED = UpcycleSettings(noise_scale=1.0, router_init_std=0.3, seed=1)
SETTINGS = {
    "moe": UPCYCLED,
    "moe_tied": UPCYCLED,
    "moe_renormalised": replace(UPCYCLED, renormalise=True),
    "qwen2_moe": UPCYCLED,
    "qwen2_moe_slices": replace(UPCYCLED, layers="every:2", granularity=2, renormalise=True),
}
# Question, and the size of each of its visuals: (width, height) of a picture, with a number of frames of a video.
PROBLEMS: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...] = (
    ("How many 0s are there?", ()),
    ("Which is the largest digit?", ((16, 20), (16, 20))),
    ("Which?", ((16, 20),)),
    ("Which <image>\nof these?", ((50, 20),)),
    ("What <video>\nmoves?", ((16, 20, 8),)),
    ("Is <image>\nin <video>\nor <image>\nin <video>?", ((40, 40), (20, 16, 3), (16, 16), (16, 16, 2))),
)
NAMES = ("text", "images", "image", "tiles", "video", "all_kinds")
MAX_TILES, NUM_TILES = 4, (0, 2, 1, 3 + 1, 8, 4 + 1 + 3 + 1 + 2)
MAX_NEW_TOKENS = 6
# Measured over all cases: 1.2e-5, on logits of up to 8 and standard deviations from 0.9 to 1.7.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    layout: ParallelLayout
    megatron: InternVLModel
    huggingface: InternVLForConditionalGeneration
    processing: InternVLProcessing
    prompts: list[list[int]]
    visuals: list[VisualInputs | None]

    def batch(self, rows: list[int]) -> TokenBatch:
        return pad_prompts(
            [self.prompts[row] for row in rows],
            [self.visuals[row] for row in rows],
            self.processing.vision_token_ids,
            self.processing.pad_token_id,
        )

    def huggingface_inputs(self, batch: TokenBatch) -> dict[str, Tensor]:
        return self.processing.huggingface_inputs(batch)


def write_variant(folder: Path, name: str) -> Path:
    """A Hugging Face folder: dense Qwen3 or Qwen2, or an upcycled model, tied or not, renormalised or not."""
    dense = folder / "dense"
    build_tiny_internvl(dense, SIZES, seed=0)
    allow_tiles(dense)
    if name.startswith("qwen2"):
        dense = write_tiny_internvl3(folder / "qwen2", dense)
    state, config = read_hf_state(dense), read_hf_config(dense)
    if name == "moe_tied":
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
        del state["language_model.lm_head.weight"]
    if name in SETTINGS:
        state, config = upcycle_state(state, config, SETTINGS[name])
    write_hf_folder(folder / name / "hf", state, config, assets=dense)
    return folder / name / "hf"


def allow_tiles(folder: Path) -> None:
    """Up to MAX_TILES a picture, as the model folder says and nothing else."""
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"crop_to_patches": True, "max_patches": MAX_TILES}), encoding="utf-8")


def noise_visual(generator: np.random.Generator, size: tuple[int, ...]) -> Visual:
    width, height, *num_frames = size
    frames = generator.integers(0, 256, (*num_frames, height, width, 3), dtype=np.uint8)
    return Visual(tuple(map(Image.fromarray, frames if num_frames else frames[None])), is_video=bool(num_frames))


def build_megatron(folder: Path) -> InternVLModel:
    config = read_hf_config(folder)
    model = build_internvl(config, ParallelConfig(), "fp32")
    load_megatron_state(model, Converter(family_of(config).weight_map(config)).to_megatron(SafetensorsFolder(folder)))
    return model


@pytest.fixture(scope="module")
def one_process() -> Iterator[ParallelLayout]:
    yield start_parallel(ParallelConfig(), seed=0)
    stop_parallel()


@pytest.fixture(scope="module", params=["dense", "qwen2", *SETTINGS])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(tmp_path_factory.mktemp("parity"), request.param)


@pytest.fixture(scope="module")
def pair(one_process: ParallelLayout, folder: Path) -> Pair:
    processing = InternVLProcessing.from_folder(folder)
    generator = np.random.default_rng(5)
    visuals = [[noise_visual(generator, size) for size in sizes] for _, sizes in PROBLEMS]
    return Pair(
        layout=one_process,
        megatron=build_megatron(folder),
        huggingface=InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval(),
        processing=processing,
        prompts=[
            processing.encode(problem, ("A. 0", "B. 1"), [visual.size for visual in seen])
            for (problem, _), seen in zip(PROBLEMS, visuals, strict=True)
        ],
        visuals=[processing.visual_inputs(seen) for seen in visuals],
    )


@pytest.mark.parametrize("rows", [*([row] for row in range(6)), list(range(6))], ids=[*NAMES, "padded_batch"])
@torch.no_grad()
def test_logits_equal_transformers(pair: Pair, rows: list[int]) -> None:
    batch = pair.batch(rows)
    num_tiles = 0 if batch.pixel_values is None else len(batch.pixel_values)
    assert num_tiles == sum(NUM_TILES[row] for row in rows)
    expected_BSV = pair.huggingface(**pair.huggingface_inputs(batch)).logits
    got_BSV = pair.megatron.eval()(batch)
    assert got_BSV.shape == expected_BSV.shape
    assert expected_BSV.std() > 0.5
    assert (got_BSV - expected_BSV)[batch.is_real_BS].abs().max() < TOLERANCE


@torch.no_grad()
def test_pictures_and_their_order_reach_the_logits(pair: Pair) -> None:
    """What the comparison above would miss if both models ignored their pictures."""
    batch = pair.batch([1])
    swapped = replace(batch, pixel_values=batch.pixel_values.flip(0))
    model = pair.megatron.eval()
    assert (model(batch) - model(swapped))[0, -1].abs().max() > 1e-2


def test_greedy_generation_equals_transformers(pair: Pair) -> None:
    """Key-value cache, left padding and deterministic top-K, token by token."""
    rows = list(range(len(PROBLEMS)))
    batch = pair.batch(rows)
    closed = list(pair.processing.suppressed_token_ids)
    generated = pair.huggingface.generate(
        **pair.huggingface_inputs(batch), do_sample=False, max_new_tokens=MAX_NEW_TOKENS, suppress_tokens=closed
    )
    expected_BT = generated[:, batch.token_ids_BS.shape[1] :]
    settings = DecodeSettings(
        mode=RouteMode.TOP_K,
        policy=SelectionPolicy(),
        max_new_tokens=MAX_NEW_TOKENS,
        end_token_id=pair.processing.eos_token_id,
        suppressed_token_ids=torch.tensor(closed),
    )
    with decoding_mode(pair.megatron):
        features_FD = pair.megatron.image_features(batch)
        got = decode(pair.megatron, pair.layout, batch, torch.tensor(rows), settings, features_FD)
    for row in rows:
        num_tokens = int(got.is_response_BT[row].sum())
        assert got.token_ids_BT[row, :num_tokens].tolist() == expected_BT[row, :num_tokens].tolist()
    assert len({tuple(row) for row in got.token_ids_BT.tolist()}) > 1


def test_import_then_export_is_the_identity(one_process: ParallelLayout, folder: Path, tmp_path: Path) -> None:
    import_huggingface(folder, tmp_path / "checkpoint")
    export_huggingface(tmp_path / "checkpoint", tmp_path / "exported")
    state, exported = read_hf_state(folder), read_hf_state(tmp_path / "exported")
    assert state.keys() == exported.keys()
    assert all(torch.equal(state[key], exported[key]) for key in state)
    assert read_hf_config(tmp_path / "exported") == read_hf_config(folder)


@torch.no_grad()
def test_upcycled_copies_answer_as_the_dense_model(one_process: ParallelLayout, tmp_path: Path) -> None:
    """Equal experts with renormalised weights are one feed-forward, whatever the router does."""
    dense = write_variant(tmp_path, "dense")
    settings = UpcycleSettings(expert_init="copy", renormalise=True, router_init_std=0.3, num_experts=4, num_active=3)
    state, config = upcycle_state(read_hf_state(dense), read_hf_config(dense), settings)
    write_hf_folder(tmp_path / "copies", state, config, assets=dense)
    processing = InternVLProcessing.from_folder(dense)
    visual = noise_visual(np.random.default_rng(0), (30, 20, 2))
    ids, inputs = processing.encode("What?", (), [visual.size]), processing.visual_inputs([visual])
    batch = pad_prompts([ids], [inputs], processing.vision_token_ids, processing.pad_token_id)
    dense_BSV, copies_BSV = (build_megatron(folder).eval()(batch) for folder in (dense, tmp_path / "copies"))
    # Measured: 1.6e-6.
    assert (copies_BSV - dense_BSV).abs().max() < 1e-4


@pytest.mark.parametrize(("step", "dtype"), [(0, "bfloat16"), (3, "float32")])
def test_a_trained_export_names_the_precision_of_its_weights(
    one_process: ParallelLayout, tmp_path: Path, step: int, dtype: str
) -> None:
    """fp32 weights trained from a bf16 folder: `dtype="auto"` believes the config and would round them."""
    folder = write_variant(tmp_path, "dense")
    model = build_megatron(folder)
    assets = tmp_path / "assets"
    assets.mkdir()
    copy_assets(folder, assets)
    (assets / "config.json").write_text(json.dumps(read_hf_config(folder) | {"dtype": "bfloat16"}), encoding="utf-8")
    save_checkpoint(tmp_path / "checkpoint", model, assets, {"step": step})
    export_huggingface(tmp_path / "checkpoint", tmp_path / "exported")
    assert read_hf_config(tmp_path / "exported")["dtype"] == dtype
    loaded = InternVLForConditionalGeneration.from_pretrained(tmp_path / "exported", dtype="auto")
    assert str(loaded.dtype) == f"torch.{dtype}"


@torch.no_grad()
def test_logits_equal_transformers_with_every_vision_option_the_other_way(
    one_process: ParallelLayout, tmp_path: Path
) -> None:
    """RMS norms, query-key norms, no biases, a final norm; 5 experts, 3 query heads a key head."""
    vision = InternVLVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=(16, 16),
        patch_size=(4, 4), attention_bias=False, use_qk_norm=True, norm_type="rms_norm", use_mean_pooling=False,
        initializer_range=0.2,
    )  # fmt: skip
    text = Qwen3MoeConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
        intermediate_size=64, moe_intermediate_size=20, num_experts=5, num_experts_per_tok=2, norm_topk_prob=True,
        max_position_embeddings=64, eos_token_id=1, pad_token_id=0, bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=5, image_seq_length=4, tie_word_embeddings=False
    )
    huggingface = InternVLForConditionalGeneration(config).eval()
    for parameter in huggingface.parameters():
        if parameter.dim() == 1:  # Norms start at 1 and layer scales at 0.1: equal weights hide a swap.
            parameter.uniform_(0.5, 1.5)
    huggingface.save_pretrained(tmp_path / "hf")
    ids_BS = torch.tensor([[7, 5, 5, 5, 5, 8, 9, 5, 5, 5, 5, 10, 11]])
    pixel_values = torch.randn(2, 3, 16, 16)
    expected_BSV = huggingface(input_ids=ids_BS, pixel_values=pixel_values).logits
    got_BSV = build_megatron(tmp_path / "hf").eval()(
        pad_prompts(ids_BS.tolist(), [VisualInputs(pixel_values, 8)], (5,), 0)
    )
    assert expected_BSV.std() > 0.5
    assert (got_BSV - expected_BSV).abs().max() < TOLERANCE
