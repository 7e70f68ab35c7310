import numpy as np
import pytest

from tests.reports.reading import figures, loads, tables
from vbd.reports.gallery import data_uri
from vbd.reports.page import Picture, Plot, Section, Table, figure, render_page, write_page

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


def test_a_picture_from_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="data URI"):
        Picture("https://example.org/x.png", alt="x", caption="x")


def test_a_page_is_written_whole(tmp_path) -> None:
    write_page(str(tmp_path / "sub" / "page.html"), "Title", [], synthetic=False)
    assert (tmp_path / "sub" / "page.html").read_text().endswith("</html>\n")
    assert len(list((tmp_path / "sub").iterdir())) == 1
