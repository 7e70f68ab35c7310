"""What a whole submission betrays: found where it is, and never in a good file."""

from collections.abc import Callable

import numpy as np
import pytest

from vbd.boxes import to_prepared
from vbd.config import ResizeMode
from vbd.submission.check import Sheet, sheet_of
from vbd.submission.file import Line
from vbd.submission.signs import (
    find_equal_scores,
    find_resized,
    find_reversed_whole,
    ranks,
    resized_defects,
    without_explained,
)

Sizes = dict[str, tuple[int, int]]
# Sides of the competition's films, of the phantom's, and of films that are not larger than a prepared image.
FILMS = {"films": (2000, 3400), "phantoms": (340, 600), "small": (300, 512)}
# Where in the image a finding may lie: (left, right), (top, bottom).
LUNGS, AORTA, UPPER_RIGHT = ((0.15, 0.85), (0.15, 0.85)), ((0.45, 0.62), (0.2, 0.42)), ((0.18, 0.45), (0.15, 0.45))
Zone = tuple[tuple[float, float], tuple[float, float]]


def submission(
    rng: np.random.Generator, images: int, boxes: int, films: str = "films", zone: Zone = LUNGS
) -> tuple[Sheet, Sizes]:
    """Boxes around a few places of each image, in original pixels, and P(normal)."""
    lines, sizes = [], {}
    for place in range(images):
        height, width = rng.integers(*FILMS[films], 2).tolist()
        sizes[f"i{place}"] = (height, width)
        count = int(rng.poisson(boxes))
        places = np.column_stack([rng.uniform(*limits, max(1, count // 4)) for limits in zone])
        centres = places[rng.integers(0, len(places), count)] + rng.normal(0, 0.02, (count, 2))
        halves = rng.uniform(0.01, 0.12, (count, 2))
        corners = np.clip(np.hstack([centres - halves, centres + halves]), 0, 1) * [width, height, width, height]
        values = np.column_stack([rng.integers(0, 14, count), rng.uniform(0.001, 1, count), corners])
        lines.append(Line(place + 2, f"i{place}", np.vstack([values, [14, rng.random(), 0, 0, 1, 1]])))
    return sheet_of(lines), sizes


def changed(sheet: Sheet, change: Callable[[Line], np.ndarray], rows: range | None = None) -> Sheet:
    """The sheet with other findings in some rows; class 14 as it was."""
    lines = []
    for place, line in enumerate(sheet.lines):
        values = line.values.copy()
        if rows is None or place in rows:
            values[:-1] = change(line)[:-1]
        lines.append(Line(line.number, line.image_id, values))
    return sheet_of(lines)


def resized(sheet: Sheet, sizes: Sizes, side: int, mode: ResizeMode = "stretch", rows: range | None = None) -> Sheet:
    def smaller(line: Line) -> np.ndarray:
        boxes = to_prepared(line.values[:, 2:], sizes[line.image_id], side, mode)
        return np.hstack([line.values[:, :2], boxes])

    return changed(sheet, smaller, rows)


@pytest.mark.parametrize("films", FILMS)
@pytest.mark.parametrize("zone", [LUNGS, AORTA, UPPER_RIGHT], ids=["lungs", "aorta", "upper right"])
@pytest.mark.parametrize(("images", "boxes"), [(12, 3), (40, 30), (200, 2)])
def test_boxes_of_the_originals_raise_no_alarm(films: str, zone: Zone, images: int, boxes: int) -> None:
    for seed in range(6):
        sheet, sizes = submission(np.random.default_rng(seed), images, boxes, films, zone)
        for side in (None, 128, 512, 1024):
            assert find_resized(sheet, sizes, prepared_side=side) is None


@pytest.mark.parametrize(("films", "side"), [("films", 512), ("films", 1024), ("films", 1), ("phantoms", 128)])
@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("prepared_side", [None, 512, 1024])
def test_the_side_of_resized_images_is_found(
    films: str, side: int, mode: ResizeMode, prepared_side: int | None
) -> None:
    sheet, sizes = submission(np.random.default_rng(0), 40, 30, films)
    found = find_resized(resized(sheet, sizes, side, mode), sizes, prepared_side=prepared_side)
    assert found is not None
    assert (found.side, found.whole_file) == (side, True)
    assert found.numbers == {line.number for line in sheet.lines}


def test_few_boxes_are_of_the_prepared_side_that_is_known() -> None:
    sheet, sizes = submission(np.random.default_rng(0), 12, 3)
    found = find_resized(resized(sheet, sizes, 600), sizes, prepared_side=600)
    assert found is not None
    assert found.side == 600


def test_a_handful_of_boxes_says_nothing() -> None:
    sheet, sizes = submission(np.random.default_rng(0), 3, 2)
    assert find_resized(resized(sheet, sizes, 512), sizes) is None
    assert find_resized(sheet_of([]), {}) is None


def test_an_image_of_the_side_itself_is_not_among_the_resized() -> None:
    sheet, sizes = submission(np.random.default_rng(0), 40, 30)
    sizes["i7"] = (512, 512)
    found = find_resized(resized(sheet, sizes, 512), sizes)
    assert found is not None
    assert found.numbers == {line.number for line in sheet.lines} - {9}


def test_single_resized_rows_are_found_among_others() -> None:
    sheet, sizes = submission(np.random.default_rng(0), 60, 60)
    found = find_resized(resized(sheet, sizes, 512, rows=range(10, 24)), sizes)
    assert found is not None
    assert (found.side, found.whole_file) == (512, False)
    assert found.numbers == set(range(12, 26))


def test_a_resized_row_is_told_with_its_own_scale() -> None:
    sheet, sizes = submission(np.random.default_rng(0), 40, 30)
    sizes["i0"] = (2836, 2388)
    small = resized(sheet, sizes, 512)
    defect = resized_defects(small, find_resized(small, sizes), sizes)[0]
    assert (defect.kind, defect.line, defect.image_id) == ("resized", 2, "i0")
    assert "512 x 512" in defect.problem
    assert defect.mend == "multiply x by 4.664 and y by 5.539"


def test_what_the_scale_explains_is_not_told_twice() -> None:
    from vbd.submission.check import check_sheet

    sheet, sizes = submission(np.random.default_rng(0), 40, 30)
    shares = resized(sheet, sizes, 1)
    defects = check_sheet(shares, image_ids=list(sizes), original_hw=sizes)
    assert {defect.kind for defect in defects} == {"one_pixel"}
    assert without_explained(defects, find_resized(shares, sizes)) == []
    assert without_explained(defects, None) == defects


# -------------------------------------------------------------------------------------------------------------- scores


def test_equal_scores_are_told() -> None:
    sheet, _ = submission(np.random.default_rng(0), 12, 5)
    assert find_equal_scores(sheet) == []
    flat = changed(
        sheet, lambda line: np.hstack([line.values[:, :1], np.full((len(line.values), 1), 0.5), line.values[:, 2:]])
    )
    (defect,) = find_equal_scores(flat)
    assert defect.kind == "scores_equal"
    assert f"all {int(flat.is_finding.sum())} boxes have the score 0.5" in defect.problem


def test_one_p_for_all_images_is_told_but_not_a_switch() -> None:
    sheet, _ = submission(np.random.default_rng(0), 12, 5)
    lines = [
        Line(line.number, line.image_id, np.vstack([line.values[:-1], [14, 1, 0, 0, 1, 1]])) for line in sheet.lines
    ]
    (defect,) = find_equal_scores(sheet_of(lines))
    assert defect.kind == "whole_image_equal"
    lines[3] = Line(5, "i3", lines[3].values[:-1])
    assert find_equal_scores(sheet_of(lines)) == []


def test_a_file_without_findings_has_equal_scores_by_nature() -> None:
    normal = np.array([[14, 1, 0, 0, 1, 1.0]])
    sheet = sheet_of([Line(place, f"i{place}", normal) for place in range(2, 40)])
    assert find_equal_scores(sheet) == find_reversed_whole(sheet) == []
    assert find_resized(sheet, {f"i{place}": (2000, 2000) for place in range(2, 40)}) is None


@pytest.mark.parametrize(("sense", "told"), [(-1, False), (0, False), (1, True)])
def test_p_that_rises_with_the_boxes_is_told(sense: int, told: bool) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sheet, _ = submission(rng, 60, 5)
        lines = []
        for line in sheet.lines:
            best = line.values[:-1, 1].max(initial=0)
            p = np.clip(0.5 + sense * (best - 0.5) + rng.normal(0, 0.1), 1e-6, 1) if sense else rng.random()
            lines.append(Line(line.number, line.image_id, np.vstack([line.values[:-1], [14, p, 0, 0, 1, 1]])))
        assert [defect.kind for defect in find_reversed_whole(sheet_of(lines))] == ["whole_image_reversed"] * told


def test_equal_values_share_their_rank() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 0.0])).tolist() == [2.5, 1.0, 2.5, 0.0]
    assert ranks(np.zeros(0)).tolist() == []
