"""Ids and pixels against transformers' own processor."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stock_internvl import OfflineInternVLProcessor, offline_processor

from megatron_moe_grpo.data.visuals import Visual, VisualSize
from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.models.chat_processing import message_content
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.tiny_tokenizer import SPECIAL_TOKENS

PROBLEM, OPTIONS = "Which digit is in the top-left cell?", ("A. 3", "B. 7", "C. 1", "D. 0")
ONE_PICTURE = [VisualSize(32, 32)]


@pytest.fixture(scope="module")
def processing(dense_folder: Path) -> InternVLProcessing:
    return InternVLProcessing.from_folder(dense_folder)


def tiled_processing(dense_folder: Path, folder: Path, max_patches: int, min_patches: int = 1) -> InternVLProcessing:
    """The same model with another image processor file: one tile a picture for `max_patches` 1."""
    shutil.copytree(dense_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "preprocessor_config.json"
    tiling = {"crop_to_patches": max_patches > 1, "min_patches": min_patches, "max_patches": max_patches}
    path.write_text(json.dumps(json.loads(path.read_text()) | tiling))
    return InternVLProcessing.from_folder(folder)


@pytest.fixture(scope="module")
def tiled(dense_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> InternVLProcessing:
    return tiled_processing(dense_folder, tmp_path_factory.mktemp("tiled") / "model", 12)


@pytest.fixture(scope="module")
def oracle(dense_folder: Path) -> OfflineInternVLProcessor:
    return offline_processor(dense_folder)


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def picture(width: int, height: int) -> Visual:
    return Visual((random_image(width, height),))


def video(width: int, height: int, num_frames: int) -> Visual:
    frames = (random_image(width + number, height).resize((width, height)) for number in range(num_frames))
    return Visual(tuple(frames), is_video=True)


def check_against(
    oracle: OfflineInternVLProcessor, processing: InternVLProcessing, problem: str, visuals: list[Visual], tiles: int
) -> list[int]:
    """Ids and pixel values equal the stock processor's call; gives the ids."""
    sizes = [visual.size for visual in visuals]
    content: list[dict[str, Any]] = message_content("\n".join((problem, *OPTIONS)), sizes)
    prompt = oracle.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    videos = [list(visual.frames) for visual in visuals if visual.is_video]
    images = [visual.frames[0] for visual in visuals if not visual.is_video]
    expected = oracle(
        text=prompt, images=images or None, videos=videos or None, crop_to_patches=tiles > 1, max_patches=tiles,
        return_tensors="pt",
    )  # fmt: skip
    ids, inputs = processing.encode(problem, OPTIONS, sizes), processing.visual_inputs(visuals)
    assert ids == expected["input_ids"][0].tolist()
    assert torch.equal(inputs.pixel_values, expected["pixel_values"]) and inputs.grid_V3 is None
    assert inputs.num_features == ids.count(processing.image_token_id) == 4 * len(expected["pixel_values"])
    return ids


@pytest.mark.parametrize(
    ("problem", "num_images"),
    [(PROBLEM, 1), ("Compare <image>\nwith <image> please, né 日本.", 2), ("Three pictures.", 3)],
)
def test_encode_and_visual_inputs_equal_transformers(
    processing: InternVLProcessing, oracle: OfflineInternVLProcessor, problem: str, num_images: int
) -> None:
    check_against(oracle, processing, problem, [picture(40, 30 + n) for n in range(num_images)], tiles=1)


@pytest.mark.parametrize("max_tiles", [2, 6, 12])
def test_tiled_pictures_equal_transformers(
    dense_folder: Path, oracle: OfflineInternVLProcessor, max_tiles: int, tmp_path: Path
) -> None:
    processing = tiled_processing(dense_folder, tmp_path / "model", max_tiles)
    sizes = [(32, 32), (64, 32), (30, 100), (300, 200), (500, 60), (33, 97)]
    for number, size in enumerate(sizes):
        check_against(oracle, processing, PROBLEM, [picture(*size), picture(*sizes[number - 1])], tiles=max_tiles)


@pytest.mark.parametrize("max_tiles", [1, 6])
@pytest.mark.parametrize(
    ("problem", "kinds"),
    [
        ("What moves?", "v"),
        ("First <image>\nthen <video>\nand <video>?", "ivv"),
        ("<video> or <image> or <image>?", "vii"),
    ],
)
def test_videos_equal_transformers(
    dense_folder: Path, oracle: OfflineInternVLProcessor, problem: str, kinds: str, max_tiles: int, tmp_path: Path
) -> None:
    processing = tiled_processing(dense_folder, tmp_path / "model", max_tiles)
    visuals = [video(40, 24, 8) if kind == "v" else picture(70, 33) for kind in kinds]
    check_against(oracle, processing, problem, visuals, tiles=max_tiles)


def test_a_prompt_without_visuals_equals_transformers(
    processing: InternVLProcessing, oracle: OfflineInternVLProcessor
) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "No picture here?"}]}]
    prompt = oracle.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert processing.encode("No picture here?", (), []) == oracle(text=prompt)["input_ids"][0]
    assert processing.visual_inputs([]) is None


def test_the_folder_says_how_many_tiles_a_picture_has(dense_folder: Path, tmp_path: Path) -> None:
    def num_tiles(name: str, max_patches: int, min_patches: int = 1) -> int:
        processing = tiled_processing(dense_folder, tmp_path / name, max_patches, min_patches)
        return processing.visual_inputs([picture(160, 30)]).pixel_values.shape[0]

    assert [num_tiles(f"largest {largest}", largest) for largest in (1, 3, 4, 8)] == [1, 3 + 1, 4 + 1, 5 + 1]
    assert num_tiles("smallest 7", 9, min_patches=7) == 7 + 1
    # The smallest grid is the file's, but never larger than the largest.
    assert num_tiles("smallest 7 of 3", 3, min_patches=7) == 3 + 1


def test_encode_refuses_a_chat_template_without_pictures(processing: InternVLProcessing, dense_folder: Path) -> None:
    other = InternVLProcessing.from_folder(dense_folder)
    other.tokenizer.chat_template = "{% for message in messages %}text{% endfor %}"
    with pytest.raises(ConfigError, match="does not place the visuals"):
        other.encode(PROBLEM, OPTIONS, ONE_PICTURE)


def test_encode_is_short_and_binds_letter_and_digit(processing: InternVLProcessing) -> None:
    tokens = [processing.tokenizer.decode([token_id]) for token_id in processing.encode(PROBLEM, OPTIONS, ONE_PICTURE)]
    assert tokens == [
        "<|im_start|>", "user", "\n", "<img>", *["<IMG_CONTEXT>"] * 4, "</img>", "\n", PROBLEM,
        "\nA. 3", "\nB. 7", "\nC. 1", "\nD. 0", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n",
    ]  # fmt: skip
    # An option that starts with a pair of letters seen in training must not pull the mark's space into its token.
    assert processing.tokenizer.tokenize("C. there")[0] == processing.tokenizer.tokenize("C. 31")[0]
    how_many = processing.tokenizer.encode("How many 7s are there?")
    assert [processing.decode([token_id]) for token_id in how_many] == ["How many ", "7", "s are there?"]


@pytest.mark.parametrize("visuals", [[], ONE_PICTURE, ONE_PICTURE * 3])
def test_encode_refuses_tags_that_do_not_match_the_visuals(
    processing: InternVLProcessing, visuals: list[VisualSize]
) -> None:
    with pytest.raises(DataError, match=rf"2 tags \(image, image\), {len(visuals)} visuals"):
        processing.encode("<image> or <image>?", OPTIONS, visuals)


# `<video>` typed as text is a tag, and answered for as one.
@pytest.mark.parametrize("token", [token for token in SPECIAL_TOKENS if token != "<video>"])
def test_encode_refuses_special_tokens_typed_as_text(processing: InternVLProcessing, token: str) -> None:
    for problem, options in ((f"What{token}?", OPTIONS), (PROBLEM, (f"A. {token}", "B. 1"))):
        with pytest.raises(DataError, match="Special tokens typed as text"):
            processing.encode(problem, options, ONE_PICTURE)


def test_answer_ids_are_the_letter_and_the_end_of_turn(processing: InternVLProcessing) -> None:
    vocabulary = processing.tokenizer.get_vocab()
    for letter in "ABCD":
        assert processing.answer_ids(letter) == [vocabulary[letter], vocabulary["<|im_end|>"]]
        assert processing.decode(processing.answer_ids(letter)) == letter


def test_decode_gives_any_text_back(processing: InternVLProcessing) -> None:
    text = "héllo \U0001f600\n\t  日本 <x> 12 don't , stop .\r\n"
    assert processing.decode(processing.tokenizer.encode(text)) == text


def test_suppressed_token_ids_leave_text_and_end_of_turn(processing: InternVLProcessing) -> None:
    vocabulary = processing.tokenizer.get_vocab()
    specials = {vocabulary[token] for token in SPECIAL_TOKENS} - {vocabulary["<|im_end|>"]}
    padding_rows = set(range(len(vocabulary), -(-len(vocabulary) // 8) * 8))
    assert set(processing.suppressed_token_ids) == specials | padding_rows
    assert (processing.eos_token_id, processing.pad_token_id) == (1, 0)


@pytest.mark.parametrize(
    "image",
    [random_image(32, 32), random_image(57, 20), random_image(7, 90, "L"), random_image(40, 41, "RGBA"),
     random_image(33, 35, "P"), random_image(16, 16, "LA")],
)  # fmt: skip
def test_pixel_values_equal_transformers(
    processing: InternVLProcessing, tiled: InternVLProcessing, oracle: OfflineInternVLProcessor, image: Image.Image
) -> None:
    # transformers 5.23 lays transparency on white, 5.20 (the newest for Python 3.10) drops it: give it what we mean.
    if "A" in image.getbands():
        opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    else:
        opaque = image
    for tiles, ours in ((1, processing), (12, tiled)):
        expected = oracle.image_processor(opaque, crop_to_patches=tiles > 1, max_patches=tiles, return_tensors="pt")
        pixels = ours.visual_inputs([Visual((image,))]).pixel_values
        assert pixels.shape[1:] == (3, 32, 32) and pixels.dtype == torch.float32
        assert torch.equal(pixels, expected["pixel_values"])


def test_a_token_without_a_row_is_allowed_only_for_video(dense_folder: Path, tmp_path: Path) -> None:
    """Released folders name <video> as one token more than the embedding has rows."""
    folder = tmp_path / "copy"
    shutil.copytree(dense_folder, folder)
    processing = InternVLProcessing.from_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    vocabulary = processing.tokenizer.get_vocab()
    last = max(vocabulary.values())
    processing.tokenizer.backend_tokenizer.add_special_tokens(["<extra>"])
    processing.tokenizer.save_pretrained(folder)
    config["text_config"]["vocab_size"] = last + 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="more tokens than the model"):
        InternVLProcessing.from_folder(folder)
    text = (folder / "tokenizer.json").read_text().replace("<video>", "<other>").replace("<extra>", "<video>")
    (folder / "tokenizer.json").write_text(text)
    suppressed = InternVLProcessing.from_folder(folder).suppressed_token_ids
    assert max(suppressed) <= last and vocabulary["<video>"] in suppressed


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize"),
        ("preprocessor_config.json", {"size": {"height": 16, "width": 16}}, "disagree"),
        ("preprocessor_config.json", {"image_mean": None}, "cannot be read"),
        ("config.json", {"image_token_id": 6}, "<IMG_CONTEXT> is image_token_id 6"),
    ],
)
def test_from_folder_refuses(
    dense_folder: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(dense_folder, tmp_path / "copy")
    settings = json.loads((folder / file).read_text()) | change
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=message):
        InternVLProcessing.from_folder(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json"])
def test_from_folder_names_a_missing_file(dense_folder: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(dense_folder, tmp_path / "copy")
    (folder / file).unlink()
    with pytest.raises(ConfigError, match=file):
        InternVLProcessing.from_folder(folder)
