"""The geometry questions as files: the figures of `geometry_figures.py` in the layout of `drawn_questions.py`."""

from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_moe_grpo.data.drawn_questions import DrawnQuestion, write_drawn_set
from megatron_moe_grpo.data.geometry_figures import KINDS, Figure, FigureKind, SplitName, make_figures
from megatron_moe_grpo.data.geometry_picture import draw_figure
from megatron_moe_grpo.errors import DataError

DEFAULT_SIDE = 64
LEAST_SIDE = 64
"""Labels of two digits fill a cell of the label grid there."""
BRIGHTNESS = {"clear": 1.0, "shifted": 0.8}
"""Factor of all grey levels: the camera.  At 0.65 a tiny model trained on clear figures reads next to nothing."""


def write_geometry(
    out: Path,
    counts: dict[SplitName, int],
    seed: int,
    kinds: tuple[FigureKind, ...] = KINDS,
    angle_step: int = 10,
    side: int = DEFAULT_SIDE,
    on_drawn: Callable[[], object] = lambda: None,
) -> None:
    """Writes every split as a clear and as a darker camera sees it; the same arguments give the same bytes.

    Args:
        counts: questions of each split; the pretrain split is made for the clear camera alone.
        angle_step: angles are its multiples, degrees.
        side: of the pictures, pixels.
        on_drawn: called after every picture (for a progress bar).
    Raises:
        DataError: `out` exists, or kinds, a step, counts or a side that cannot be.
    """
    if side < LEAST_SIDE or min(counts.values(), default=0) < 1:
        raise DataError(
            "counts or side cannot be used",
            got=f"{counts}, side {side}",
            expected=f"a question at least in each split, pictures of {LEAST_SIDE} pixels at least",
        )
    figures = {split: make_figures(split, count, seed, kinds, angle_step) for split, count in counts.items()}
    splits = {
        (look, split): _questions(figures[split], brightness, side, on_drawn)
        for look, brightness in BRIGHTNESS.items()
        for split in counts
        if look == "clear" or split != "pretrain"
    }
    summary = {"task": "geometry", "seed": seed, "side": side, "kinds": list(kinds), "angle_step": angle_step}
    write_drawn_set(out, splits, summary)


def _questions(
    figures: list[Figure], brightness: float, side: int, on_drawn: Callable[[], object]
) -> Iterator[DrawnQuestion]:
    for figure in figures:
        yield DrawnQuestion(
            picture=draw_figure(figure.drawing, side, brightness),
            problem=figure.case.problem,
            solution=figure.case.solution,
            problem_type="geometry",
            rationale=figure.case.rationale,
            facts=(("kind", figure.kind), ("parameters", " ".join(figure.case.parameters))),
        )
        on_drawn()
