"""Readers against each other."""

import math

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.images import found
from vbd.errors import InputError
from vbd.evaluation.agreement import (
    ALL_CLASSES,
    froc_against_readers,
    human_reference,
    leave_one_reader_out,
    reader_pairs,
)
from vbd.labels import CLASS_NAMES
from vbd.records import READING_COLUMNS

SAME, NEAR, AWAY = (0, 0, 10, 10), (0, 0, 10, 11), (50, 50, 60, 60)


def tables(drawn, looks):
    readings = pd.DataFrame([(i, r, label, *box) for i, r, label, box in drawn], columns=list(READING_COLUMNS))
    return readings, pd.DataFrame(looks, columns=["image_id", "rad_id"])


def row(table, class_name=ALL_CLASSES, **keys):
    for name, value in keys.items():
        table = table[table[name] == value]
    (found,) = table[table["class_name"] == class_name].to_dict("records")
    return found


def test_no_readings():
    assert leave_one_reader_out(*tables([], [])).empty
    assert reader_pairs(*tables([], [])).empty


def test_readers_who_found_nothing_have_no_precision():
    values = row(leave_one_reader_out(*tables([], [("a", "R1"), ("a", "R2")])), rad_id="R1")
    assert (values["images"], values["boxes"], values["reference_boxes"]) == (1, 0, 0)
    assert math.isnan(values["precision"])
    assert math.isnan(values["recall"])


def test_a_reader_is_compared_with_the_fused_boxes_of_the_others():
    drawn = [("a", "R1", 3, SAME), ("a", "R2", 3, SAME), ("a", "R3", 3, NEAR), ("a", "R3", 3, AWAY)]
    table = leave_one_reader_out(*tables(drawn, [("a", "R1"), ("a", "R2"), ("a", "R3")]))
    first, third = row(table, rad_id="R1"), row(table, CLASS_NAMES[3], rad_id="R3")
    # R2's and R3's overlapping boxes are one finding, R3's other one is a second.
    assert (first["boxes"], first["reference_boxes"], first["agreed"]) == (1, 2, 1)
    assert (first["precision"], first["recall"]) == (1.0, 0.5)
    assert (third["precision"], third["recall"]) == (0.5, 1.0)


def test_labels_and_images_are_kept_apart():
    drawn = [("a", "R1", 3, SAME), ("a", "R2", 4, SAME), ("b", "R1", 3, SAME)]
    table = leave_one_reader_out(*tables(drawn, [("a", "R1"), ("a", "R2"), ("b", "R1"), ("b", "R2")]))
    assert row(table, rad_id="R1")["agreed"] == 0
    assert row(table, rad_id="R1")["images"] == 2


def test_an_image_with_one_reader_is_left_out():
    table = leave_one_reader_out(*tables([("a", "R1", 3, SAME)], [("a", "R1"), ("b", "R1"), ("b", "R2")]))
    assert (row(table, rad_id="R1")["images"], row(table, rad_id="R1")["boxes"]) == (1, 0)


def test_pairs_see_only_the_images_that_both_read():
    drawn = [("a", "R1", 3, SAME), ("a", "R2", 3, NEAR), ("b", "R1", 3, AWAY), ("b", "R3", 3, AWAY)]
    table = reader_pairs(*tables(drawn, [("a", "R1"), ("a", "R2"), ("b", "R1"), ("b", "R3")]))
    values = row(table, rad_id="R1", other_rad_id="R2")
    assert (values["images"], values["boxes"], values["agreed"]) == (1, 1, 1)
    assert table[(table["rad_id"] == "R2") & (table["other_rad_id"] == "R3")].empty


def test_order_of_rows_does_not_matter():
    drawn = [("a", "R1", 3, SAME), ("a", "R2", 3, NEAR), ("a", "R3", 3, AWAY), ("a", "R3", 3, SAME)]
    readings, readers = tables(drawn, [("a", "R1"), ("a", "R2"), ("a", "R3")])
    pd.testing.assert_frame_equal(
        leave_one_reader_out(readings, readers), leave_one_reader_out(readings[::-1], readers[::-1])
    )
    assert row(reader_pairs(readings, readers), rad_id="R1", other_rad_id="R3")["precision"] == pytest.approx(1)


def test_readers_are_points_of_a_froc_plot():
    drawn = [("a", "R1", 3, SAME), ("a", "R2", 3, SAME), ("a", "R3", 3, NEAR), ("a", "R3", 3, AWAY)]
    looks = [(i, r) for i in "ab" for r in ("R1", "R2", "R3")]
    reference = human_reference(*tables(drawn, looks))
    first, _, third = reference.readers
    assert [each.rad_id for each in reference.readers] == ["R1", "R2", "R3"]
    assert (first.images, first.sensitivity, first.precision, first.false_positives_per_image) == (2, 0.5, 1, 0)
    assert (third.images, third.sensitivity, third.precision, third.false_positives_per_image) == (2, 1, 0.5, 0.5)
    pooled = reference.pooled
    assert (pooled.images, pooled.boxes, pooled.reference_boxes, pooled.agreed) == (6, 4, 5, 3)
    assert (pooled.sensitivity, pooled.precision) == (3 / 5, 3 / 4)
    assert pooled.false_positives_per_image == pytest.approx(1 / 6)
    assert reference.per_class[CLASS_NAMES[3]] == pooled
    assert reference.per_class[CLASS_NAMES[4]].images == 6
    assert math.isnan(reference.per_class[CLASS_NAMES[4]].sensitivity)


def test_no_readers_are_no_reference():
    reference = human_reference(*tables([], []))
    assert reference.readers == ()
    assert reference.pooled.images == 0
    assert math.isnan(reference.pooled.sensitivity)
    assert list(reference.per_class) == list(CLASS_NAMES)


def test_a_model_is_held_against_what_each_reader_is_held_against():
    drawn = [("a", "R1", 3, SAME), ("a", "R2", 3, NEAR), ("a", "R2", 3, AWAY)]
    readings, readers = tables(drawn, [("a", "R1"), ("a", "R2"), ("b", "R1"), ("b", "R2")])
    detections = [found("b", [SAME], [0.3], [3]), found("a", [SAME, (80, 80, 90, 90)], [0.9, 0.5], [3, 3])]
    result = froc_against_readers(detections, readings, readers, rates=(0.4, 0.5, 1))
    # R2's two boxes are the reference of R1's look, R1's one box that of R2's; four looks in all.
    assert result.num_images == 4
    assert result.pooled.num_truths == 3
    assert result.pooled.curve_scores.tolist() == pytest.approx([0.9, 0.5, 0.3])
    assert result.pooled.curve_sensitivities.tolist() == pytest.approx([2 / 3] * 3)
    assert result.pooled.curve_false_positives_per_image.tolist() == [0, 0.5, 1]
    assert result.per_class[CLASS_NAMES[3]].sensitivities == result.pooled.sensitivities


def test_a_model_that_draws_as_a_reader_scores_as_that_reader():
    rng = np.random.default_rng(0)
    drawn, looks = [], []
    for i in range(30):
        looks += [(f"i{i}", "R1"), (f"i{i}", "R2")]
        for _ in range(rng.integers(0, 4)):
            x, y, label = *rng.integers(0, 100, 2), int(rng.integers(0, 3))
            for name in [name for name in ("R1", "R2") if rng.uniform() < 0.7]:
                shift = rng.integers(0, 4, 2)
                drawn.append((f"i{i}", name, label, (x + shift[0], y + shift[1], x + 20, y + 20)))
    readings, readers = tables(drawn, looks)
    own = readings[readings["rad_id"] == "R1"]
    detections = [
        found(name, rows[["x_min", "y_min", "x_max", "y_max"]].to_numpy(), np.ones(len(rows)), rows["label"])
        for name, rows in own.groupby("image_id")
    ]
    # Only R1's looks: the reference is what R2 drew.
    reader = human_reference(readings, readers).readers[0]
    result = froc_against_readers(detections, readings, readers)
    both = human_reference(readings, readers).readers[1]
    # On R2's looks the reference is R1's own boxes, which a model that copies them all finds.
    found_all = reader.agreed + both.reference_boxes
    assert result.pooled.num_truths == reader.reference_boxes + both.reference_boxes
    assert result.pooled.curve_sensitivities[-1] == pytest.approx(found_all / result.pooled.num_truths)


def test_images_of_one_reader_are_no_reference_for_a_model():
    readings, readers = tables([("a", "R1", 3, SAME)], [("a", "R1"), ("b", "R1"), ("b", "R2")])
    result = froc_against_readers([found("a", [SAME], [0.9], [3])], readings, readers)
    assert (result.num_images, result.pooled.num_truths, len(result.pooled.curve_scores)) == (2, 0, 0)
    assert froc_against_readers([], readings, readers).num_images == 2


def test_a_model_is_matched_as_the_readers_are():
    # 4 of 10 columns shared: IoU is exactly 0.4, which counts. Image a has one reader and no part in it.
    wide, narrow = (0, 0, 10, 1), (0, 0, 4, 1)
    drawn = [("a", "R1", 3, SAME), ("b", "R1", 3, wide), ("b", "R2", 3, narrow)]
    readings, readers = tables(drawn, [("a", "R1"), ("b", "R1"), ("b", "R2"), ("c", "R1"), ("c", "R2")])
    assert human_reference(readings, readers).pooled.sensitivity == 1
    result = froc_against_readers([found("b", [narrow], [0.9], [3])], readings, readers)
    assert (result.num_images, result.pooled.curve_sensitivities.tolist()) == (4, [1])


def test_a_bad_detection_is_told_before_it_meets_the_readers():
    with pytest.raises(InputError, match="not finite"):
        froc_against_readers([found("a", [SAME], [np.nan])], *tables([], []))
