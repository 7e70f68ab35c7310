"""The exploratory report's sections on the fused boxes: their classes, numbers, sizes and places."""

import numpy as np

from vbd.labels import CLASS_NAMES, NUM_FINDINGS
from vbd.reports.census import (
    MIN_VISIBLE_SIDE,
    AllBoxes,
    Census,
    boxes_by_agreement,
    co_occurrence,
    drawn_per_class,
    images_per_class,
    position_maps,
    size_quantiles,
    visible_share,
)
from vbd.reports.page import (
    COLOUR_SCALE,
    COLOURS,
    MARKERS,
    Plot,
    Section,
    Table,
    figure,
    matrix,
    percent,
    share,
)

_SIZES = (256, 512, 768, 1024)
_SIDES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_SIDE_TITLE = "square root of the share of the image's area"


def classes(census: Census, boxes: AllBoxes) -> Section:
    """Images and boxes of each class, by the number of readers who agreed."""
    import plotly.graph_objects as go

    agreed, images, drawn = boxes_by_agreement(boxes), images_per_class(census.label_sets), drawn_per_class(census)
    fused = agreed.sum(axis=1)
    order = np.argsort(fused, kind="stable")
    bars = [
        go.Bar(
            y=[CLASS_NAMES[i] for i in order],
            x=agreed[order, k].tolist(),
            orientation="h",
            name=f"{k + 1} reader{'s' if k else ''}",
            marker={"color": COLOURS[k % len(COLOURS)], "pattern": {"shape": ("", "/", ".")[k % 3]}},
        )
        for k in range(agreed.shape[1])
    ]
    layout = {"barmode": "stack", "xaxis_title": "fused boxes", "legend": {"traceorder": "normal"}}
    plot = figure(*bars, height=520, yaxis={"automargin": True}, **layout)
    rows = [
        (CLASS_NAMES[i], int(images[i]), int(drawn[i]), int(fused[i]), *agreed[i].tolist(), share(agreed[i, 0], fused[i]))
        for i in reversed(order)
    ]  # fmt: skip
    total = agreed.sum(axis=0)
    abnormal = sum(map(bool, census.label_sets))
    rows.append(
        ("all", abnormal, int(drawn.sum()), int(fused.sum()), *total.tolist(), share(total[0], fused.sum()))
    )  # fmt: skip
    by = (f"by {k + 1} reader{'s' if k else ''}" for k in range(agreed.shape[1]))
    columns = ("class", "images", "boxes drawn", "fused boxes", *by, "by one only")
    return Section(
        "Classes",
        [
            Plot(plot, "Fused boxes of each class, by how many readers drew the same lesion."),
            Table("Images and boxes of each class", columns, rows),
        ],
    )


def boxes_on_an_image(census: Census, boxes: AllBoxes) -> Section:
    """How many boxes and classes an image holds."""
    import plotly.graph_objects as go

    counts = np.bincount(np.bincount(boxes.image, minlength=len(census.truths))) if census.truths else np.zeros(1, int)
    per_image = np.bincount([len(labels) for labels in census.label_sets] or [0])
    traces = [
        go.Bar(x=list(range(len(values))), y=values.tolist(), name=name, marker={"pattern": {"shape": shape}})
        for name, values, shape in (("boxes", counts, ""), ("classes", per_image, "/"))
    ]
    # A logarithmic axis from a half: a bar of one image is seen, and so is that there is none.
    most = np.log10(max(counts.max(), per_image.max(), 1)) + 0.2
    plot = figure(
        *traces,
        barmode="group",
        xaxis={"title": "on one image", "range": [-0.6, max(len(counts), len(per_image)) - 0.4]},
        yaxis={"title": "images", "type": "log", "dtick": 1, "range": [np.log10(0.5), most], "tickformat": ",d"},
    )
    caption = "How many fused boxes and how many classes an image shows; 0 is a normal image. The axis is logarithmic."
    return Section("Boxes on an image", [Plot(plot, caption)])


def classes_together(census: Census) -> Section:
    """Which classes come on the same image."""
    both = co_occurrence(census.label_sets)
    alone = np.diag(both)[:, None]
    shares = np.divide(both, alone, out=np.full(both.shape, np.nan), where=alone > 0)
    np.fill_diagonal(shares, np.nan)
    hovers = [
        [f"of {both[i, i]:,} images with {row}, {both[i, j]:,} show {column}" for j, column in enumerate(CLASS_NAMES)]
        for i, row in enumerate(CLASS_NAMES)
    ]
    plot = matrix(shares, CLASS_NAMES, CLASS_NAMES, texts=_percents(shares), hovers=hovers)
    caption = (
        "Of the images that show the class of the row, the share that also shows the class of the column. "
        "Showing images of one class more often shows the others more often too."
    )
    return Section("Classes that come together", [Plot(plot, caption)])


def sizes(boxes: AllBoxes) -> Section:
    """How large the boxes are, and how many stay visible at a size of the prepared image."""
    import plotly.graph_objects as go

    quantiles = size_quantiles(boxes)
    # A class without a box has no quantiles, and takes no row of the figures.
    order = [i for i in np.argsort(quantiles[:, 2], kind="stable") if not np.isnan(quantiles[i, 2])]
    names = [CLASS_NAMES[i] for i in order]
    low, q1, median, q3, high = np.round(quantiles[order], 5).T.tolist() if order else [[]] * 5
    box = go.Box(
        y=names, lowerfence=low, q1=q1, median=median, q3=q3, upperfence=high, orientation="h", marker_color=COLOURS[0]
    )
    side = {"type": "log", "tickvals": _SIDES, "tickformat": ".0%", "title": _SIDE_TITLE}
    spread = figure(box, height=520, xaxis=side, yaxis={"automargin": True})
    shares = np.array([visible_share(boxes, size) for size in _SIZES]).T
    dots = [
        go.Scatter(
            x=np.round(shares[order, k], 4).tolist(),
            y=names,
            mode="markers",
            name=f"{size} px",
            marker={"symbol": MARKERS[k], "size": 11, "color": COLOURS[k]},
        )
        for k, size in enumerate(_SIZES)
    ]
    visible = {
        "tickformat": ".0%",
        "range": [-0.02, 1.02],
        "title": f"boxes with both sides of {MIN_VISIBLE_SIDE} px or more",
    }
    kept = figure(*dots, height=520, xaxis=visible, yaxis={"automargin": True}, legend={"title": "prepared at"})
    medians = [f"{quantiles[i, 2] ** 2:.2%}" if i in order else "-" for i in range(NUM_FINDINGS)]
    rows = [
        (name, area, *(percent(value) for value in row))
        for name, area, row in zip((*CLASS_NAMES, "all"), (*medians, ""), shares, strict=True)
    ]
    caption = f"Boxes whose sides both have at least {MIN_VISIBLE_SIDE} px when the image is prepared at a size"
    return Section(
        "Sizes of boxes",
        [
            Plot(spread, "Sizes of each class's boxes: whiskers at 5 % and 95 %, box at 25 %, 50 % and 75 %."),
            Plot(kept, "What survives: boxes that stay large enough to be seen when the image is prepared at a size."),
            Table(caption, ("class", "median area", *(f"{size} px" for size in _SIZES)), rows),
        ],
    )


def positions(boxes: AllBoxes) -> Section:
    """Where on the image the boxes of each class lie."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    maps, counts = position_maps(boxes), np.bincount(boxes.labels, minlength=NUM_FINDINGS)
    peaks = maps.max(axis=(1, 2))
    columns = 5
    grid = make_subplots(
        rows=-(-NUM_FINDINGS // columns),
        cols=columns,
        subplot_titles=[
            f"{name}<br>{n:,} boxes, peak {peak:.0%}" if n else f"{name}<br>no box"
            for name, n, peak in zip(CLASS_NAMES, counts, peaks, strict=True)
        ],
        horizontal_spacing=0.02,
        vertical_spacing=0.08,
    )
    for i, heat in enumerate(maps):
        row, column = divmod(i, columns)
        trace = go.Heatmap(
            z=np.round(heat / max(peaks[i], 1e-9), 2).tolist(),
            text=[[f"{value:.1%}" for value in line] for line in heat.tolist()],
            coloraxis="coloraxis",
            hovertemplate="%{text} of its boxes<extra></extra>",
        )
        grid.add_trace(trace, row=row + 1, col=column + 1)
    grid.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed")
    colours = {"colorscale": COLOUR_SCALE, "cmin": 0, "cmax": 1}
    colours |= {"colorbar": {"title": "of the<br>peak", "tickformat": ".0%"}}
    grid.update_layout(figure(height=800, margin={"l": 20, "r": 20, "t": 70, "b": 20}).layout)
    grid.update_layout(coloraxis=colours)
    grid.update_annotations(font_size=12)
    caption = (
        "How many of a class's boxes cover a place of the image, as a share of the place that most of them cover (the "
        "peak, in the title as a share of the boxes). The patient's right is on the left."
    )
    return Section("Where the boxes lie", [Plot(grid, caption)])


def _percents(shares: np.ndarray) -> list[list[str]]:
    """Texts of a matrix of shares: whole percents."""
    return [["" if np.isnan(value) else f"{value:.0%}" for value in row] for row in shares]
