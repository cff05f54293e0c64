"""A question's digest: what two evaluations must share to have asked the same."""

import hashlib
import json
from collections.abc import Sequence

from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question


def question_digest(question: Question) -> str:
    """SHA-256 of the text, the right answer and the visuals, wherever those lie."""
    visuals = [_visual(files) for files in question.visuals]
    value = [question.id, question.prompt, question.reference, list(question.options), visuals, question.missing_file]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def joined_digest(digests: Sequence[str]) -> str:
    """One digest of all questions in their order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _visual(files: VisualFiles) -> list[object]:
    if files.is_video:
        # Gigabytes: a video is told by name and size.
        return [[path.name, path.stat().st_size] for path in files.paths] + [files.seconds]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.paths]
