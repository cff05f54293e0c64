"""InternVL's original layout: Megatron against the original computation, there and back, and as a native folder."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from original_internvl import OriginalInternVL, OriginalSizes, write_original_internvl
from PIL import Image
from stock_internvl import offline_processor
from transformers import AutoModelForImageTextToText

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.data.visuals import Visual
from megatron_moe_grpo.errors import ConversionError
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel
from megatron_moe_grpo.models.convert import export_huggingface, import_huggingface, load_model
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.token_batch import TokenBatch, pad_prompts
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state

SIZES = {
    "qwen2": OriginalSizes("qwen2"),
    "qwen3": OriginalSizes("qwen3", has_qk_norm=True, has_qkv_bias=False, norm_type="rms_norm"),
    "qwen3_moe": OriginalSizes("qwen3_moe"),
}
# Measured over all cases: 3.8e-6, on logits with a standard deviation of 1.2.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Imported:
    """A folder of the original layout, the model that wrote it, and the checkpoint made of it."""

    original: OriginalInternVL
    folder: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def one_process() -> Iterator[ParallelLayout]:
    yield start_parallel(ParallelConfig(), seed=0)
    stop_parallel()


@pytest.fixture(scope="module", params=list(SIZES))
def imported(
    request: pytest.FixtureRequest, one_process: ParallelLayout, tmp_path_factory: pytest.TempPathFactory
) -> Imported:
    folder = tmp_path_factory.mktemp("original")
    original = write_original_internvl(folder / "hf", SIZES[request.param], seed=3)
    import_huggingface(folder / "hf", folder / "checkpoint")
    return Imported(original, folder / "hf", folder / "checkpoint")


def visuals() -> list[Visual]:
    pixels = np.random.default_rng(3).integers(0, 256, (4, 16, 40, 3), dtype=np.uint8)
    first, second, *frames = map(Image.fromarray, pixels)
    return [Visual((first,)), Visual((second.resize((20, 20)),)), Visual(tuple(frames), is_video=True)]


def prompt_batch(processing: InternVLProcessing, seen: list[Visual]) -> TokenBatch:
    ids = processing.encode("What is this?", ("A. 1", "B. 2"), [visual.size for visual in seen])
    inputs = processing.visual_inputs(seen)
    return pad_prompts([ids], [inputs], processing.vision_token_ids, processing.pad_token_id)


@pytest.mark.parametrize("seen", [[], visuals()], ids=["text", "tiles_and_video"])
@torch.no_grad()
def test_logits_equal_the_original_computation(imported: Imported, seen: list[Visual]) -> None:
    batch = prompt_batch(InternVLProcessing.from_folder(imported.folder), seen)
    expected_BSV = imported.original(batch.token_ids_BS, batch.pixel_values)
    got_BSV = load_model(imported.checkpoint).eval()(batch)
    assert expected_BSV.std() > 0.5
    assert (got_BSV - expected_BSV).abs().max() < TOLERANCE


def test_import_then_export_is_the_identity(imported: Imported, tmp_path: Path) -> None:
    export_huggingface(imported.checkpoint, tmp_path / "exported")
    state, exported = read_hf_state(imported.folder), read_hf_state(tmp_path / "exported")
    assert state.keys() == exported.keys()
    assert all(torch.equal(state[key], exported[key]) for key in state)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        first, second = (hashlib.sha256((f / name).read_bytes()) for f in (imported.folder, tmp_path / "exported"))
        assert first.hexdigest() == second.hexdigest()


@torch.no_grad()
def test_exported_natively_it_is_stock(imported: Imported, tmp_path: Path) -> None:
    """Stock classes load weights, config, tokenizer and image settings, and answer as the original does."""
    native = tmp_path / "native"
    export_huggingface(imported.checkpoint, native, layout="native")
    model = AutoModelForImageTextToText.from_pretrained(native, dtype=torch.float32).eval()
    processor = offline_processor(native)
    content = [{"type": "image"}, {"type": "image"}, {"type": "video"}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "What is this?\nA. 1\nB. 2"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    first, second, video = (list(visual.frames) for visual in visuals())
    inputs = processor(text=prompt, images=[*first, *second], videos=[video], return_tensors="pt")
    batch = prompt_batch(InternVLProcessing.from_folder(imported.folder), visuals())
    assert torch.equal(inputs["input_ids"], batch.token_ids_BS)
    assert torch.equal(inputs["pixel_values"], batch.pixel_values)
    expected_BSV = imported.original(batch.token_ids_BS, batch.pixel_values)
    assert (model(**inputs).logits - expected_BSV).abs().max() < TOLERANCE
    # A native folder is one like any other.
    import_huggingface(native, tmp_path / "again")
    got_BSV = load_model(tmp_path / "again").eval()(prompt_batch(InternVLProcessing.from_folder(native), visuals()))
    assert (got_BSV - expected_BSV).abs().max() < TOLERANCE


@torch.no_grad()
def test_upcycled_it_stays_in_its_layout(one_process: ParallelLayout, tmp_path: Path) -> None:
    """Copies with renormalised weights answer as the dense original, in both layouts."""
    dense = tmp_path / "dense"
    original = write_original_internvl(dense)
    settings = UpcycleSettings(expert_init="copy", renormalise=True, num_experts=4, num_active=2)
    state, config = upcycle_state(read_hf_state(dense), read_hf_config(dense), settings)
    assert config["model_type"] == "internvl_chat"
    write_hf_folder(tmp_path / "moe", state, config, assets=dense)
    import_huggingface(tmp_path / "moe", tmp_path / "checkpoint")
    export_huggingface(tmp_path / "checkpoint", tmp_path / "native", layout="native")
    batch = prompt_batch(InternVLProcessing.from_folder(tmp_path / "moe"), visuals())
    expected_BSV = original(batch.token_ids_BS, batch.pixel_values)
    assert (load_model(tmp_path / "checkpoint").eval()(batch) - expected_BSV).abs().max() < TOLERANCE
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "native", dtype=torch.float32).eval()
    logits_BSV = stock(input_ids=batch.token_ids_BS, pixel_values=batch.pixel_values).logits
    assert stock.config.text_config.model_type == "qwen3_moe"
    assert (logits_BSV - expected_BSV).abs().max() < TOLERANCE


def test_a_native_model_has_no_other_layout(imported: Imported, tmp_path: Path) -> None:
    export_huggingface(imported.checkpoint, tmp_path / "native", layout="native")
    import_huggingface(tmp_path / "native", tmp_path / "again")
    with pytest.raises(ConversionError, match="no other layout"):
        export_huggingface(tmp_path / "again", tmp_path / "twice", layout="native")


def test_code_beside_the_weights_is_never_run(imported: Imported, tmp_path: Path) -> None:
    """`auto_map` names it; the folder carries code that would leave a mark."""
    folder = tmp_path / "hf"
    write_hf_folder(folder, read_hf_state(imported.folder), read_hf_config(imported.folder), assets=imported.folder)
    mark = tmp_path / "mark"
    for name in ("modeling_internvl_chat.py", "configuration_internvl_chat.py", "conversation.py"):
        (folder / name).write_text(f"open({json.dumps(str(mark))}, 'w')")
    import_huggingface(folder, tmp_path / "checkpoint")
    InternVLProcessing.from_folder(folder)
    export_huggingface(tmp_path / "checkpoint", tmp_path / "native", layout="native")
    assert not mark.exists()
    assert not list((tmp_path / "native").glob("*.py"))
