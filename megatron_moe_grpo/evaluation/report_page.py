"""One self-contained page: styles, script, charts and pictures in a single file that needs no network.

Plotly draws the charts.  It comes from its own wheel (MIT), compressed, because the file would be 4.8 MB otherwise; the
page's content security policy forbids the browser to load anything from anywhere.
"""

import base64
import functools
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from megatron_moe_grpo import __version__
from megatron_moe_grpo.data.whole_file import write_atomically
from megatron_moe_grpo.evaluation.report_charts import Figure, Spec

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """A heading with its figures."""

    title: str
    text: str
    figures: list[Figure]

    @property
    def place(self) -> str:
        """What links to it are called."""
        return "-".join(self.title.lower().split())


@dataclass(frozen=True)
class Fact:
    """One number of the page's head."""

    label: str
    value: str


class ChartList:
    """The charts of one page in the order they are placed; the template places each by its number."""

    def __init__(self) -> None:
        self.specs: list[Spec] = []

    def place(self, figure: Figure) -> list[tuple[int, int]]:
        """(number, height in pixels) of each of the figure's panels."""
        first = len(self.specs)
        self.specs += figure.panels
        return [(first + place, height) for place, height in enumerate(figure.heights)]


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Renders `template` into `path`, whole or not at all; everything in `values` is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    page = environment.get_template(template).render(
        charts=ChartList(),
        plotly=_plotly_base64(),
        script=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        version=__version__,
        written=date_text(datetime.now().timestamp()),
        **values,
    )
    write_atomically(path, page)
    return path


def date_text(seconds: float) -> str:
    """Local date and time of a time stamp."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def task_names(tasks: Sequence[str]) -> list[str]:
    """What the gallery's filter offers: each task once."""
    return sorted(set(tasks))


@functools.cache
def _plotly_base64() -> str:
    return base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), compresslevel=9, mtime=0)).decode("ascii")
