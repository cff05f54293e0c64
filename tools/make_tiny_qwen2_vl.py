"""Builds a small dense Qwen2-VL folder offline:  python tools/make_tiny_qwen2_vl.py OUT [--hidden-size 96 ...]"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import get_args

from megatron_moe_grpo.data.visuals import VisualSize
from megatron_moe_grpo.errors import MoeGrpoError
from megatron_moe_grpo.models.demo_tokenizer import Vocabulary
from megatron_moe_grpo.models.qwen2_vl.processing import Qwen2VLProcessing
from megatron_moe_grpo.models.qwen2_vl.tiny import TinySizes, build_tiny_qwen2_vl

EXAMPLE = ("Which digit is in the top-left cell?", ("A. 3", "B. 7", "C. 1", "D. 0"))
PICTURE = VisualSize(32, 32)


def main() -> None:
    """Parse, build, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tie-embeddings", action="store_true", help="the output layer is the embedding")
    parser.add_argument("--vocabulary", choices=get_args(Vocabulary), default="digits", help="default %(default)s")
    for size in fields(TinySizes):
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=type(size.default), default=size.default)
    arguments = vars(parser.parse_args())
    folder, seed, ties_embeddings = (arguments.pop(name) for name in ("out", "seed", "tie_embeddings"))
    vocabulary = arguments.pop("vocabulary")
    try:
        model = build_tiny_qwen2_vl(folder, TinySizes(**arguments), seed, ties_embeddings, vocabulary)
    except MoeGrpoError as error:
        parser.exit(2, f"{error}\n")
    processing = Qwen2VLProcessing.from_folder(folder)
    prompt_ids = processing.encode(*EXAMPLE, [PICTURE])
    num_image = prompt_ids.count(processing.image_token_id)
    print(f"{folder}: {model.num_parameters():,} parameters, {len(processing.tokenizer)} tokens in the vocabulary")
    print(f"A question with one picture of 32 x 32 takes {len(prompt_ids)} tokens, {num_image} of them image:")
    print(" ".join(repr(processing.tokenizer.decode([token_id])) for token_id in prompt_ids))


if __name__ == "__main__":
    main()
