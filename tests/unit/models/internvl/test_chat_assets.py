"""An original folder's tokenizer and settings, here and as the native files that stock transformers reads."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_internvl import write_original_internvl
from PIL import Image
from stock_internvl import offline_processor
from transformers import AutoTokenizer, GenerationConfig, InternVLConfig

from megatron_moe_grpo.data.visuals import Visual
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl.chat_assets import read_original_tokenizer, write_native_assets
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.prompt_template import NAMED_TOKENS

PROBLEM, OPTIONS = "Is <image> in\n<video>?", ("A. ja", "B. né 日本")
ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets") / "original"
    write_original_internvl(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "top_k": 7}))
    return folder


def without_tokenizer_json(original: Path, folder: Path) -> Path:
    """The same model with InternVL3's files: vocab.json, merges.txt, tokens added elsewhere, and no <video>."""
    folder.mkdir()
    model = json.loads((original / "tokenizer.json").read_text())["model"]
    plain = [
        token for token in sorted(model["vocab"], key=model["vocab"].get) if not token.startswith("<") or token == "<"
    ]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(plain)}))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False) | {"special": True}
    added = {str(len(plain) + number): {"content": token, **flags} for number, token in enumerate(ADDED)}
    settings = {
        "added_tokens_decoder": added, "additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None, "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": "You are Qwen.", "model_max_length": 12288, "errors": "replace",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text((original / "config.json").read_text())
    return folder


def visuals() -> list[Visual]:
    pixels = np.random.default_rng(3).integers(0, 256, (3, 16, 40, 3), dtype=np.uint8)
    first, *frames = map(Image.fromarray, pixels)
    return [Visual((first,)), Visual(tuple(frames), is_video=True)]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module", params=["tokenizer_json", "vocab_and_merges"])
def folder(request: pytest.FixtureRequest, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "tokenizer_json":
        return original
    return without_tokenizer_json(original, tmp_path_factory.mktemp("slow") / "original")


def test_native_assets_run_in_the_stock_processor_and_ask_the_same(folder: Path, tmp_path: Path) -> None:
    before = digests(folder)
    write_native_assets(folder, tmp_path)
    assert digests(folder) == before
    here, native = InternVLProcessing.from_folder(folder), InternVLProcessing.from_folder(tmp_path)
    sizes = [visual.size for visual in visuals()]
    ids, inputs = here.encode(PROBLEM, OPTIONS, sizes), here.visual_inputs(visuals())
    assert native.encode(PROBLEM, OPTIONS, sizes) == ids
    assert torch.equal(native.visual_inputs(visuals()).pixel_values, inputs.pixel_values)
    assert (native.eos_token_id, native.pad_token_id) == (here.eos_token_id, here.pad_token_id)

    stock = offline_processor(tmp_path)
    content = [
        {"type": "text", "text": "Is "}, {"type": "image"}, {"type": "text", "text": " in\n"}, {"type": "video"},
        {"type": "text", "text": "?\nA. ja\nB. né 日本"},
    ]  # fmt: skip
    messages = [{"role": "user", "content": content}]
    prompt = stock.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    picture, video = visuals()
    # The stock processor crops whatever its image processor's file says; the largest number of tiles is the file's.
    expected = stock(text=prompt, images=list(picture.frames), videos=[list(video.frames)], return_tensors="pt")
    assert ids == expected["input_ids"][0].tolist()
    assert torch.equal(inputs.pixel_values, expected["pixel_values"])
    assert len(inputs.pixel_values) == 3 + 1 + 2


def test_native_assets_name_what_stock_transformers_asks_for(folder: Path, tmp_path: Path) -> None:
    write_native_assets(folder, tmp_path)
    tokenizer, config = AutoTokenizer.from_pretrained(tmp_path), InternVLConfig.from_pretrained(tmp_path)
    for name, token in NAMED_TOKENS.items():
        assert tokenizer.special_tokens_map[name] == token
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == config.image_token_id
    assert config.text_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == tokenizer.eos_token_id
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not {"auto_map", "chat_template"} & written.keys()
    video = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert (video["video_processor_type"], video["size"]) == ("InternVLVideoProcessor", {"height": 16, "width": 16})


def test_generation_settings_are_kept_but_for_the_end(original: Path, tmp_path: Path) -> None:
    write_native_assets(original, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": 1, "top_k": 7}


def test_colours_are_the_folders_or_imagenets(original: Path, folder: Path, tmp_path: Path) -> None:
    write_native_assets(folder, tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["image_mean"] == ([0.4] * 3 if folder == original else [0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("change", "num_tiles"),
    [({}, 3 + 1), ({"max_dynamic_patch": 2}, 2 + 1), ({"dynamic_image_size": False}, 1)],
)
def test_an_original_folder_says_in_its_config_how_many_tiles_a_picture_has(
    original: Path, tmp_path: Path, change: dict[str, Any], num_tiles: int
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    processing = InternVLProcessing.from_folder(folder)
    assert len(processing.visual_inputs(visuals()[:1]).pixel_values) == num_tiles


def test_read_original_tokenizer_refuses_a_folder_without_one(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json, or vocab\.json and merges\.txt"):
        read_original_tokenizer(tmp_path)


@pytest.mark.parametrize("change", [{"eos_token": "<|endoftext|>"}, {"pad_token": None}])
def test_read_original_tokenizer_refuses_another_models(original: Path, tmp_path: Path, change: dict[str, str]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((original / name).read_text())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | change
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="template internvl2_5"):
        read_original_tokenizer(tmp_path)
