"""`evaluate FOLDER --data ROWS.jsonl`: a Hugging Face folder with plain transformers, a checkpoint with our engine."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folder", type=Path, help="exported Hugging Face folder, or Megatron checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="rows, in any format that training reads")
    parser.add_argument("--image-root", type=Path, help="folder of the image paths (default: that of the rows)")
    parser.add_argument("--out", type=Path, help="write every answer here, one JSON line a row")
    parser.add_argument("--max-new-tokens", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--video-frames", type=int, default=8, help="as data.video_frames of the run")
    parser.add_argument("--prompt-template", default="plain", help="as data.prompt_template of the run")
    parser.add_argument("--extraction", choices=("strict", "official"), default="strict", help="how answers are read")


def run(arguments: argparse.Namespace) -> None:
    """Answers with pictures and, as the control, with blank ones; prints accuracies with 95 % intervals."""
    from megatron_moe_grpo.config.schema import RewardConfig
    from megatron_moe_grpo.evaluation.accuracy import AccuracyReport
    from megatron_moe_grpo.training.console import summary_table

    if arguments.out is not None:
        # Before the answers, so that a mistyped path costs none of them.
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if (arguments.folder / "assets").is_dir():
        from megatron_moe_grpo.evaluation.checkpoint_evaluation import evaluate_checkpoint as answer
    else:
        from megatron_moe_grpo.evaluation.hf_evaluation import evaluate_hf_folder as answer
    settings = {
        "max_new_tokens": arguments.max_new_tokens,
        "batch_size": arguments.batch_size,
        "image_root": arguments.image_root,
        "video_frames": arguments.video_frames,
        "prompts": arguments.prompt_template,
        "reward": RewardConfig(extraction=arguments.extraction),
    }
    records = answer(arguments.folder, arguments.data, **settings)
    blank = answer(arguments.folder, arguments.data, **settings, blank_images=True)
    report = AccuracyReport.from_records(records, blank)
    print(summary_table(report.rows(), ("questions", "accuracy", "95 % low", "95 % high", "n")))
    if arguments.out is not None:
        lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records]
        arguments.out.write_text("".join(lines), encoding="utf-8")
