"""The exploratory report: what a prepared dataset holds, on one page."""

import numpy as np

from vbd.data.prepared import open_dataset
from vbd.labels import CLASS_NAMES, NUM_FINDINGS
from vbd.reports.census import (
    MIN_VISIBLE_SIDE,
    AllBoxes,
    Census,
    all_boxes,
    boxes_by_agreement,
    co_occurrence,
    fold_table,
    images_per_class,
    position_maps,
    read_census,
    reader_counts,
    rejects_by_reason,
    sampled_counts,
    size_quantiles,
    visible_share,
)
from vbd.reports.gallery import data_uri, draw, read_image, reader_layers
from vbd.reports.page import COLOUR_SCALE, COLOURS, Picture, Plot, Section, Table, figure, label, percent, write_page

_SIZES = (256, 512, 768, 1024)
_THRESHOLDS = (0.1, 0.2)
_SIDES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_SIDE_TITLE = "side of a square of equal area, share of the image's side"
_SAMPLES = 9
_SAMPLE_SIDE = 420  # pixels of a sample image on the page
_MAX_REASONS = 30


def write_eda(data: str, output: str) -> None:
    """Writes the exploratory report of a prepared dataset as one HTML page that works offline."""
    census = read_census(open_dataset(data))
    dataset = census.dataset
    boxes = all_boxes(census)
    sections = [
        _overview(census, boxes),
        _samples(census),
        _classes(census, boxes),
        _images(census, boxes),
        _together(census),
        _sizes(census, boxes),
        _positions(boxes),
        _readers(census),
        _folds(census),
        _sampling(census),
        _rejects(census),
    ]
    subtitle = (
        f"{dataset.location}: {len(census.truths):,} training images of {dataset.options.image_size} px, "
        f"{len(boxes.labels):,} boxes, dataset {dataset.fingerprint}"
    )
    write_page(output, "What the dataset holds", sections, synthetic=dataset.synthetic, subtitle=subtitle)


def _overview(census: Census, boxes: AllBoxes) -> Section:
    counts, options = census.dataset.counts, census.dataset.options
    normal = sum(not labels for labels in census.label_sets)
    rows = [
        ("training images", f"{len(census.truths):,}"),
        ("of them normal", f"{normal:,} ({percent(normal / max(1, len(census.truths)))})"),
        ("test images", f"{counts.get('test_images', 0):,}"),
        ("boxes that readers drew", f"{len(census.readings):,}"),
        ("boxes after fusing the readers", f"{len(boxes.labels):,} ({options.fusion} at IoU {options.fusion_iou:g})"),
        ("readers", f"{census.readers['rad_id'].nunique():,}"),
        ("refused files and rows", f"{counts.get('rejects', 0):,}"),
        ("prepared image", f"{options.image_size} px, {options.resize}"),
    ]
    return Section("Overview", [Table("The dataset in a few numbers", ("", "value"), rows)])


def _samples(census: Census) -> Section:
    """Images with many classes, spread over the folds by the order of their ids."""
    abnormal = sorted((t for t in census.truths if len(t.labels)), key=lambda t: (-len(set(t.labels)), t.image_id))
    chosen = abnormal[:: max(1, len(abnormal) // _SAMPLES)][:_SAMPLES]
    pictures = []
    for truth in chosen:
        image, readers = read_image(census.dataset, truth.image_id), census.readers_of(truth.image_id)
        hw = census.original_hw[truth.image_id]
        layers = reader_layers(census.dataset, census.readings_of(truth.image_id), readers=readers, original_hw=hw)
        drawn = draw(image, layers, zoom=_SAMPLE_SIDE / image.shape[0], legend=True)
        shown = ", ".join(CLASS_NAMES[i] for i in sorted(set(truth.labels.tolist())))
        pictures.append(
            Picture(
                data_uri(drawn),
                alt=f"Chest image {truth.image_id} with the boxes of {len(readers)} readers: {shown}",
                caption=f"{truth.image_id}, fold {census.folds[census.truths.index(truth)]}, {hw[1]} x {hw[0]} px",
            )
        )
    text = "Boxes as each reader drew them, before fusing; colour and line tell the readers apart."
    return Section("Sample images", [text if pictures else "No image has a finding.", *pictures])


def _classes(census: Census, boxes: AllBoxes) -> Section:
    import plotly.graph_objects as go

    agreed, images = boxes_by_agreement(boxes), images_per_class(census.label_sets)
    order = np.argsort(images, kind="stable")
    names = [CLASS_NAMES[i] for i in order]
    bars = [
        go.Bar(
            y=names,
            x=agreed[order, k].tolist(),
            orientation="h",
            name=f"{k + 1} reader{'s' if k else ''}",
            marker={"color": COLOURS[k % len(COLOURS)], "pattern": {"shape": ("", "/", ".")[k % 3]}},
        )
        for k in range(agreed.shape[1])
    ]
    plot = figure(
        *bars,
        height=520,
        barmode="stack",
        xaxis_title="fused boxes",
        yaxis={"automargin": True},
        legend={"traceorder": "normal"},
    )
    columns = ("class", "images", "fused boxes", *(f"drawn by {k + 1}" for k in range(agreed.shape[1])), "by one only")
    rows = [
        (
            CLASS_NAMES[i],
            int(images[i]),
            int(agreed[i].sum()),
            *agreed[i].tolist(),
            _share(agreed[i, 0], agreed[i].sum()),
        )
        for i in reversed(order)
    ]
    total = agreed.sum(axis=0)
    rows.append(
        ("all", sum(map(bool, census.label_sets)), int(total.sum()), *total.tolist(), _share(total[0], total.sum()))
    )
    return Section(
        "Classes",
        [
            Plot(plot, "Fused boxes of each class, by how many readers drew the same lesion."),
            Table("Images and boxes of each class", columns, rows),
        ],
    )


def _images(census: Census, boxes: AllBoxes) -> Section:
    import plotly.graph_objects as go

    counts = np.bincount(np.bincount(boxes.image, minlength=len(census.truths))) if census.truths else np.zeros(1, int)
    classes = np.bincount([len(labels) for labels in census.label_sets] or [0])
    traces = [
        go.Bar(x=list(range(len(values))), y=values.tolist(), name=name, marker={"pattern": {"shape": shape}})
        for name, values, shape in (("boxes", counts, ""), ("classes", classes, "/"))
    ]
    plot = figure(
        *traces, barmode="group", xaxis_title="on one image", yaxis={"title": "images", "type": "log", "dtick": 1}
    )
    return Section(
        "Boxes on an image",
        [Plot(plot, "How many fused boxes and how many classes an image shows; 0 is a normal image.")],
    )


def _together(census: Census) -> Section:
    import plotly.graph_objects as go

    both = co_occurrence(census.label_sets)
    alone = np.diag(both)[:, None]
    share = np.divide(both, alone, out=np.full(both.shape, np.nan), where=alone > 0)
    np.fill_diagonal(share, np.nan)
    trace = go.Heatmap(
        z=np.round(share, 3).tolist(),
        x=CLASS_NAMES,
        y=CLASS_NAMES,
        customdata=both.tolist(),
        colorscale=COLOUR_SCALE,
        zmin=0,
        zmax=1,
        texttemplate="%{z:.2f}",
        textfont={"size": 10},
        hovertemplate="given %{y}: %{x} in %{z:.0%} (%{customdata} images)<extra></extra>",
        colorbar={"title": "share", "tickformat": ".0%"},
    )
    plot = figure(
        trace,
        height=620,
        xaxis={"automargin": True, "tickangle": 45},
        yaxis={"automargin": True, "autorange": "reversed"},
    )
    caption = (
        "Of the images that show the class of the row, the share that also shows the class of the column. "
        "Showing images of one class more often shows the others more often too."
    )
    return Section("Classes that come together", [Plot(plot, caption)])


def _sizes(census: Census, boxes: AllBoxes) -> Section:
    import plotly.graph_objects as go

    quantiles = size_quantiles(boxes)
    # A class without a box has no quantiles, and takes no row of the figure.
    order = [i for i in np.argsort(quantiles[:, 2], kind="stable") if not np.isnan(quantiles[i, 2])]
    low, q1, median, q3, high = np.round(quantiles[order], 5).T.tolist() if order else [[]] * 5
    box = go.Box(
        y=[CLASS_NAMES[i] for i in order],
        lowerfence=low,
        q1=q1,
        median=median,
        q3=q3,
        upperfence=high,
        orientation="h",
        marker_color=COLOURS[0],
    )
    plot = figure(
        box, height=520, xaxis={"type": "log", "tickvals": _SIDES, "tickformat": ".0%", "title": _SIDE_TITLE},
        yaxis={"automargin": True},
    )  # fmt: skip
    shares = [visible_share(census, size) for size in _SIZES]
    rows = [
        (
            CLASS_NAMES[i],
            "-" if np.isnan(quantiles[i, 2]) else f"{quantiles[i, 2] ** 2:.2%}",
            *(percent(s[i]) for s in shares),
        )
        for i in range(NUM_FINDINGS)
    ]
    caption = f"Boxes whose sides both have at least {MIN_VISIBLE_SIDE} px when the image is prepared at a size"
    return Section(
        "Sizes of boxes",
        [
            Plot(plot, "Sizes of each class's boxes: whiskers at 5 % and 95 %, box at 25 %, 50 % and 75 %."),
            Table(caption, ("class", "median area", *(f"{size} px" for size in _SIZES)), rows),
        ],
    )


def _positions(boxes: AllBoxes) -> Section:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    maps, counts = position_maps(boxes), np.bincount(boxes.labels, minlength=NUM_FINDINGS)
    columns = 5
    grid = make_subplots(
        rows=-(-NUM_FINDINGS // columns),
        cols=columns,
        subplot_titles=[f"{name} ({n:,})" for name, n in zip(CLASS_NAMES, counts, strict=True)],
        horizontal_spacing=0.02,
        vertical_spacing=0.07,
    )
    for i, heat in enumerate(maps):
        row, column = divmod(i, columns)
        trace = go.Heatmap(
            z=np.round(heat, 3).tolist(), coloraxis="coloraxis", hovertemplate="%{z:.0%} of its boxes<extra></extra>"
        )
        grid.add_trace(trace, row=row + 1, col=column + 1)
    grid.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed")
    layout = figure(height=760).layout
    grid.update_layout(layout).update_layout(
        coloraxis={"colorscale": COLOUR_SCALE, "colorbar": {"title": "share", "tickformat": ".0%"}},
        margin={"l": 20, "r": 20, "t": 70, "b": 20},
    )
    grid.update_annotations(font_size=12)
    caption = (
        "Share of each class's boxes that cover a place of the image; the patient's right is on the left. "
        "In brackets: boxes."
    )
    return Section("Where the boxes lie", [Plot(grid, caption)])


def _readers(census: Census) -> Section:
    from vbd.evaluation.agreement import ALL_CLASSES, leave_one_reader_out

    table = leave_one_reader_out(census.readings, census.readers)
    overall = table[table["class_name"] == ALL_CLASSES].set_index("rad_id")
    rows: list[tuple[str | int, ...]] = [
        (
            count.rad_id,
            count.images,
            _share(count.abnormal, count.images),
            count.boxes,
            f"{count.boxes / count.abnormal:.1f}" if count.abnormal else "-",
            *(percent(overall[name].get(count.rad_id, np.nan)) for name in ("precision", "recall")),
        )
        for count in reader_counts(census)
    ]
    columns = ("reader", "images read", "with a box", "boxes drawn", "boxes per such image", "precision", "recall")
    text = (
        "Precision: of a reader's boxes, the share that the fused boxes of the other readers of the same images "
        "confirm (same class, IoU above 0.4). Recall: the share of the others' fused boxes that this reader drew too."
    )
    return Section("Readers", [text, Table("What each reader read and drew", columns, rows), *_pairs(census)])


def _pairs(census: Census) -> list[Plot]:
    """How far each two readers draw the same boxes: a matrix, when two readers saw the same images."""
    import plotly.graph_objects as go

    from vbd.evaluation.agreement import ALL_CLASSES, reader_pairs

    pairs = reader_pairs(census.readings, census.readers)
    pairs = pairs[(pairs["class_name"] == ALL_CLASSES) & (pairs["boxes"] + pairs["reference_boxes"] > 0)]
    if pairs.empty:
        return []
    pairs = pairs.assign(dice=2 * pairs["agreed"] / (pairs["boxes"] + pairs["reference_boxes"]))
    order = [count.rad_id for count in reader_counts(census) if count.rad_id in set(pairs["rad_id"])]
    wide = {
        name: pairs.pivot(index="rad_id", columns="other_rad_id", values=name).reindex(index=order, columns=order)
        for name in ("dice", "images")
    }
    trace = go.Heatmap(
        z=np.round(wide["dice"].to_numpy(float), 3).tolist(),
        x=[label(name) for name in order],
        y=[label(name) for name in order],
        customdata=wide["images"].fillna(0).astype(int).to_numpy().tolist(),
        colorscale=COLOUR_SCALE,
        zmin=0,
        zmax=1,
        texttemplate="%{z:.2f}",
        hovertemplate="%{y} and %{x}: %{z:.0%} on %{customdata} images<extra></extra>",
        colorbar={"title": "agreement", "tickformat": ".0%"},
    )
    side = {"type": "category", "automargin": True}
    plot = figure(trace, height=200 + 28 * len(order), xaxis=side, yaxis=side | {"autorange": "reversed"})
    caption = (
        "Agreement of each two readers on the images that both read: boxes drawn by both, as a share of the boxes of "
        "either (Dice). Readers without a common abnormal image have no number."
    )
    return [Plot(plot, caption)]


def _folds(census: Census) -> Section:
    table = fold_table(census)
    names = ("images", "normal images", *CLASS_NAMES)
    columns = ("images of", *(f"fold {k}" for k in range(len(table))))
    rows = [(name, *values) for name, values in zip(names, table.T.tolist(), strict=True)]
    return Section("Folds", [Table("Images of each fold, and those that show a class", columns, rows)])


def _sampling(census: Census) -> Section:
    plain = sampled_counts(census, threshold=0)
    variants = [
        *((f"repeat factors t = {t:g}", sampled_counts(census, threshold=t)) for t in _THRESHOLDS),
        ("policy D at strength 1", sampled_counts(census, threshold=0, policy_d=True)),
    ]
    rows: list[tuple[str | int, ...]] = [
        (name, int(plain[i]), *(_times(values[i], plain[i]) for _, values in variants))
        for i, name in enumerate(("all abnormal images", *CLASS_NAMES))
    ]
    text = (
        "Abnormal images that one epoch shows. An image that is repeated for a rare class repeats its other classes "
        "with it; the share of normal images is set apart, by normal_share."
    )
    columns = ("", "once each", *(name for name, _ in variants))
    return Section("What sampling shows", [text, Table("Images of each class in one epoch", columns, rows)])


def _rejects(census: Census) -> Section:
    reasons = rejects_by_reason(census.dataset)
    if not reasons:
        return Section("Refused files and rows", ["Nothing was refused."])
    rest = sum(count for _, count, _ in reasons[_MAX_REASONS:])
    note = [f"{rest:,} more for other reasons; see rejects.csv."] if rest else []
    rows = reasons[:_MAX_REASONS]
    return Section(
        "Refused files and rows",
        [Table("Reasons (# stands for any number)", ("reason", "times", "for example"), rows), *note],
    )


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "-"


def _times(value: float, plain: float) -> str:
    return f"{value:,.0f} (x{value / plain:.2f})" if plain else "-"
