"""The run report: complete, self-contained, escaped, and fair about what a run does not have."""

import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from synthetic_run import CONFIG_YAML, write_examples, write_moe_grpo_run, write_sft_run
from video_clips import flat_frames, write_clip

from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.evaluation.report import write_report
from megatron_moe_grpo.evaluation.report_figures import Series, line_figure, running_mean


class Page(HTMLParser):
    """Tags, the addresses they load, and table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(path: Path) -> tuple[str, Page]:
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return read_page(write_report(write_moe_grpo_run(tmp_path_factory.mktemp("full")).root))


def test_write_report_shows_every_series_as_figure_and_table(full_page: tuple[str, Page]) -> None:
    html, page = full_page
    for title in (
        "Reward, mean",
        "Reward, standard deviation",
        "Held-out accuracy",
        "Groups without signal",
        "Rollout against replay",
        "Losses",
        "Gradient norm",
        "Learning rate",
        "Router entropy",
        "Utilisation entropy",
        "Token-level expert utilisation",
        "Specialisation by problem type",
    ):
        assert f"<h3>{title}</h3>" in html
    assert page.tags.count("figure") == page.tags.count("table") >= 17
    # Ten examples of eight rollouts and four options each.
    assert page.text.count("reward 1") == 40
    assert page.text.count("reward 0") == 40
    assert "0.38 \u2192 0.73" in page.text
    # "Left out" lists one thing only: answer_accuracy belongs to supervised runs.
    assert re.findall(r"(.+): metrics.jsonl has no", page.text) == ["Answer accuracy in training"]


def test_write_report_loads_nothing_from_outside(full_page: tuple[str, Page]) -> None:
    html, page = full_page
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "url(" not in html and "@import" not in html and "://" not in html
    for figure in re.findall(r'"data:image/svg\+xml;base64,([^"]+)"', html):
        svg = base64.b64decode(figure).decode("utf-8")
        assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]*)"', svg))
        assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", svg))


def test_write_report_shows_the_frames_of_videos_and_names_missing_files(tmp_path: Path) -> None:
    folder = write_sft_run(tmp_path)
    write_examples(folder, 5, tmp_path / "clip.png", "Which?")
    write_clip(tmp_path / "clip.mp4", flat_frames(20)).replace(tmp_path / "clip.png")
    _, page = read_page(write_report(folder.root))
    # Ten examples of eight frames; the figures are SVG.
    assert sum(address.startswith("data:image/png") for address in page.addresses) == 80
    (tmp_path / "clip.png").unlink()
    _, page = read_page(write_report(folder.root))
    assert not any(address.startswith("data:image/png") for address in page.addresses)
    assert page.text.count("not found: clip.png") == 10


def test_write_report_escapes_what_rows_and_config_say(tmp_path: Path) -> None:
    folder = write_sft_run(tmp_path)
    write_examples(folder, 5, tmp_path / "digit.png", '<script>alert(1)</script> & "quoted" {{ 7 * 7 }}')
    folder.config.write_text(CONFIG_YAML + "note: </pre><img src=x onerror=alert(2)>\n", encoding="utf-8")
    html, page = read_page(write_report(folder.root))
    assert "script" not in page.tags
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 10
    assert "{{ 7 * 7 }}" in page.text


def test_write_report_of_a_supervised_run_says_what_it_lacks(tmp_path: Path) -> None:
    html, page = read_page(write_report(write_sft_run(tmp_path).root))
    assert "<h3>Answer accuracy in training</h3>" in html
    assert "<h3>Reward, mean</h3>" not in html
    assert "Reward, mean: metrics.jsonl has no reward_mean." in page.text
    assert "Example rollouts: samples.jsonl is not there or empty." in page.text
    assert "eval_expert_counts_LN" in page.text
    # The load-balancing loss of this run is NaN throughout; it is shown as such, not dropped.
    assert "<td>nan</td>" in html


def test_write_report_of_a_run_without_a_step_is_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG_YAML, encoding="utf-8")
    _, page = read_page(write_report(tmp_path))
    assert "0 / 120" in page.text
    assert "figure" not in page.tags


def test_write_report_names_a_picture_that_is_gone(tmp_path: Path) -> None:
    folder = write_sft_run(tmp_path)
    write_examples(folder, 5, tmp_path / "digit.png", "Where is the 3?")
    (tmp_path / "digit.png").unlink()
    _, page = read_page(write_report(folder.root))
    assert page.text.count("not found: digit.png") == 10
    assert str(tmp_path) not in page.text


def test_write_report_reads_while_the_last_line_is_being_written(tmp_path: Path) -> None:
    folder = write_sft_run(tmp_path)
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "lo')
    _, page = read_page(write_report(folder.root))
    assert "5 / 120" in page.text


def test_write_report_refuses_a_damaged_line_and_a_foreign_folder(tmp_path: Path) -> None:
    folder = write_sft_run(tmp_path)
    folder.metrics.write_text('{"step": 1}\nnot json\n{"step": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match="metrics.jsonl, line 2"):
        write_report(folder.root)
    with pytest.raises(ConfigError, match="not a run folder"):
        write_report(tmp_path)


def test_line_figure_table_keeps_first_and_last_step() -> None:
    steps = list(range(1, 1001))
    figure = line_figure("t", "c", "y", [Series("a", steps, steps), Series("b", [1000], [0.5])])
    assert [figure.table.rows[0], figure.table.rows[-1]] == [["1", "1", ""], ["1000", "1000", "0.5"]]
    assert figure.table.note == "21 of 1000 steps; all are in metrics.jsonl"


def test_line_figure_size_does_not_grow_with_the_run() -> None:
    steps = list(range(25_000))
    values = np.random.default_rng(0).normal(size=25_000).tolist()
    # Measured: 84 kB.
    assert len(line_figure("t", "c", "y", [Series("a", steps, values)]).image) < 150_000


def test_line_figure_says_where_zeros_of_a_log_axis_are() -> None:
    figure = line_figure("t", "c", "y", [Series("a", [1, 2], [0.0, 1e-6])], is_log=True)
    assert "zeros are drawn at 1e-09" in figure.caption


def test_running_mean_is_shorter_at_the_ends() -> None:
    assert running_mean(np.array([1.0, 2.0, 6.0, 3.0]), 3).tolist() == pytest.approx([1.5, 3.0, 11 / 3, 4.5])
