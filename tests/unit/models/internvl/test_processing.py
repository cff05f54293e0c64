"""Ids and pixels against transformers' own processor."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, InternVLProcessor, ProcessorMixin

from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing, message_content
from megatron_moe_grpo.models.internvl.tiny_tokenizer import SPECIAL_TOKENS

PROBLEM, OPTIONS = "Which digit is in the top-left cell?", ("A. 3", "B. 7", "C. 1", "D. 0")


class ImageOnlyProcessor(InternVLProcessor):
    """The stock processor without its video slot, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, image_seq_length: int = 4, **kwargs: Any):
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=tokenizer.chat_template, **kwargs)
        self.image_seq_length = image_seq_length
        self.start_image_token, self.end_image_token = tokenizer.start_image_token, tokenizer.end_image_token
        self.image_token, self.image_token_id = tokenizer.context_image_token, tokenizer.context_image_token_id
        self.start_image_token_id = tokenizer.start_image_token_id
        self.end_image_token_id = tokenizer.end_image_token_id
        self.video_token = tokenizer.video_token
        self.multimodal_pattern = re.compile(f"(?P<image>{re.escape(self.image_token)})|(?P<video><video>)")


@pytest.fixture(scope="module")
def processing(dense_folder: Path) -> InternVLProcessing:
    return InternVLProcessing.from_folder(dense_folder)


@pytest.fixture(scope="module")
def oracle(dense_folder: Path) -> ImageOnlyProcessor:
    image_processor = AutoImageProcessor.from_pretrained(dense_folder)
    return ImageOnlyProcessor(image_processor, AutoTokenizer.from_pretrained(dense_folder))


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


@pytest.mark.parametrize(
    ("problem", "options", "num_images"),
    [
        (PROBLEM, OPTIONS, 1),
        ("Compare <image>\nwith <image> please.", ("A. ja", "B. né 日本"), 2),
        ("No picture here?", (), 0),
        ("Three pictures.", OPTIONS, 3),
    ],
)
def test_encode_equals_transformers(
    processing: InternVLProcessing, oracle: ImageOnlyProcessor, problem: str, options: tuple[str, ...], num_images: int
) -> None:
    content: list[dict[str, Any]] = message_content("\n".join((problem, *options)), num_images)
    images = [random_image(32, 32) for _ in range(num_images)]
    messages = [{"role": "user", "content": content}]
    prompt = oracle.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = oracle(text=prompt, images=images or None, crop_to_patches=False)["input_ids"][0]
    ids = processing.encode(problem, options, num_images)
    assert ids == list(expected)
    assert ids.count(processing.image_token_id) == 4 * num_images


def test_encode_is_short_and_binds_letter_and_digit(processing: InternVLProcessing) -> None:
    tokens = [processing.tokenizer.decode([token_id]) for token_id in processing.encode(PROBLEM, OPTIONS, 1)]
    assert tokens == [
        "<|im_start|>", "user", "\n", "<img>", *["<IMG_CONTEXT>"] * 4, "</img>", "\n", PROBLEM,
        "\nA. 3", "\nB. 7", "\nC. 1", "\nD. 0", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n",
    ]  # fmt: skip
    # An option that starts with a pair of letters seen in training must not pull the mark's space into its token.
    assert processing.tokenizer.tokenize("C. there")[0] == processing.tokenizer.tokenize("C. 31")[0]
    how_many = processing.tokenizer.encode("How many 7s are there?")
    assert [processing.decode([token_id]) for token_id in how_many] == ["How many ", "7", "s are there?"]


def test_message_content_puts_pictures_at_their_tags() -> None:
    image, text = {"type": "image"}, "text"
    assert message_content("what?", 2) == [image, image, {"type": text, text: "what?"}]
    assert message_content("<image>\nis <image>?", 2) == [
        image, {"type": text, text: "is "}, image, {"type": text, text: "?"},
    ]  # fmt: skip


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_encode_refuses_tags_that_do_not_match_the_pictures(processing: InternVLProcessing, num_images: int) -> None:
    with pytest.raises(DataError, match=f"2 tags, {num_images} pictures"):
        processing.encode("<image> or <image>?", OPTIONS, num_images)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_encode_refuses_special_tokens_typed_as_text(processing: InternVLProcessing, token: str) -> None:
    for problem, options in ((f"What{token}?", OPTIONS), (PROBLEM, (f"A. {token}", "B. 1"))):
        with pytest.raises(DataError, match="Special tokens typed as text"):
            processing.encode(problem, options, 1)


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
    processing: InternVLProcessing, oracle: ImageOnlyProcessor, image: Image.Image
) -> None:
    # transformers 5.23 lays transparency on white, 5.20 (the newest for Python 3.10) drops it: give it what we mean.
    if "A" in image.getbands():
        opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    else:
        opaque = image
    expected = oracle.image_processor(opaque, crop_to_patches=False, return_tensors="pt")["pixel_values"]
    pixels = processing.pixel_values([image])
    assert pixels.shape == (1, 3, 32, 32) and pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)  # measured: 0.0


def test_pixel_values_of_no_picture_is_empty(processing: InternVLProcessing) -> None:
    assert processing.pixel_values([]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("preprocessor_config.json", {"crop_to_patches": True}, "crop_to_patches"),
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
