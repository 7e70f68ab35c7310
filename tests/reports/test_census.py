import numpy as np

from tests.reports.conftest import CARDIOMEGALY, NODULE
from vbd.data.prepared import open_dataset
from vbd.reports import census
from vbd.reports.census import read_census


def test_counts_by_class_and_agreement(dataset: str) -> None:
    found = read_census(open_dataset(dataset))
    boxes = census.all_boxes(found)
    agreed = census.boxes_by_agreement(boxes)
    assert agreed[CARDIOMEGALY].tolist() == [0, 1, 1]
    assert agreed[NODULE].tolist() == [1, 0, 0]
    assert agreed.sum() == 3
    assert census.images_per_class(found.label_sets)[CARDIOMEGALY] == 2
    both = census.co_occurrence(found.label_sets)
    assert both[CARDIOMEGALY, NODULE] == both[NODULE, CARDIOMEGALY] == 1
    assert both[CARDIOMEGALY, CARDIOMEGALY] == 2


def test_sizes_and_what_survives(dataset: str) -> None:
    found = read_census(open_dataset(dataset))
    quantiles = census.size_quantiles(census.all_boxes(found))
    np.testing.assert_allclose(quantiles[CARDIOMEGALY], np.sqrt(160 * 80 / (128 * 256)))
    assert np.isnan(quantiles[0]).all()
    # The nodule is 12 x 8 pixels of 256 x 128: at 128 px it is 6 wide, at 256 px 12 wide and 16 high.
    assert census.visible_share(found, 128)[NODULE] == 0
    assert census.visible_share(found, 256)[NODULE] == 1
    assert np.isnan(census.visible_share(found, 256)[0])


def test_position_maps_cover_the_boxes(dataset: str) -> None:
    maps = census.position_maps(census.all_boxes(read_census(open_dataset(dataset))), cells=16)
    rows, columns = np.nonzero(maps[CARDIOMEGALY] == 1)
    assert (rows.min(), rows.max() + 1) == (2, 13)  # 20 / 128 and 100 / 128 of 16 cells
    assert (columns.min(), columns.max() + 1) == (2, 13)  # 40 / 256 and 200 / 256
    assert maps[0].sum() == 0


def test_readers_and_folds(dataset: str) -> None:
    found = read_census(open_dataset(dataset))
    counts = [(c.rad_id, c.images, c.abnormal, c.boxes) for c in census.reader_counts(found)]
    assert counts == [("R1", 4, 2, 3), ("R2", 4, 2, 2), ("R3", 4, 1, 1)]
    table = census.fold_table(found)
    assert table[:, :2].tolist() == [[2, 1], [2, 1]]
    assert table[:, 2 + CARDIOMEGALY].tolist() == [1, 1]
    assert table[:, 2 + NODULE].tolist() == [1, 0]


def test_sampling_repeats_rare_classes(dataset: str) -> None:
    found = read_census(open_dataset(dataset))
    assert census.sampled_counts(found, threshold=0)[[0, 1 + CARDIOMEGALY, 1 + NODULE]].tolist() == [2, 2, 1]
    # The nodule is on half of the two abnormal images: sqrt(2 / 0.5) = 2 times, and once more sqrt(2 / 1).
    sampled = census.sampled_counts(found, threshold=2)
    np.testing.assert_allclose(sampled[[0, 1 + NODULE]], [2 + np.sqrt(2), 2])


def test_rejects_are_grouped_by_kind(dataset: str) -> None:
    reasons = census.rejects_by_reason(open_dataset(dataset))
    assert reasons[0] == ("x_min # >= x_max #", 2, "train.csv: x_min 9 >= x_max 4")
    assert [count for _, count, _ in reasons] == [2, 1]
