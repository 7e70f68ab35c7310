"""A self-contained HTML page: text, tables, pictures and plotly figures, with nothing to fetch or to install."""

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.storage.outputs import PAGE_MARK

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito (2008): told apart by people with any of the usual kinds of colour blindness.
COLOURS: tuple[str, ...] = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
# Colour never stands alone: series differ in marker and dash as well.
MARKERS: tuple[str, ...] = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
DASHES: tuple[str, ...] = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
# Even in lightness, so that it survives grey printing: from plotly.
COLOUR_SCALE = "Cividis"
# Below this part of the scale white letters have more contrast than black ones (WCAG 2.1, relative luminance 0.18).
_DARK_PART = 0.47
# Light enough for black letters, white in the middle, and blue against orange for every kind of sight.
_DIVERGING_SCALE = ("#4C9FCC", "#FFFFFF", "#EF9A55")
_LONG_NAME = 8  # letters that stand under a column without being slanted

Cell = str | int | float


@dataclass(frozen=True)
class Plot:
    """A plotly figure; the caption says what is to be seen in it."""

    figure: "go.Figure"
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row names it."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """An image held in the page itself."""

    data_uri: str
    alt: str
    caption: str

    def __post_init__(self) -> None:
        if not self.data_uri.startswith("data:image/"):
            raise ValueError(f"picture {self.alt!r}: want a data URI, so that the page works offline")


@dataclass(frozen=True)
class Section:
    """A heading with its blocks; a plain string is a paragraph, neighbouring pictures share rows."""

    title: str
    blocks: Sequence["str | Plot | Table | Picture"]


def write_page(output: str, title: str, sections: Sequence[Section], *, synthetic: bool, subtitle: str = "") -> None:
    """Writes the page whole; every text in it is escaped, and a synthetic dataset is told at its top."""
    storage.write_bytes(output, render_page(title, sections, synthetic=synthetic, subtitle=subtitle).encode())


def render_page(title: str, sections: Sequence[Section], *, synthetic: bool, subtitle: str = "") -> str:
    """The page's HTML; plotly.js stands in it once, and only when a section has a figure."""
    figures = [block for section in sections for block in section.blocks if isinstance(block, Plot)]
    banner = (
        '<p class="banner" role="note"><strong>Synthetic data.</strong> '
        "These are drawn phantoms, not patients; no number here says anything about real X-rays.</p>"
    )
    contents = "".join(f'<li><a href="#s{i}">{_text(s.title)}</a></li>' for i, s in enumerate(sections, start=1))
    body = [
        f"<header><h1>{_text(title)}</h1>",
        f"<p>{_text(subtitle)}</p>" if subtitle else "",
        f"{banner if synthetic else ''}</header>",
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>',
        f"<main>{''.join(_section(i, section) for i, section in enumerate(sections, start=1))}</main>",
    ]
    scripts = _figure_scripts(figures) if figures else ""
    return _DOCUMENT.format(mark=PAGE_MARK, title=_text(title), style=_STYLE, body="\n".join(body), scripts=scripts)


def figure(*traces: object, height: int = 420, **layout: object) -> "go.Figure":
    """A plotly figure with the pages' common look; `layout` goes to plotly's own layout."""
    import plotly.graph_objects as go

    common = {
        "template": "plotly_white",
        "colorway": COLOURS,
        "height": height,
        "margin": {"l": 70, "r": 30, "t": 40, "b": 60},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1a1a1a"},
        "hoverlabel": {"namelength": -1},
    }
    return go.Figure(data=list(traces), layout=common | layout)


def matrix(
    shares: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    texts: Sequence[Sequence[str]],
    hovers: Sequence[Sequence[str]],
    low: float = 0,
    high: float = 1,
    diverging: bool = False,
) -> "go.Figure":
    """Numbers (n, m) as coloured cells between `low` and `high` with `texts` (n, m) in them; a NaN leaves a gap.

    `hovers` (n, m) is told when the pointer rests on a cell. Row 0 is at the top. `diverging` is for numbers that are
    best in the middle.
    """
    import plotly.graph_objects as go

    heat = go.Heatmap(
        z=np.round(shares, 4).tolist(),
        x=list(columns),
        y=list(rows),
        text=[list(row) for row in hovers],
        hovertemplate="%{text}<extra></extra>",
        colorscale=_DIVERGING_SCALE if diverging else COLOUR_SCALE,
        zmin=low,
        zmax=high,
        showscale=False,
        xgap=1,
        ygap=1,
    )
    # Plotly's own choice of letter colour is hard to read on the middle of the scale.
    is_dark = np.zeros(shares.shape, bool) if diverging else shares - low < _DARK_PART * (high - low)
    words = _words_of_matrix(texts, rows, columns, is_known=~np.isnan(shares), is_dark=is_dark)
    is_wide = max(map(len, columns), default=0) > _LONG_NAME
    axis = {"type": "category", "automargin": True, "showgrid": False, "zeroline": False}
    side = axis | {"range": [len(rows) - 0.5, -0.5], "categoryarray": list(rows)}
    # Slanted names end at their column: the row names leave room for them on the left.
    foot = axis | {"range": [-0.5, len(columns) - 0.5], "categoryarray": list(columns), "tickangle": -45 * is_wide}
    return figure(heat, words, height=80 + 28 * len(rows) + 80 * is_wide, xaxis=foot, yaxis=side)


def _words_of_matrix(
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    is_known: NDArray[np.bool_],
    is_dark: NDArray[np.bool_],
) -> "go.Scatter":
    """The texts of the known cells, white on dark ones."""
    import plotly.graph_objects as go

    cells = list(zip(*np.nonzero(is_known), strict=True))
    return go.Scatter(
        x=[columns[j] for _, j in cells],
        y=[rows[i] for i, _ in cells],
        text=[texts[i][j] for i, j in cells],
        mode="text",
        textfont={"size": 11, "color": ["#ffffff" if is_dark[cell] else "#000000" for cell in cells]},
        hoverinfo="skip",
        showlegend=False,
    )


def label(text: object) -> str:
    """A text from a file, made safe for a plotly label, which reads a little HTML."""
    return html.escape(str(text), quote=False)


def percent(value: float) -> str:
    """A share as a percentage; "-" for an unknown one."""
    return "-" if math.isnan(value) else f"{value:.1%}"


def share(part: float, whole: float) -> str:
    """A part of a whole as a percentage; "-" for a part of nothing."""
    return f"{part / whole:.1%}" if whole else "-"


# ------------------------------------------------------------------------------------------------------------- blocks

_NUMBER = ' class="number"'


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _section(number: int, section: Section) -> str:
    parts, pictures = [], []
    for place, block in enumerate(section.blocks):
        if isinstance(block, Picture):
            pictures.append(_picture(block))
            continue
        parts += _gallery(pictures)
        pictures = []
        parts.append(_block(block, name=f"s{number}b{place}"))
    parts += _gallery(pictures)
    return (
        f'<section aria-labelledby="s{number}"><h2 id="s{number}">{_text(section.title)}</h2>{"".join(parts)}</section>'
    )


def _gallery(pictures: Sequence[str]) -> list[str]:
    return [f'<div class="gallery">{"".join(pictures)}</div>'] if pictures else []


def _picture(picture: Picture) -> str:
    return (
        f'<figure><img src="{_text(picture.data_uri)}" alt="{_text(picture.alt)}">'
        f"<figcaption>{_text(picture.caption)}</figcaption></figure>"
    )


def _block(block: "str | Plot | Table", *, name: str) -> str:
    if isinstance(block, str):
        return f"<p>{_text(block)}</p>"
    if isinstance(block, Table):
        return _table(block)
    # Plotly sets its own height late; holding the room from the start keeps the page from jumping.
    height = block.figure.layout.height or 420
    return (
        f'<figure aria-labelledby="{name}"><div class="plot" style="min-height:{int(height)}px"></div>'
        f'<figcaption id="{name}">{_text(block.caption)}</figcaption></figure>'
    )


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_NUMBER if _is_number_column(table, i) else ""}>{_text(column)}</th>'
        for i, column in enumerate(table.columns)
    )
    rows = "".join(f"<tr>{''.join(_cell(cell, first=i == 0) for i, cell in enumerate(row))}</tr>" for row in table.rows)
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{_text(table.caption)}"><table>'
        f"<caption>{_text(table.caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(value: Cell, *, first: bool) -> str:
    if first:
        return f'<th scope="row">{_text(_written(value))}</th>'
    return f"<td{_NUMBER if _is_number(value) else ''}>{_text(_written(value))}</td>"


def _is_number(value: Cell) -> bool:
    """Numbers stand in columns under each other; a text that holds one ("0.123 (0.1 to 0.2)") is one of them."""
    if not isinstance(value, str) or value in ("", "-"):
        return True
    return re.fullmatch(r"[+-]?\d[\d.,%/ex+-]*", value.partition(" ")[0]) is not None


def _is_number_column(table: Table, column: int) -> bool:
    return column > 0 and all(_is_number(row[column]) for row in table.rows)


def _written(value: Cell) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if math.isnan(value) else f"{value:,.3f}"


# ------------------------------------------------------------------------------------------------------------ document


def _figure_scripts(figures: Sequence[Plot]) -> str:
    from plotly.offline import get_plotlyjs
    from plotly.utils import PlotlyJSONEncoder

    specs = [json.dumps(plot.figure.to_plotly_json(), cls=PlotlyJSONEncoder) for plot in figures]
    # "<" cannot close the script element when it is written as an escape, which JSON allows in any string.
    data = f"[{','.join(specs)}]".replace("<", "\\u003c")
    return (
        f"<script>{get_plotlyjs()}</script>\n"
        f'<script type="application/json" id="figures">{data}</script>\n<script>{_DRAW}</script>'
    )


# Plotly.js 4 offers by default to upload a chart: these charts describe patients and stay where they are.
_DRAW = """
const config = {responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]};
const specs = JSON.parse(document.getElementById("figures").textContent);
const draw = async (place, spec) => {
  try {
    await Plotly.newPlot(place, spec.data, spec.layout, config);
  } catch (error) {
    place.textContent = `This figure could not be drawn (${error}); the tables of the page hold.`;
    place.classList.add("failed");
  }
};
document.querySelectorAll(".plot").forEach((place, i) => draw(place, specs[i]));
"""

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 76rem;
  padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 1rem 0 .3rem; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #d5d9de; }
p { max-width: 48rem; }
a { color: #00517f; }
nav ol { columns: 3 14rem; padding-left: 1.4rem; }
.banner { background: #fff3cd; border: 2px solid #8a5a00; border-radius: .4rem; padding: .7rem 1rem; max-width: none;
  font-size: 1.1rem; }
figure { margin: 1rem 0 1.5rem; }
figcaption, caption { color: #454b54; font-size: .95rem; text-align: left; max-width: 60rem; }
caption { padding-bottom: .4rem; white-space: nowrap; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; align-items: start; }
.gallery figure { margin: 0; }
.gallery img { width: 100%; height: auto; background: #000; border-radius: .3rem; }
.table { overflow-x: auto; margin: 1rem 0 1.5rem; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e3e6ea; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #6b7480; }
tbody th { font-weight: 600; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { text-align: right; }
.failed { color: #8a1c00; font-weight: 600; }
tbody tr:hover { background: #f4f7fa; }
@media (max-width: 45rem) { caption { white-space: normal; } }
@media print { nav { display: none; } section { break-inside: avoid-page; } }
"""

# The policy forbids every load: should a remote address ever slip in, the browser refuses it.
_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{mark}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<noscript><p>The figures need JavaScript, which this page holds itself; the tables do not.</p></noscript>
{scripts}
</body>
</html>
"""
