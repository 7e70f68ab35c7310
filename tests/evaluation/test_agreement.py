"""Readers against each other."""

import math

import pandas as pd
import pytest

from vbd.evaluation.agreement import ALL_CLASSES, leave_one_reader_out, reader_pairs
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
