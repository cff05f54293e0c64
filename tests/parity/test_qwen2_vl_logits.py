"""Megatron's Qwen2-VL against transformers, on the same weights; with experts, against the modelling file we export.

Random weights large enough that attention, routing and the vision tower all matter, biases and norms that differ; text,
pictures of several sizes, a video, and all of them in one left-padded batch.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.data.visuals import Visual
from megatron_moe_grpo.mcore.decoding import decoding_mode
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel
from megatron_moe_grpo.mcore.routing_context import SelectionPolicy
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.convert import export_huggingface, import_huggingface, load_megatron_state
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.qwen2_vl.modeling_qwen2_vl_moe import Qwen2VLMoeConfig, Qwen2VLMoeForConditionalGeneration
from megatron_moe_grpo.models.qwen2_vl.moe_config import MODELING_FILE, upcycled_config
from megatron_moe_grpo.models.qwen2_vl.processing import Qwen2VLProcessing
from megatron_moe_grpo.models.qwen2_vl.tiny import TinySizes, build_tiny_qwen2_vl
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.token_batch import TokenBatch, pad_prompts
from megatron_moe_grpo.models.upcycle import upcycle_state
from megatron_moe_grpo.models.upcycle_settings import UpcycleSettings
from megatron_moe_grpo.models.visual_inputs import VisualInputs
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.decode import DecodeSettings, decode
from megatron_moe_grpo.routing.trace import RouteMode

SIZES = TinySizes(
    patch_size=4, min_pixels=64, max_pixels=1024, vision_hidden_size=16, vision_layers=2, vision_heads=2,
    hidden_size=48, layers=4, heads=4, kv_heads=2, ffn_size=32, max_positions=128, initializer_std=0.2,
)  # fmt: skip
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": []}
# Name -> (tied embeddings, expert keys of the text config).
VARIANTS: dict[str, tuple[bool, dict[str, object] | None]] = {
    "dense": (False, None),
    "dense_tied": (True, None),
    "moe": (False, EXPERTS | {"norm_topk_prob": False}),
    "moe_tied_renormalised": (True, EXPERTS | {"norm_topk_prob": True, "mlp_only_layers": [1]}),
}
PICTURE, WIDE, TALL = ((20, 16),), ((40, 8),), ((12, 30),)
# Question -> frames (width, height) of each visual; more than one frame is a video.
ROWS = (
    ("How many 0s are there?", ()),
    ("Which is the largest digit?", (PICTURE,)),
    ("Compare <image> with <image> and <image>.", (PICTURE, WIDE, TALL)),
    ("Which?", (PICTURE * 3,)),
    ("First <video> and then <image>, which?", (TALL * 4, WIDE)),
)
ALL_ROWS = list(range(len(ROWS)))
MAX_NEW_TOKENS = 6
# Measured over all cases: 6.6e-6, on logits of up to 9.5 and a standard deviation of 1.4 to 2.2.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    layout: ParallelLayout
    megatron: VisionLanguageModel
    huggingface: PreTrainedModel
    processing: Qwen2VLProcessing
    prompts: list[list[int]]
    visuals: list[VisualInputs | None]

    def batch(self, rows: list[int]) -> TokenBatch:
        visuals = [self.visuals[row] for row in rows]
        grids = [None if visual is None else visual.grid_V3 for visual in visuals]
        prompts = [self.prompts[row] for row in rows]
        return pad_prompts(
            prompts,
            visuals,
            self.processing.vision_token_ids,
            self.processing.pad_token_id,
            rope_positions=list(map(self.processing.rope_position_3S, prompts, grids)),
        )

    @torch.no_grad()
    def huggingface_logits(self, batch: TokenBatch) -> Tensor:
        return self.huggingface(**self.processing.huggingface_inputs(batch)).logits

    @torch.no_grad()
    def megatron_logits(self, batch: TokenBatch) -> Tensor:
        return self.megatron.eval()(batch)


def write_variant(folder: Path, name: str) -> Path:
    """A Hugging Face folder of one of VARIANTS, written by transformers, with biases and norms that differ."""
    ties_embeddings, experts = VARIANTS[name]
    model: PreTrainedModel = build_tiny_qwen2_vl(folder / "dense", SIZES, seed=0, ties_embeddings=ties_embeddings)
    config = read_hf_config(folder / "dense")
    if experts is not None:
        config = upcycled_config(config, experts)
        model = Qwen2VLMoeForConditionalGeneration(Qwen2VLMoeConfig(**config))
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=SIZES.embedding_std)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(folder / "saved")
    write_hf_folder(folder / "hf", read_hf_state(folder / "saved"), config, assets=folder / "dense")
    return folder / "hf"


def build_megatron(folder: Path) -> VisionLanguageModel:
    config = read_hf_config(folder)
    model = build_model(config, ParallelConfig(), "fp32")
    load_megatron_state(model, Converter(family_of(config).weight_map(config)).to_megatron(SafetensorsFolder(folder)))
    return model


def noise_visual(frames: tuple[tuple[int, int], ...], generator: np.random.Generator) -> Visual:
    pictures = [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in frames
    ]
    return Visual(tuple(pictures), is_video=len(frames) > 1)


@pytest.fixture(scope="module")
def one_process() -> Iterator[ParallelLayout]:
    yield start_parallel(ParallelConfig(), seed=0)
    stop_parallel()


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(tmp_path_factory.mktemp("parity"), request.param)


@pytest.fixture(scope="module")
def pair(one_process: ParallelLayout, folder: Path) -> Pair:
    return make_pair(one_process, folder)


def make_pair(layout: ParallelLayout, folder: Path) -> Pair:
    """The folder's model on both sides, and the inputs of ROWS."""
    family = family_of(read_hf_config(folder))
    processing, generator = family.processing.from_folder(folder), np.random.default_rng(5)
    rows = [[noise_visual(frames, generator) for frames in visuals] for _, visuals in ROWS]
    return Pair(
        layout=layout,
        megatron=build_megatron(folder),
        huggingface=family.huggingface_class().from_pretrained(folder, dtype=torch.float32).eval(),
        processing=processing,
        prompts=[
            processing.encode(problem, ("A. 0", "B. 1"), [visual.size for visual in row])
            for (problem, _), row in zip(ROWS, rows, strict=True)
        ],
        visuals=[processing.visual_inputs(row) for row in rows],
    )


@pytest.mark.parametrize(
    "rows", [[0], [1], [2], [3], [4], ALL_ROWS], ids=["text", "image", "images", "video", "image_and_video", "padded"]
)
def test_qwen2_vl_logits_equal_transformers(pair: Pair, rows: list[int]) -> None:
    batch = pair.batch(rows)
    expected_BSV, got_BSV = pair.huggingface_logits(batch), pair.megatron_logits(batch)
    assert got_BSV.shape == expected_BSV.shape
    assert expected_BSV.std() > 0.5
    assert (got_BSV - expected_BSV)[batch.is_real_BS].abs().max() < TOLERANCE


def test_each_row_alone_equals_the_padded_batch(pair: Pair) -> None:
    whole_BSV = pair.megatron_logits(pair.batch(ALL_ROWS))
    for row in ALL_ROWS:
        alone_1SV = pair.megatron_logits(pair.batch([row]))
        assert (whole_BSV[row, -alone_1SV.shape[1] :] - alone_1SV[0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("row", [2, 4], ids=["images", "image_and_video"])
def test_visuals_and_their_positions_reach_the_logits(pair: Pair, row: int) -> None:
    """What the comparison above would miss if both models ignored patches, grids or rotary positions."""
    batch = pair.batch([row])
    logits_1SV = pair.megatron_logits(batch)
    counting_3BS = batch.position_BS.expand(3, -1, -1)
    reversed_3BS = batch.rope_position_3BS.flip(0)
    for other in (
        replace(batch, pixel_values=batch.pixel_values.flip(0)),
        replace(batch, grid_V3=batch.grid_V3[:, [0, 2, 1]]),
        replace(batch, rope_position_3BS=counting_3BS),
        replace(batch, rope_position_3BS=reversed_3BS),
    ):
        assert (logits_1SV - pair.megatron_logits(other))[0, -1].abs().max() > 1e-2


def test_qwen2_vl_greedy_generation_equals_transformers(pair: Pair) -> None:
    """Key-value cache, left padding, positions that go on after visuals and deterministic top-K, token by token."""
    batch = pair.batch(ALL_ROWS)
    closed = list(pair.processing.suppressed_token_ids)
    generated = pair.huggingface.generate(
        **pair.processing.huggingface_inputs(batch), do_sample=False, max_new_tokens=MAX_NEW_TOKENS,
        suppress_tokens=closed, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    expected_BT = generated.sequences[:, batch.token_ids_BS.shape[1] :]
    settings = DecodeSettings(
        mode=RouteMode.TOP_K,
        policy=SelectionPolicy(),
        max_new_tokens=MAX_NEW_TOKENS,
        end_token_id=pair.processing.eos_token_id,
        suppressed_token_ids=torch.tensor(closed),
    )
    with decoding_mode(pair.megatron):
        features_FD = pair.megatron.image_features(batch)
        got = decode(pair.megatron, pair.layout, batch, torch.arange(len(ROWS)), settings, features_FD)
    for row in ALL_ROWS:
        num_tokens = int(got.is_response_BT[row].sum())
        assert got.token_ids_BT[row, :num_tokens].tolist() == expected_BT[row, :num_tokens].tolist()
        for step in range(num_tokens):
            expected = generated.logits[step][row].log_softmax(dim=-1)[expected_BT[row, step]]
            assert abs(float(got.token_logprob_BT[row, step] - expected)) < TOLERANCE
    assert len({tuple(row) for row in got.token_ids_BT.tolist()}) > 1


@torch.no_grad()
def test_bf16_vision_features_equal_transformers_to_the_bit(one_process: ParallelLayout, tmp_path: Path) -> None:
    """Rotary frequencies must stay fp32, as in transformers, when Megatron's Float16Module casts the model."""
    folder = write_variant(tmp_path, "dense")
    pair, config = make_pair(one_process, folder), read_hf_config(folder)
    model = build_model(config, ParallelConfig(), "bf16")
    load_megatron_state(model, Converter(family_of(config).weight_map(config)).to_megatron(SafetensorsFolder(folder)))
    model = model.bfloat16()
    stock = type(pair.huggingface).from_pretrained(folder, dtype=torch.bfloat16).eval()
    batch = pair.batch([2])
    expected = stock.get_image_features(batch.pixel_values, batch.grid_V3).pooler_output
    assert torch.equal(model.image_features(batch), torch.cat(expected))


@pytest.mark.parametrize(
    "settings",
    [
        UpcycleSettings(expert_init="copy", renormalise=True, router_init_std=0.3),
        UpcycleSettings(expert_init="copy", router_init_std=0.0, layers="0,2-3", granularity=2, num_active=4),
    ],
    ids=["renormalised", "equal_routers_halves_some_layers"],
)
def test_an_upcycled_copy_answers_as_the_dense_model(
    one_process: ParallelLayout, tmp_path: Path, settings: UpcycleSettings
) -> None:
    dense = write_variant(tmp_path, "dense")
    state, config = upcycle_state(read_hf_state(dense), read_hf_config(dense), settings)
    write_hf_folder(tmp_path / "moe", state, config, assets=dense)
    dense_pair, moe_pair = make_pair(one_process, dense), make_pair(one_process, tmp_path / "moe")
    assert type(moe_pair.huggingface) is Qwen2VLMoeForConditionalGeneration
    batch = dense_pair.batch(ALL_ROWS)
    expected_BSV = dense_pair.huggingface_logits(batch)
    for got_BSV in (moe_pair.huggingface_logits(batch), moe_pair.megatron_logits(batch)):
        assert (got_BSV - expected_BSV)[batch.is_real_BS].abs().max() < TOLERANCE


def test_qwen2_vl_import_then_export_is_the_identity(one_process: ParallelLayout, folder: Path, tmp_path: Path) -> None:
    import_huggingface(folder, tmp_path / "checkpoint")
    export_huggingface(tmp_path / "checkpoint", tmp_path / "exported")
    state, exported = read_hf_state(folder), read_hf_state(tmp_path / "exported")
    assert state.keys() == exported.keys()
    assert all(torch.equal(state[key], exported[key]) for key in state)
    for file in ("config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (tmp_path / "exported" / file).read_bytes() == (folder / file).read_bytes()
    is_moe = json.loads((folder / "config.json").read_text())["model_type"] == "qwen2_vl_moe"
    assert (tmp_path / "exported" / MODELING_FILE.name).exists() == is_moe
