import json

import numpy as np
import pytest
from plotly.colors import sample_colorscale

from tests.reports.reading import figures, loads, tables
from vbd.reports.gallery import data_uri
from vbd.reports.page import Picture, Plot, Section, Table, figure, matrix, render_page, write_page

NASTY = "<script>alert('x')</script> & \"quotes\""


def bars() -> Plot:
    import plotly.graph_objects as go

    return Plot(figure(go.Bar(x=["a", "</script>"], y=[1, 2]), title=NASTY), NASTY)


def test_a_page_loads_nothing_and_holds_plotly_once() -> None:
    picture = Picture(data_uri(np.zeros((4, 4), np.uint8)), alt="a black square", caption="black")
    page = render_page("Title", [Section("One", [bars(), bars()]), Section("Two", [picture])], synthetic=False)
    assert loads(page) == []
    assert page.count("plotly.js v") == 1
    assert "default-src 'none'" in page  # the browser would refuse what slipped through
    assert [f["data"][0]["y"] for f in figures(page)] == [[1, 2], [1, 2]]
    assert page.count('class="plot"') == 2
    assert 'alt="a black square"' in page


def test_a_chart_cannot_be_uploaded() -> None:
    page = render_page("Title", [Section("One", [bars()])], synthetic=False)
    assert "showSendToCloud: false" in page
    assert 'plotlyServerURL: ""' in page


def test_a_page_without_figures_holds_no_script() -> None:
    assert "<script" not in render_page("Title", [Section("One", ["text"])], synthetic=False)


def test_every_text_is_escaped() -> None:
    table = Table(NASTY, (NASTY, "n"), [(NASTY, 1)])
    picture = Picture(data_uri(np.zeros((4, 4), np.uint8)), alt=NASTY, caption=NASTY)
    page = render_page(NASTY, [Section(NASTY, [NASTY, table, picture])], synthetic=False, subtitle=NASTY)
    assert "<script" not in page
    assert tables(page)[NASTY] == [[NASTY, "n"], [NASTY, "1"]]


def test_the_data_of_a_figure_cannot_close_its_script() -> None:
    page = render_page("Title", [Section("One", [bars()])], synthetic=False)
    assert page.count("</script>") == 3  # plotly, the data, the call
    assert figures(page)[0]["data"][0]["x"] == ["a", "</script>"]


def test_synthetic_data_is_told_at_the_top() -> None:
    sections = [Section("One", ["text"])]
    page = render_page("Title", sections, synthetic=True)
    assert page.index("Synthetic data.") < page.index("<main>")
    assert "Synthetic" not in render_page("Title", sections, synthetic=False)


def test_tables_name_their_columns_and_rows() -> None:
    page = render_page(
        "Title", [Section("One", [Table("t", ("class", "n"), [("ILD", 12345), ("x", float("nan"))])])], synthetic=False
    )
    assert page.count('scope="col"') == 2
    assert page.count('scope="row"') == 2
    assert tables(page)["t"][1:] == [["ILD", "12,345"], ["x", "-"]]


@pytest.mark.parametrize(
    ("cell", "is_number"),
    [
        *(
            (cell, True)
            for cell in (3, 0.5, "3", "12,345", "-0.5", "4.5%", "0.1 (0.0 to 0.2)", "1e-4", "512 px", "-", "")
        ),
        *((cell, False) for cell in ("R8", "0c6a7e3c.png: broken", "9th", "- and more", "x2")),
    ],
)
def test_numbers_stand_right_and_texts_left(cell: str | float, is_number: bool) -> None:
    page = render_page("Title", [Section("One", [Table("t", ("name", "n"), [("a", cell)])])], synthetic=False)
    assert ('<td class="number">' in page) == is_number
    assert ('<th scope="col" class="number">n' in page) == is_number


def test_a_matrix_writes_every_known_number_into_its_cell() -> None:
    shares = np.array([[0.1, np.nan, 0.9], [0.44, 0.5, 0]])
    texts = [["a", "", "b"], ["c", "d", "e"]]
    plot = matrix(shares, ["r", "s"], ["x", "y", "z"], texts=texts, hovers=texts)
    heat, words = (json.loads(trace.to_json()) for trace in plot.data)
    assert heat["z"] == [[0.1, None, 0.9], [0.44, 0.5, 0]]
    written = list(zip(words["x"], words["y"], words["text"], strict=True))
    assert written == [("x", "r", "a"), ("z", "r", "b"), ("x", "s", "c"), ("y", "s", "d"), ("z", "s", "e")]
    # White letters on the dark half of the scale, black ones on the bright half.
    assert [colour[1] for colour in words["textfont"]["color"]] == ["f", "0", "f", "0", "f"]
    assert plot.layout.yaxis.range == (1.5, -0.5)  # row 0 at the top
    assert plot.layout.xaxis.tickangle == 0


def test_letters_on_a_matrix_have_contrast() -> None:
    """At least 4.5 to 1 wherever on a scale the number lies (WCAG 2.1, 1.4.3)."""
    values = np.linspace(0, 1, 101)[None]
    for diverging in (False, True):
        names = [str(i) for i in range(101)]
        plot = matrix(values, ["r"], names, texts=[names], hovers=[names], diverging=diverging)
        ground = sample_colorscale([colour for _, colour in plot.data[0].colorscale], values[0], colortype="tuple")
        for colour, letter in zip(ground, plot.data[1].textfont.color, strict=True):
            light, dark = sorted((luminance(colour), float(letter == "#ffffff")), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(colour: tuple[float, float, float]) -> float:
    """Relative luminance of sRGB in 0..1 (WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_long_names_under_a_matrix_are_slanted() -> None:
    plot = matrix(np.ones((1, 1)), ["r"], ["Aortic enlargement"], texts=[["1"]], hovers=[["1"]])
    assert plot.layout.xaxis.tickangle == -45


def test_an_empty_matrix_is_drawn() -> None:
    assert matrix(np.zeros((0, 2)), [], ["x", "y"], texts=[], hovers=[]).data[1].text == ()


def test_a_picture_from_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="data URI"):
        Picture("https://example.org/x.png", alt="x", caption="x")


def test_a_page_is_written_whole(tmp_path) -> None:
    write_page(str(tmp_path / "sub" / "page.html"), "Title", [], synthetic=False)
    assert (tmp_path / "sub" / "page.html").read_text().endswith("</html>\n")
    assert len(list((tmp_path / "sub").iterdir())) == 1
