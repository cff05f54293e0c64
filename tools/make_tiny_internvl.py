"""Builds a small dense InternVL folder offline:  python tools/make_tiny_internvl.py OUT [--hidden-size 96 ...]"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import get_args

from megatron_moe_grpo.data.visuals import VisualSize
from megatron_moe_grpo.errors import MoeGrpoError
from megatron_moe_grpo.models.demo_tokenizer import Vocabulary
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl

EXAMPLE = ("Which digit is in the top-left cell?", ("A. 3", "B. 7", "C. 1", "D. 0"))


def main() -> None:
    """Parse, build, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", choices=get_args(Vocabulary), default="digits", help="default %(default)s")
    for size in fields(TinySizes):
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=type(size.default), default=size.default)
    arguments = vars(parser.parse_args())
    folder, seed, vocabulary = (arguments.pop(name) for name in ("out", "seed", "vocabulary"))
    try:
        model = build_tiny_internvl(folder, TinySizes(**arguments), seed, vocabulary)
    except MoeGrpoError as error:
        parser.exit(2, f"{error}\n")
    processing = InternVLProcessing.from_folder(folder)
    side = model.config.vision_config.image_size[0]
    prompt_ids = processing.encode(*EXAMPLE, [VisualSize(side, side)])
    print(f"{folder}: {model.num_parameters():,} parameters, {len(processing.tokenizer)} tokens in the vocabulary")
    print(f"A question with one picture takes {len(prompt_ids)} tokens, {processing.num_image_tokens} of them image:")
    print(" ".join(repr(processing.tokenizer.decode([token_id])) for token_id in prompt_ids))


if __name__ == "__main__":
    main()
