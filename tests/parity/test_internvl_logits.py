"""Megatron's InternVL against transformers' own InternVLForConditionalGeneration, on the same weights.

Random weights large enough that attention, routing and the vision tower all matter; text, one picture, several
pictures, and all of them in one left-padded batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen3MoeConfig

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.mcore.decoding import decoding_mode
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel
from megatron_moe_grpo.mcore.routing_context import SelectionPolicy
from megatron_moe_grpo.models.convert import export_huggingface, import_huggingface, load_megatron_state
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.internvl.model import InternVLModel, build_internvl
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.token_batch import TokenBatch, pad_prompts
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state
from megatron_moe_grpo.rollout.decode import DecodeSettings, decode
from megatron_moe_grpo.routing.trace import RouteMode

SIZES = TinySizes(
    image_size=16, patch_size=4, vision_hidden_size=16, vision_layers=2, vision_heads=2, hidden_size=32, layers=4,
    heads=4, kv_heads=2, head_dim=8, ffn_size=24, max_positions=128, initializer_std=0.2,
)  # fmt: skip
UPCYCLED = UpcycleSettings(noise_scale=1.0, router_init_std=0.3, seed=1)
PROBLEMS = (("How many 0s are there?", 0), ("Which is the largest digit?", 2), ("Which?", 1), ("How many?", 3))
MAX_NEW_TOKENS = 6
# Measured over all cases: 8.5e-6, on logits of up to 6 and a standard deviation of 1.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    layout: ParallelLayout
    megatron: InternVLModel
    huggingface: InternVLForConditionalGeneration
    processing: InternVLProcessing
    prompts: list[list[int]]
    images: list[Tensor | None]

    def batch(self, rows: list[int]) -> TokenBatch:
        return pad_prompts(
            [self.prompts[row] for row in rows],
            [self.images[row] for row in rows],
            self.processing.image_token_id,
            self.processing.num_image_tokens,
            self.processing.pad_token_id,
        )

    def huggingface_inputs(self, batch: TokenBatch) -> dict[str, Tensor]:
        inputs = {"input_ids": batch.token_ids_BS, "attention_mask": batch.is_real_BS.long()}
        return inputs if batch.pixel_values is None else inputs | {"pixel_values": batch.pixel_values}


def write_variant(folder: Path, name: str) -> Path:
    """A Hugging Face folder: `dense` or an upcycled model, tied or not, renormalised or not."""
    dense = folder / "dense"
    build_tiny_internvl(dense, SIZES, seed=0)
    state, config = read_hf_state(dense), read_hf_config(dense)
    if name == "moe_tied":
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
        del state["language_model.lm_head.weight"]
    if name != "dense":
        state, config = upcycle_state(state, config, replace(UPCYCLED, renormalise=name == "moe_renormalised"))
    write_hf_folder(folder / name / "hf", state, config, assets=dense)
    return folder / name / "hf"


def build_megatron(folder: Path) -> InternVLModel:
    config = read_hf_config(folder)
    model = build_internvl(family_of(config).parse_architecture(config), config, ParallelConfig(), "fp32")
    load_megatron_state(model, Converter(family_of(config).weight_map(config)).to_megatron(read_hf_state(folder)))
    return model


@pytest.fixture(scope="module")
def one_process() -> Iterator[ParallelLayout]:
    yield start_parallel(ParallelConfig(), seed=0)
    stop_parallel()


@pytest.fixture(scope="module", params=["dense", "moe", "moe_renormalised", "moe_tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(tmp_path_factory.mktemp("parity"), request.param)


@pytest.fixture(scope="module")
def pair(one_process: ParallelLayout, folder: Path) -> Pair:
    processing = InternVLProcessing.from_folder(folder)
    generator = np.random.default_rng(5)
    images = []
    for _, count in PROBLEMS:
        pictures = [Image.fromarray(generator.integers(0, 256, (20, 16, 3), dtype=np.uint8)) for _ in range(count)]
        images.append(processing.pixel_values(pictures) if pictures else None)
    return Pair(
        layout=one_process,
        megatron=build_megatron(folder),
        huggingface=InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval(),
        processing=processing,
        prompts=[processing.encode(problem, ("A. 0", "B. 1"), count) for problem, count in PROBLEMS],
        images=images,
    )


@pytest.mark.parametrize("rows", [[0], [2], [1], [0, 1, 2, 3]], ids=["text", "image", "images", "padded_batch"])
@torch.no_grad()
def test_logits_equal_transformers(pair: Pair, rows: list[int]) -> None:
    batch = pair.batch(rows)
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
    batch = pair.batch([0, 1, 2, 3])
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
        features_FD = pair.megatron.image_features(batch.pixel_values)
        got = decode(pair.megatron, pair.layout, batch, torch.arange(4), settings, features_FD)
    for row in range(4):
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
    got_BSV = build_megatron(tmp_path / "hf").eval()(pad_prompts(ids_BS.tolist(), [pixel_values], 5, 4, 0))
    assert expected_BSV.std() > 0.5
    assert (got_BSV - expected_BSV).abs().max() < TOLERANCE
