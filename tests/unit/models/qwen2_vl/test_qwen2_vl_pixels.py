"""Patches against transformers' own image processor, to the bit."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from megatron_moe_grpo.data.visuals import Visual, VisualSize
from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.models.qwen2_vl.pixels import PixelSettings

TINY = {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 4096}}
# preprocessor_config.json of Qwen2-VL-2B-Instruct and 7B-Instruct on the hub.
HUB = {
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
}  # fmt: skip


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng((width, height)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def transformers_patchify() -> Callable[..., Any]:
    """`Qwen2VLVideoProcessor.patchify`, taken out of its file: the module around it imports torchvision."""
    path = Path(transformers.__file__).parent / "models" / "qwen2_vl" / "video_processing_qwen2_vl.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    [method] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "patchify"]
    namespace: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([method], type_ignores=[]), str(path), "exec"), namespace)
    return namespace["patchify"]


@pytest.mark.parametrize("settings", [TINY, HUB], ids=["tiny", "hub"])
@pytest.mark.parametrize(
    "image",
    [random_image(32, 32), random_image(57, 20), random_image(7, 90), random_image(200, 150), random_image(3, 2),
     random_image(40, 41, "L"), random_image(33, 35, "P")],
    ids=lambda image: f"{image.width}x{image.height}_{image.mode}",
)  # fmt: skip
def test_patches_of_a_picture_equal_transformers(settings: dict[str, Any], image: Image.Image) -> None:
    expected = Qwen2VLImageProcessorPil(**settings)(image, return_tensors="pt")
    pixels, visual = PixelSettings.from_huggingface(settings), Visual((image,), is_video=False)
    patches = torch.from_numpy(pixels.patches(visual))
    assert [list(pixels.grid(visual.size))] == expected["image_grid_thw"].tolist()
    assert patches.dtype == torch.float32 and torch.equal(patches, expected["pixel_values"])


def test_grid_equals_smart_resize_on_random_sizes() -> None:
    generator = np.random.default_rng(3)
    for _ in range(500):
        height, width = (int(side) for side in generator.integers(1, 3000, 2))
        if max(height, width) > 200 * min(height, width):
            continue
        low, high = sorted(int(area) for area in generator.integers(28 * 28, 4_000_000, 2))
        pixels = PixelSettings.from_huggingface({"min_pixels": low, "max_pixels": high})
        expected = smart_resize(height, width, 28, low, high)
        grid = pixels.grid(VisualSize(width, height))
        assert grid == (1, expected[0] // 14, expected[1] // 14), (height, width, low, high)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
def test_patches_of_a_video_equal_transformers(num_frames: int) -> None:
    """Frame by frame the image processor's pixels, cut by the video processor's own code."""
    frames = tuple(random_image(40, 25 + number).resize((40, 25)) for number in range(num_frames))
    processor = Qwen2VLImageProcessorPil(**TINY)
    video_3SHW = []
    for frame in frames:
        grid_height, grid_width = processor(frame)["image_grid_thw"][0][1:]
        target = {"shortest_edge": 1, "longest_edge": 10**9}
        resized = frame.resize((int(grid_width) * 8, int(grid_height) * 8), Image.Resampling.BICUBIC)
        whole = Qwen2VLImageProcessorPil(patch_size=8, merge_size=1, size=target)(resized, return_tensors="pt")
        # One patch after another, undone: with merge_size 1 they lie row by row.
        patches = whole["pixel_values"].view(grid_height, grid_width, 3, 2, 8, 8)[:, :, :, 0]
        video_3SHW.append(patches.permute(2, 0, 3, 1, 4).reshape(3, grid_height * 8, grid_width * 8))
    flat, *grid = transformers_patchify()(None, torch.stack(video_3SHW)[None], 8, 2, 2)
    pixels, visual = PixelSettings.from_huggingface(TINY, is_video=True), Visual(frames, is_video=True)
    assert pixels.grid(visual.size) == tuple(grid)
    assert torch.equal(torch.from_numpy(pixels.patches(visual)), flat[0])


def test_patches_tell_the_frames_of_a_pair_apart() -> None:
    first, second = random_image(32, 32), random_image(32, 32).rotate(90)
    pixels = PixelSettings.from_huggingface(TINY)
    pair = pixels.patches(Visual((first, second), is_video=True)).reshape(-1, 3, 2, 8, 8)
    assert np.array_equal(pair[:, :, 0], pixels.patches(Visual((first,), False)).reshape(-1, 3, 2, 8, 8)[:, :, 0])
    assert not np.array_equal(pair[:, :, 0], pair[:, :, 1])


def test_bounds_are_those_of_transformers_where_a_folder_names_none() -> None:
    image, video = PixelSettings.from_huggingface({}), PixelSettings.from_huggingface({}, is_video=True)
    stock = Qwen2VLImageProcessorPil()
    assert (image.min_pixels, image.max_pixels) == (stock.size["shortest_edge"], stock.size["longest_edge"])
    assert (image.resample, image.rescale_factor) == (stock.resample, stock.rescale_factor)
    assert (list(image.mean), list(image.std)) == (list(stock.image_mean), list(stock.image_std))
    assert (video.min_pixels, video.max_pixels) == (128 * 28 * 28, 768 * 28 * 28)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_convert_rgb": False}, "do_convert_rgb"),
        ({"cap_pixels_per_frame": True}, "cap_pixels_per_frame"),
        ({"size": {"height": 32, "width": 32}}, "shortest_edge"),
        ({"image_mean": 3}, "cannot be read"),
    ],
)
def test_from_huggingface_refuses_pixel_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PixelSettings.from_huggingface(settings)


def test_grid_refuses_a_picture_that_is_too_thin() -> None:
    with pytest.raises(DataError, match="1005 x 5 pixels"):
        PixelSettings.from_huggingface(TINY).grid(VisualSize(1005, 5))
