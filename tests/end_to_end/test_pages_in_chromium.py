"""The pages as a reader meets them: in a browser, without a network, on a laptop and on a phone."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM, LAPTOP, PHONE, Tab, chromium_tab

UNIT = Path(__file__).parents[1] / "unit" / "evaluation"
sys.path += [str(UNIT), str(UNIT / "analysis")]
from analysis_values import analysis_values, write_values  # noqa: E402
from synthetic_run import write_moe_grpo_run  # noqa: E402
from test_analysis_page import rows  # noqa: E402

from megatron_moe_grpo.evaluation.analysis.page import write_analysis_page  # noqa: E402
from megatron_moe_grpo.evaluation.analysis.side_by_side import write_side_by_side  # noqa: E402
from megatron_moe_grpo.evaluation.report import write_report  # noqa: E402

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")
SCROLL_THROUGH = (
    "(async () => { for (const each of document.querySelectorAll('details')) each.open = true;"
    "for (const plot of document.querySelectorAll('.plot')) { plot.scrollIntoView(); "
    "await new Promise((done) => setTimeout(done, 30)); } })()"
)
ALL_DRAWN = "[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('.main-svg') !== null)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    values = analysis_values()
    folders = [write_values(folder / name, analysis_values(name)) for name in ("before", "after")]
    return {
        "report": write_report(write_moe_grpo_run(folder).root),
        "analysis": write_analysis_page(folder / "analysis.html", values, rows(folder, len(values["examples"])), 8),
        "side_by_side": write_side_by_side(folders, folder / "side_by_side.html"),
    }


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium_tab() as tab:
        yield tab


def shown(tab: Tab) -> int:
    return tab.ask("[...document.querySelectorAll('.example')].filter((each) => each.offsetHeight > 0).length")


def choose(tab: Tab, number: int, value: str) -> None:
    tab.ask(
        f"(() => {{ const select = document.querySelectorAll('.filters select')[{number}]; select.value = '{value}';"
        "select.dispatchEvent(new Event('change')); })()"
    )


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
@pytest.mark.parametrize("name", ["report", "analysis", "side_by_side"])
def test_page_draws_every_chart_alone_and_without_a_complaint(
    tab: Tab, pages: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    tab.open(pages[name], size)
    tab.wait_for("window.Plotly !== undefined")
    tab.ask(SCROLL_THROUGH)
    tab.wait_for(ALL_DRAWN)
    assert tab.ask("document.querySelectorAll('.plot').length") >= 7
    # The page itself, and nothing else: no style, font, script or picture from anywhere.
    assert tab.requests == [pages[name].resolve().as_uri()]
    assert tab.complaints == []
    assert tab.ask("document.documentElement.scrollWidth") <= size[0]
    assert tab.ask("[...document.querySelectorAll('img')].every((image) => image.naturalWidth > 0)")


def test_tab_sees_a_complaint_and_a_request(tab: Tab, tmp_path: Path) -> None:
    # What the tests above would miss if it were not so.
    page = tmp_path / "bad.html"
    page.write_text("<img src='https://example.org/a.png'><script>console.error('no'); missing();</script>", "utf-8")
    tab.open(page)
    tab.wait_for("document.images[0].complete")
    assert tab.requests[1:] == ["https://example.org/a.png"]
    assert len(tab.complaints) >= 2


def test_page_forbids_what_a_row_might_smuggle_in(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["report"])
    refused = "new Promise((done) => { const image = new Image(); image.onerror = () => done(true);"
    assert tab.ask(refused + "image.onload = () => done(false); image.src = 'https://example.org/a.png'; })")
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


def test_gallery_of_the_report_filters(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["report"])
    assert shown(tab) == 10
    choose(tab, 1, "right")
    assert shown(tab) == 0
    choose(tab, 1, "mixed")
    assert shown(tab) == 10
    assert tab.ask("document.querySelector('.filters output').textContent") == "10 of 10 shown"


def test_gallery_of_the_analysis_filters_by_task_and_outcome_together(tab: Tab, pages: dict[str, Path]) -> None:
    # Examples 0..4 count, 5..7 are about where; even ones are right.
    tab.open(pages["analysis"], PHONE)
    found = []
    for task, outcome in (("", ""), ("count", ""), ("count", "right"), ("", "wrong"), ("where", "right"), ("", "")):
        choose(tab, 0, task), choose(tab, 1, outcome)
        found.append(shown(tab))
    assert found == [8, 5, 3, 4, 1, 8]


def touch(tab: Tab, kind: str, x: float = 0, y: float = 0) -> None:
    tab.call("Input.dispatchTouchEvent", type=kind, touchPoints=[] if kind == "touchEnd" else [{"x": x, "y": y}])


def test_a_finger_scrolls_over_a_chart_and_a_tap_shows_its_values(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["report"], PHONE)
    tab.wait_for("document.querySelector('.plot .main-svg') !== null")
    tab.ask("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    box = "document.querySelector('.plot').getBoundingClientRect()"
    x, y = tab.ask(f"{box}.left + {box}.width * 0.6"), tab.ask(f"{box}.top + {box}.height * 0.5")
    touch(tab, "touchStart", x, y), touch(tab, "touchEnd")
    tab.wait_for("document.querySelectorAll('.plot .hoverlayer text').length > 0")
    before = tab.ask("scrollY")
    touch(tab, "touchStart", x, y)
    for moved in range(30, 301, 30):
        touch(tab, "touchMove", x, y - moved)
    touch(tab, "touchEnd")
    tab.wait_for(f"scrollY > {before} + 100")


def test_page_follows_the_readers_colours(tab: Tab, pages: dict[str, Path]) -> None:
    colours = []
    for is_dark in (False, True):
        tab.open(pages["report"], is_dark=is_dark)
        tab.wait_for("document.querySelector('.plot .xtick text') !== null")
        background = "getComputedStyle(document.body).backgroundColor"
        label = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
        colours.append((tab.ask(background), tab.ask(label)))
    assert colours[0][0] == "rgb(255, 255, 255)"
    assert len({background for background, _ in colours}) == len({label for _, label in colours}) == 2


def test_page_without_scripts_still_has_its_numbers(tab: Tab, pages: dict[str, Path]) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.call("Page.navigate", url=pages["report"].resolve().as_uri())
        deadline_s = time.monotonic() + 30
        while tab.ask("document.readyState") != "complete" and time.monotonic() < deadline_s:
            time.sleep(0.05)
        text = tab.ask("document.body.innerText")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "Charts and filters need JavaScript" in text and "Left out" in text
