import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.data.real_data import competition_rows
from tests.reports.conftest import CARDIOMEGALY, NODULE
from vbd import storage
from vbd.config import PrepareConfig
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES
from vbd.records import Truth
from vbd.reports import census
from vbd.reports.census import Census, counting_order, read_census


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


@pytest.mark.parametrize(
    ("size", "nodule", "everything"),
    # The nodule is 12 x 8 pixels of 256 x 128: 6 x 8 at 128 px, 8 x 11 at 171 px, 12 x 16 at 256 px.
    [(128, 0, 2 / 3), (170, 0, 2 / 3), (171, 1, 1), (256, 1, 1)],
)
def test_what_survives_at_a_size(dataset: str, size: int, nodule: float, everything: float) -> None:
    share = census.visible_share(census.all_boxes(read_census(open_dataset(dataset))), size)
    assert share[[NODULE, -1]].tolist() == pytest.approx([nodule, everything])
    assert np.isnan(share[0])


def test_a_letterboxed_image_shrinks_by_its_longer_side(dataset: str) -> None:
    found = read_census(open_dataset(dataset))
    options = dataclasses.replace(found.dataset.options, resize="letterbox")
    boxes = census.all_boxes(dataclasses.replace(found, dataset=dataclasses.replace(found.dataset, options=options)))
    np.testing.assert_allclose(boxes.sides[boxes.labels == NODULE], [[12 / 256, 8 / 256]], rtol=1e-5)
    assert census.visible_share(boxes, 255)[NODULE] == 0
    assert census.visible_share(boxes, 256)[NODULE] == 1


def test_position_maps_cover_the_boxes(dataset: str) -> None:
    maps = census.position_maps(census.all_boxes(read_census(open_dataset(dataset))), cells=16)
    rows, columns = np.nonzero(maps[CARDIOMEGALY] == 1)
    assert (rows.min(), rows.max() + 1) == (2, 13)  # 20 / 128 and 100 / 128 of 16 cells
    assert (columns.min(), columns.max() + 1) == (2, 13)  # 40 / 256 and 200 / 256
    assert maps[0].sum() == 0


def test_what_each_reader_read_and_drew(dataset: str) -> None:
    found = read_census(open_dataset(dataset))
    counts = census.reader_counts(found)
    assert [(c.rad_id, c.images, c.abnormal, c.drew, c.boxes) for c in counts] == [
        ("R1", 4, 2, 2, 3),
        ("R2", 4, 2, 2, 2),
        ("R3", 4, 2, 1, 1),
    ]
    assert [c.per_class[[CARDIOMEGALY, NODULE]].tolist() for c in counts] == [[2, 1], [2, 0], [1, 0]]
    assert census.images_by_votes(found) == {(0, 3): 2, (2, 3): 1, (3, 3): 1}
    assert census.drawn_per_class(found)[[CARDIOMEGALY, NODULE]].tolist() == [5, 1]


def test_readers_count_as_people_do() -> None:
    assert sorted(["R10", "R9", "x", "R8", "R10b"], key=counting_order) == ["R8", "R9", "R10", "R10b", "x"]


def test_the_readers_of_an_image_do_not_depend_on_the_order_of_rows(dataset: str) -> None:
    found = read_census(open_dataset(dataset))
    names = {"R1": "R10", "R2": "R9", "R3": "R8"}
    renamed = found.readers.assign(rad_id=found.readers["rad_id"].map(names))
    shuffled = renamed.sample(frac=1, random_state=3)
    assert dataclasses.replace(found, readers=shuffled).readers_of("a") == ["R8", "R9", "R10"]
    teams = [
        [(team.rad_ids, team.per_fold.tolist(), team.abnormal) for team in census.team_counts(one)]
        for one in (dataclasses.replace(found, readers=renamed), dataclasses.replace(found, readers=shuffled))
    ]
    assert teams[0] == teams[1] == [(("R8", "R9", "R10"), [2, 2], 2)]


def test_teams_are_counted_by_fold(dataset: str) -> None:
    found = read_census(open_dataset(dataset))
    without_r3_on_b = found.readers[~((found.readers["image_id"] == "b") & (found.readers["rad_id"] == "R3"))]
    teams = census.team_counts(dataclasses.replace(found, readers=without_r3_on_b))
    assert [(team.rad_ids, team.per_fold.tolist(), team.abnormal) for team in teams] == [
        (("R1", "R2", "R3"), [2, 1], 1),
        (("R1", "R2"), [0, 1], 1),
    ]


def test_folds_are_counted(dataset: str) -> None:
    table = census.fold_table(read_census(open_dataset(dataset)))
    assert table[:, :2].tolist() == [[2, 1], [2, 1]]
    assert table[:, 2 + CARDIOMEGALY].tolist() == [1, 1]
    assert table[:, 2 + NODULE].tolist() == [1, 0]


def test_images_that_look_alike_are_grouped(dataset: str) -> None:
    path = f"{dataset}/annotations/folds.csv"
    storage.write_bytes(path, b"image_id,fold,group\na,0,p\nb,1,q\nc,0,p\nd,1,\nrefused,0,q\n")
    found = read_census(open_dataset(dataset))
    assert census.similar_images(found) == [[0, 2]]
    storage.write_bytes(path, b"image_id,fold\na,0\n")
    with pytest.raises(InputError, match=r"folds\.csv: no column 'group'"):
        read_census(open_dataset(dataset))
    Path(path).unlink()
    assert census.similar_images(read_census(open_dataset(dataset))) == []


def test_sampling_repeats_rare_classes(dataset: str) -> None:
    found = read_census(open_dataset(dataset))
    assert census.sampled_counts(found, threshold=0)[[0, 1 + CARDIOMEGALY, 1 + NODULE]].tolist() == [2, 2, 1]
    # The nodule is on half of the two abnormal images: sqrt(2 / 0.5) = 2 times, and once more sqrt(2 / 1).
    sampled = census.sampled_counts(found, threshold=2)
    np.testing.assert_allclose(sampled[[0, 1 + NODULE]], [2 + np.sqrt(2), 2])
    own = census.class_factors(found, threshold=2)
    np.testing.assert_allclose(own[[CARDIOMEGALY, NODULE, 0]], [np.sqrt(2), 2, 1])


@pytest.mark.parametrize(
    ("threshold", "longer", "factors"),
    [
        (0.1, 1.06, {12: 2.14, 1: 1.54}),
        (0.2, 1.21, {12: 3.03, 1: 2.17, 4: 1.58, 5: 1.51, 2: 1.39}),
    ],
)
def test_repeat_factors_of_the_competition(threshold: float, longer: float, factors: dict[int, float]) -> None:
    """On the competition's own annotations; the wanted numbers were worked out apart from this code."""
    rows = competition_rows()
    findings = rows[rows["label"] < 14].groupby("image_id")["label"].agg(lambda labels: sorted(set(labels)))
    options = PrepareConfig()
    dataset = PreparedDataset("", CLASS_NAMES, options, "", synthetic=False, counts={}, shards=())
    truths = [Truth(str(name), labels=np.array(labels)) for name, labels in findings.items()]
    empty = pd.DataFrame()
    competition = Census(dataset, truths, np.zeros(len(truths), np.int64), {}, empty, empty, {})
    sampled = census.sampled_counts(competition, threshold=threshold)
    assert len(truths) == 4394
    assert sampled[0] / len(truths) == pytest.approx(longer, abs=0.005)
    own = census.class_factors(competition, threshold=threshold)
    assert {label: own[label] for label in factors} == pytest.approx(factors, abs=0.005)


def test_rejects_are_grouped_by_kind(dataset: str) -> None:
    reasons = census.rejects_by_reason(open_dataset(dataset))
    assert reasons[0] == ("x_min # >= x_max #", 2, "train.csv:7: x_min 9 >= x_max 4")
    assert [count for _, count, _ in reasons] == [2, 1]
