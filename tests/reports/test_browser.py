from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from tests.browser import check_figures, drawn_figures, find_browser, open_page
from tests.reports.searches import search_of, with_detections, write_board
from tests.reports.studies import study_trials
from vbd.reports.eda.page import write_eda
from vbd.reports.page import Plot, Section, figure, render_page
from vbd.reports.search.page import write_search_report


@pytest.fixture
def simple() -> str:
    """A page of two figures: bars, and a line in each of two subplots."""
    lines = [go.Scatter(x=[1, 2], y=[3, 4]), go.Scatter(x=[1, 2], y=[3, 4], xaxis="x2", yaxis="y2")]
    subplots = figure(*lines, xaxis={"domain": [0, 0.4]}, xaxis2={"domain": [0.6, 1]}, yaxis2={"anchor": "x2"})
    plots = [Plot(figure(go.Bar(x=["a", "b"], y=[1, 2])), "bars"), Plot(subplots, "lines")]
    return render_page("Title", [Section("One", plots)], synthetic=False)


def write(page: str, folder: Path) -> Path:
    (folder / "page.html").write_text(page)
    return folder / "page.html"


def test_the_exploratory_report_is_drawn_whole_and_asks_for_nothing(dataset: str, tmp_path: Path) -> None:
    write_eda(dataset, str(tmp_path / "eda.html"))
    picture = tmp_path / "eda.png"
    opened = open_page(tmp_path / "eda.html", tmp_path / "profile", screenshot=picture, hw=(6000, 1280))
    check_figures(opened)
    # Classes, boxes on an image, co-occurrence, sizes, what survives, positions, classes by reader, pairs, folds.
    assert [drawn.subplots for drawn in drawn_figures(opened.dom)] == [1, 1, 1, 1, 1, 14, 1, 1, 1]
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape == (6000, 1280, 3)
    # The blue of the bars, the dark and the bright end of the heat maps.
    for colour in ((0x00, 0x72, 0xB2), (0x00, 0x22, 0x4E), (0xFE, 0xE8, 0x38)):
        assert (np.abs(pixels - colour).max(axis=2) <= 3).sum() > 500


def test_the_report_of_a_search_is_drawn_whole_and_asks_for_nothing(dataset: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    trials = with_detections(run, search_of(12), dataset)
    write_search_report(write_board(run, trials), f"{run}/report.html", data=dataset)
    opened = open_page(Path(run) / "report.html", tmp_path / "profile")
    check_figures(opened)
    # Strengths of three families, hyperparameters, learning curves (score and loss), classes, devices and what ran.
    assert [drawn.subplots for drawn in drawn_figures(opened.dom)] == [1, 1, 2, 1, 2]


def test_the_report_of_a_study_is_drawn_whole(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    write_search_report(write_board(run, study_trials(equal_epochs={"B": 4})), f"{run}/report.html")
    opened = open_page(Path(run) / "report.html", tmp_path / "profile")
    check_figures(opened)
    # Strengths, equal steps and epochs, importance of the fields, hyperparameters, learning curves, devices and what ran.
    drawn = drawn_figures(opened.dom)
    assert [each.subplots for each in drawn] == [1, 1, 1, 1, 2, 2]
    assert [each.traces for each in drawn[:3]] == [4, 2, 2]


def test_a_figure_that_is_left_out_is_seen(simple: str, tmp_path: Path) -> None:
    opened = open_page(write(simple.replace("=> draw(place", "=> i && draw(place"), tmp_path), tmp_path / "profile")
    assert [(drawn.subplots, drawn.traces) for drawn in drawn_figures(opened.dom)] == [(0, 0), (2, 2)]
    with pytest.raises(AssertionError):
        check_figures(opened)


def test_a_script_that_cannot_be_read_is_seen(simple: str, tmp_path: Path) -> None:
    opened = open_page(
        write(simple.replace("const draw = async", "const draw == async"), tmp_path), tmp_path / "profile"
    )
    assert "SyntaxError" in opened.console[0]
    with pytest.raises(AssertionError):
        check_figures(opened)


def test_a_figure_that_fails_says_so_in_its_place(simple: str, tmp_path: Path) -> None:
    broken = simple.replace("await Plotly.newPlot", "await Plotly.oldPlot")
    drawn = drawn_figures(open_page(write(broken, tmp_path), tmp_path / "profile").dom)
    assert [text.startswith("This figure could not be drawn (TypeError") for text in (d.text for d in drawn)] == [
        True
    ] * 2


def test_the_browser_refuses_what_a_page_would_load(simple: str, tmp_path: Path) -> None:
    """And a load that is not refused is seen, so that an empty list of requests means something."""
    loading = simple.replace("<h1>", '<img src="https://example.org/x.png"><h1>')
    refused = open_page(write(loading, tmp_path), tmp_path / "profile")
    assert refused.requests == []
    assert "Content Security Policy" in refused.console[0]
    allowed = open_page(write(loading.replace("Content-Security-Policy", "none"), tmp_path), tmp_path / "other")
    assert allowed.requests == ["https://example.org/x.png"]


def test_without_a_browser_a_test_is_skipped_but_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        find_browser()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        find_browser()
