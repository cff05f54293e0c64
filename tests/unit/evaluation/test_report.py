"""The run report: complete, self-contained, escaped, and fair about what a run does not have."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from synthetic_run import CONFIG_YAML, write_examples, write_moe_grpo_run, write_sft_run
from video_clips import flat_frames, write_clip

from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.evaluation.report import write_report


class Page(HTMLParser):
    """Tags, the addresses they load, the charts, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.jumps: list[str] = []
        self.places: list[str] = []
        self.text = ""
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(html)

    @property
    def charts(self) -> list[dict]:
        return json.loads(self.scripts["page-charts"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            assert not {name for name, _ in attrs} - {"type", "id"}, "a script of the page is inside the page"
            self._script = dict(attrs).get("id") or "code"
            self.scripts[self._script] = ""
        loading = [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.addresses += [address for address in loading if not address.startswith("#")]
        self.jumps += [address[1:] for address in loading if address.startswith("#")]
        self.places += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts[self._script] += data


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
    # Two figures have a panel for the first and one for the last evaluation.
    assert len(page.charts) == html.count('class="plot"') == page.tags.count("figure") + 2
    assert all(chart["data"] for chart in page.charts)
    # Ten examples of eight rollouts and four options each.
    assert page.text.count("reward 1") == 40
    assert page.text.count("reward 0") == 40
    assert "0.38 \u2192 0.73" in page.text
    # "Left out" lists one thing only: answer_accuracy belongs to supervised runs.
    assert re.findall(r"(.+): metrics.jsonl has no", page.text) == ["Answer accuracy in training"]


def test_write_report_loads_nothing_from_outside(full_page: tuple[str, Page]) -> None:
    html, page = full_page
    assert page.addresses
    assert len(page.jumps) >= 8 and set(page.jumps) <= set(page.places)
    assert len(set(page.places)) == len(page.places)
    # "data:," is an empty icon: without one, a browser asks the folder for favicon.ico.
    assert all(address.startswith("data:image/") or address == "data:," for address in page.addresses)
    assert page.tags.count("link") == 1 and not {"iframe", "object", "embed", "base"} & set(page.tags)
    assert "url(" not in html and "@import" not in html and "://" not in html
    assert sorted(page.scripts) == ["code", "page-charts", "page-plotly"] and page.tags.count("script") == 3
    assert "Plotly" not in page.scripts["page-plotly"], "the library is packed"
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html).group(1).split("; ")
    assert policy[0] == "default-src 'none'"
    assert not [source for rule in policy for source in rule.split()[1:] if "http" in source or source == "*"]


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
    assert page.tags.count("script") == 3
    assert all(address.startswith("data:") for address in page.addresses)
    assert page.tags.count("img") == 10
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 10
    assert "{{ 7 * 7 }}" in page.text


def test_write_report_lets_no_name_end_the_script_of_the_charts(tmp_path: Path) -> None:
    folder = write_sft_run(tmp_path)
    name = "</script><script>alert(1)</script><b>"
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 6, "eval_accuracy": 0.5, "eval_accuracy_by_type": {name: 0.5}}) + "\n")
    html, page = read_page(write_report(folder.root))
    assert page.tags.count("script") == 3
    assert "<script>alert" not in html
    # Plotly would read tags in a name as markup.
    assert page.charts[1]["data"][0]["name"] == "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;b&gt;"


def test_write_report_says_how_sure_the_last_accuracy_is(tmp_path: Path) -> None:
    folder = write_sft_run(tmp_path)
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 6, "eval_accuracy": 0.5, "eval_num_examples": 10}) + "\n")
    _, page = read_page(write_report(folder.root))
    # Wilson's interval of 5 of 10.
    assert "0.24 to 0.76" in page.text


def test_write_report_marks_groups_for_the_filters(tmp_path: Path) -> None:
    folder = write_sft_run(tmp_path)
    rewards = {"all": [1.0, 0.5], "some": [1.0, 0.0], "none": [0.0, 0.0]}
    sample = {"step": 5, "problem_type": "where", "problem": "?", "solution": "B", "options": [], "visual_paths": []}
    lines = [json.dumps({**sample, "id": key, "responses": ["B", "A"], "rewards": r}) for key, r in rewards.items()]
    (folder.root / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    html, page = read_page(write_report(folder.root))
    assert re.findall(r'data-task="where" data-outcome="(\w+)"', html) == ["right", "mixed", "wrong"]
    assert [page.text.count(f"{number} of 2 right") for number in (2, 1, 0)] == [1, 1, 1]
    assert page.text.count("no picture") == 3


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
