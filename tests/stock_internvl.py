"""The stock InternVLProcessor on a machine without torchvision, which its own video processor needs."""

import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, InternVLProcessor, ProcessorMixin


class FrameByFrame:
    """In the place of the stock video processor: the stock image processor, frame by frame, one tile each."""

    def __init__(self, image_processor: Any):
        self._image_processor = image_processor

    def __call__(self, videos: list[list[Image.Image]], **_: Any) -> dict[str, torch.Tensor]:
        pictures = [
            self._image_processor(frames, crop_to_patches=False, return_tensors="pt")["pixel_values"]
            for frames in videos
        ]
        return {"pixel_values_videos": torch.stack(pictures)}


class OfflineInternVLProcessor(InternVLProcessor):
    """Everything but the constructor, which would refuse our video processor, is transformers' own."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, image_seq_length: int = 4, **kwargs: Any):
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=tokenizer.chat_template, **kwargs)
        self.image_seq_length = image_seq_length
        self.start_image_token, self.end_image_token = tokenizer.start_image_token, tokenizer.end_image_token
        self.image_token, self.image_token_id = tokenizer.context_image_token, tokenizer.context_image_token_id
        self.start_image_token_id = tokenizer.start_image_token_id
        self.end_image_token_id = tokenizer.end_image_token_id
        self.video_token = tokenizer.video_token
        self.multimodal_pattern = re.compile(
            f"(?P<image>{re.escape(self.image_token)})|(?P<video>{re.escape(self.video_token)})"
        )
        self.video_processor = FrameByFrame(image_processor)


def offline_processor(folder: Path, image_seq_length: int = 4) -> OfflineInternVLProcessor:
    """The processor of a native folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return OfflineInternVLProcessor(AutoImageProcessor.from_pretrained(folder), tokenizer, image_seq_length)
