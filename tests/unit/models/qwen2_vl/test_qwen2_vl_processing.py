"""Ids and inputs against transformers' own processor."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin, Qwen2VLProcessor

from megatron_moe_grpo.data.visuals import Visual, VisualSize
from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.models.chat_processing import message_content
from megatron_moe_grpo.models.qwen2_vl.processing import Qwen2VLProcessing
from megatron_moe_grpo.models.qwen2_vl.tiny_tokenizer import SPECIAL_TOKENS
from megatron_moe_grpo.models.token_batch import pad_prompts

PROBLEM, OPTIONS = "Which digit is in the top-left cell?", ("A. 3", "B. 7", "C. 1", "D. 0")
# The template of Qwen2-VL-2B-Instruct and 7B-Instruct on the hub.
HUB_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] "
    "== 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video "
    "{{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


class ImageOnlyProcessor(Qwen2VLProcessor):
    """The stock processor without its video slot, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=tokenizer.chat_template, **kwargs)


def random_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng((width, height)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def picture(width: int, height: int) -> Visual:
    return Visual((random_image(width, height),), is_video=False)


def video(width: int, height: int, num_frames: int) -> Visual:
    frames = tuple(random_image(width, height + number).resize((width, height)) for number in range(num_frames))
    return Visual(frames, is_video=True)


@pytest.fixture(scope="module", params=["tiny", "hub"])
def folder(request: pytest.FixtureRequest, qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny folder, and one laid out as on the hub: template in tokenizer_config.json, no chat_template.jinja."""
    if request.param == "tiny":
        return qwen_folder
    copy = shutil.copytree(qwen_folder, tmp_path_factory.mktemp("hub") / "folder")
    (copy / "chat_template.jinja").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text()) | {"chat_template": HUB_TEMPLATE}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    return copy


@pytest.fixture(scope="module")
def processing(folder: Path) -> Qwen2VLProcessing:
    return Qwen2VLProcessing.from_folder(folder)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> ImageOnlyProcessor:
    return ImageOnlyProcessor(AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize(
    ("problem", "options", "sizes"),
    [
        (PROBLEM, OPTIONS, [(32, 32)]),
        ("Compare <image>\nwith <image> please.", ("A. ja", "B. né 日本"), [(60, 20), (32, 48)]),
        ("No picture here?", (), []),
        ("Three pictures.", OPTIONS, [(16, 16), (64, 64), (7, 90)]),
    ],
    ids=["one", "tags", "none", "three"],
)
def test_encode_and_visual_inputs_equal_transformers(
    processing: Qwen2VLProcessing,
    oracle: ImageOnlyProcessor,
    problem: str,
    options: tuple[str, ...],
    sizes: list[tuple[int, int]],
) -> None:
    visuals = [picture(*size) for size in sizes]
    content: list[dict[str, Any]] = message_content("\n".join((problem, *options)), [v.size for v in visuals])
    messages = [{"role": "user", "content": content}]
    prompt = oracle.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [visual.frames[0] for visual in visuals]
    expected = oracle(text=[prompt], images=images or None, return_tensors="pt")
    ids = processing.encode(problem, options, [visual.size for visual in visuals])
    assert ids == expected["input_ids"][0].tolist()
    inputs = processing.visual_inputs(visuals)
    if not visuals:
        assert inputs is None
        return
    assert torch.equal(inputs.grid_V3, expected["image_grid_thw"])
    assert torch.equal(inputs.pixel_values, expected["pixel_values"])
    assert inputs.num_features == ids.count(processing.image_token_id)


def test_encode_of_videos_equals_transformers(processing: Qwen2VLProcessing, oracle: ImageOnlyProcessor) -> None:
    """The stock expansion of `<|video_pad|>`, given the grid: 3 frames are 2 in time."""
    visuals = [video(40, 24, 3), picture(32, 32), video(32, 32, 4)]
    sizes = [visual.size for visual in visuals]
    inputs = processing.visual_inputs(visuals)
    messages = [{"role": "user", "content": [VIDEO, IMAGE, VIDEO, {"type": "text", "text": "How many?"}]}]
    expanding = SimpleNamespace(video_processor=SimpleNamespace(merge_size=2), video_token="<|video_pad|>")
    prompt = oracle.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    first, middle, last = prompt.split("<|video_pad|>")
    fills = [
        Qwen2VLProcessor.replace_video_token(expanding, {"video_grid_thw": inputs.grid_V3[[0, 2]]}, index)
        for index in range(2)
    ]
    text = (first + fills[0] + middle + fills[1] + last).replace("<|image_pad|>", "<|image_pad|>" * 4)
    ids = processing.encode("How many?", (), sizes)
    assert ids == oracle.tokenizer(text)["input_ids"]
    # 24 is half way between 16 and 32 and Python rounds to the even multiple; 40 likewise.
    assert inputs.grid_V3.tolist() == [[2, 4, 4], [1, 4, 4], [2, 4, 4]]
    assert inputs.num_features == 8 + 4 + 8 and inputs.pixel_values.shape == (80, 384)


def test_hub_template_writes_the_system_prompt(processing: Qwen2VLProcessing, folder: Path) -> None:
    text = processing.tokenizer.decode(processing.encode("Why?", (), []))
    is_hub = not (folder / "chat_template.jinja").exists()
    assert text.startswith("<|im_start|>system\nYou are") == is_hub
    assert text.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")


def test_chat_template_json_is_read_before_tokenizer_config(qwen_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(qwen_folder, tmp_path / "copy")
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": HUB_TEMPLATE}))
    assert "helpful" not in Qwen2VLProcessing.from_folder(copy).tokenizer.chat_template
    (copy / "chat_template.jinja").unlink()
    assert Qwen2VLProcessing.from_folder(copy).tokenizer.chat_template == HUB_TEMPLATE


def test_message_content_puts_visuals_at_their_tags() -> None:
    text, still, moving = "text", VisualSize(8, 8), VisualSize(8, 8, 2, is_video=True)
    assert message_content("what?", [still, moving]) == [IMAGE, VIDEO, {"type": text, text: "what?"}]
    assert message_content("<video>\nis <image>?", [moving, still]) == [
        VIDEO, {"type": text, text: "is "}, IMAGE, {"type": text, text: "?"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "visuals", "got"),
    [
        ("<image> or <image>?", [VisualSize(8, 8)], r"2 tags \(image, image\), 1 visuals \(image\)"),
        ("<image> or <video>?", [VisualSize(8, 8, 2, True), VisualSize(8, 8)], r"2 tags \(image, video\)"),
        ("<video>?", [], r"1 tags \(video\), 0 visuals"),
    ],
)
def test_encode_refuses_tags_that_do_not_match_the_visuals(
    processing: Qwen2VLProcessing, problem: str, visuals: list[VisualSize], got: str
) -> None:
    with pytest.raises(DataError, match=got):
        processing.encode(problem, OPTIONS, visuals)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_qwen2_vl_encode_refuses_special_tokens_typed_as_text(processing: Qwen2VLProcessing, token: str) -> None:
    for problem, options in ((f"What{token}?", OPTIONS), (PROBLEM, (f"A. {token}", "B. 1"))):
        with pytest.raises(DataError, match="Special tokens typed as text"):
            processing.encode(problem, options, [])


def test_encode_refuses_a_template_without_videos(qwen_folder: Path) -> None:
    processing = Qwen2VLProcessing.from_folder(qwen_folder)
    processing.tokenizer.chat_template = processing.tokenizer.chat_template.replace("video_pad", "image_pad")
    with pytest.raises(ConfigError, match="one placeholder for each visual"):
        processing.encode("What?", (), [VisualSize(32, 32, 2, is_video=True)])


def test_suppressed_token_ids_of_qwen2_vl(qwen_folder: Path) -> None:
    processing = Qwen2VLProcessing.from_folder(qwen_folder)
    vocabulary = processing.tokenizer.get_vocab()
    specials = {vocabulary[token] for token in SPECIAL_TOKENS} - {vocabulary["<|im_end|>"]}
    padding_rows = set(range(len(vocabulary), -(-len(vocabulary) // 8) * 8))
    assert set(processing.suppressed_token_ids) == specials | padding_rows
    assert processing.vision_token_ids == (5, 6)
    assert processing.answer_ids("B") == [vocabulary["B"], vocabulary["<|im_end|>"]]
    assert processing.decode(processing.answer_ids("B")) == "B"


def test_huggingface_inputs_take_pictures_and_videos_apart(qwen_folder: Path) -> None:
    processing = Qwen2VLProcessing.from_folder(qwen_folder)
    rows = [[video(32, 32, 4), picture(16, 32)], [], [picture(48, 16)]]
    inputs = [processing.visual_inputs(row) for row in rows]
    prompts = [processing.encode("Why?", (), [visual.size for visual in row]) for row in rows]
    batch = pad_prompts(prompts, inputs, processing.vision_token_ids, processing.pad_token_id)
    got = processing.huggingface_inputs(batch)
    assert got["video_grid_thw"].tolist() == [[2, 4, 4]]
    assert got["image_grid_thw"].tolist() == [[1, 4, 2], [1, 2, 6]]
    assert torch.equal(got["pixel_values_videos"], inputs[0].pixel_values[:32])
    assert torch.equal(got["pixel_values"], torch.cat((inputs[0].pixel_values[32:], inputs[2].pixel_values)))
    assert got["mm_token_type_ids"].sum(dim=1).tolist() == [2 * 8 + 2, 0, 3]
    text_only = pad_prompts(prompts[1:2], inputs[1:2], processing.vision_token_ids, processing.pad_token_id)
    assert processing.huggingface_inputs(text_only).keys() == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("preprocessor_config.json", {"patch_size": 14}, "disagree on the patches"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize"),
        ("config.json", {"image_token_id": 6}, "does not belong to this model"),
        ("tokenizer_config.json", {"pad_token": None}, "no padding token"),
    ],
)
def test_qwen2_vl_from_folder_refuses(
    qwen_folder: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(qwen_folder, tmp_path / "copy")
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        Qwen2VLProcessing.from_folder(copy)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json"])
def test_qwen2_vl_from_folder_names_a_missing_file(qwen_folder: Path, tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(qwen_folder, tmp_path / "copy")
    (copy / file).unlink()
    with pytest.raises(ConfigError, match=file):
        Qwen2VLProcessing.from_folder(copy)


def test_pixel_settings_are_read_where_transformers_reads_them(qwen_folder: Path, tmp_path: Path) -> None:
    copy, size = shutil.copytree(qwen_folder, tmp_path / "copy"), VisualSize(64, 64)
    moving = VisualSize(64, 64, 2, is_video=True)
    settings = json.loads((copy / "preprocessor_config.json").read_text())

    def smaller(area: int) -> dict[str, Any]:
        return settings | {"size": {"shortest_edge": 256, "longest_edge": area}}

    def num_tokens() -> list[int]:
        processing = Qwen2VLProcessing.from_folder(copy)
        return [processing.encode("", (), [visual]).count(token) for visual, token in ((size, 5), (moving, 6))]

    assert num_tokens() == [16, 16]
    (copy / "video_preprocessor_config.json").write_text(json.dumps(smaller(1024)))
    assert num_tokens() == [16, 4]
    nested = {"image_processor": smaller(2304), "video_processor": smaller(256)}
    (copy / "processor_config.json").write_text(json.dumps(nested))
    assert num_tokens() == [9, 1]
