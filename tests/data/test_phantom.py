import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from vbd.data.images.prepare import read_gray
from vbd.data.phantom.files import encode_film
from vbd.data.phantom.findings import draw_film
from vbd.data.phantom.write import write_phantom
from vbd.data.sources.read import read_source
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES, NO_FINDING


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def rows(path):
    with open(path) as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "data"
    counts = write_phantom(folder, images=40, test_images=10, image_format="dicom", size=96, abnormal_share=0.5, seed=3)
    return folder, counts


def test_layout_of_the_competition(phantom):
    folder, counts = phantom
    train = rows(folder / "train.csv")
    assert list(train[0]) == ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]
    assert {path.stem for path in (folder / "train").iterdir()} == {row["image_id"] for row in train}
    assert all(len(row["image_id"]) == 32 for row in train)
    listed = rows(folder / "sample_submission.csv")
    assert {row["image_id"] for row in listed} == {path.stem for path in (folder / "test").iterdir()}
    assert {row["PredictionString"] for row in listed} == {"14 1 0 0 1 1"}
    assert {row["image_id"] for row in rows(folder / "test_truth.csv")} == {row["image_id"] for row in listed}
    assert (counts.images, counts.test_images, counts.abnormal) == (40, 10, 20)
    marker = json.loads((folder / "SYNTHETIC.json").read_text())
    assert marker["synthetic"] is True
    assert marker["generator"] == "vbd.data.phantom"  # in every phantom there is: another name would draw it anew


def test_every_image_has_three_readers_who_agree_on_normal(phantom):
    readers, normal = defaultdict(set), defaultdict(set)
    for row in rows(phantom[0] / "train.csv"):
        readers[row["image_id"]].add(row["rad_id"])
        normal[row["image_id"]].add(int(row["class_id"]) == NO_FINDING)
        assert row["class_name"] == (*CLASS_NAMES, "No finding")[int(row["class_id"])]
    assert {len(found) for found in readers.values()} == {3}
    assert {len(kinds) for kinds in normal.values()} == {1}


def test_source_reads_it_without_a_reject_and_boxes_fit(phantom):
    source = read_source(str(phantom[0]))
    assert source.rejects == []
    assert source.synthetic
    assert source.truth is not None
    assert len(source.readings) == phantom[1].readings
    reach = source.readings.groupby("image_id")[["x_max", "y_max"]].max()
    for image_id, (x_max, y_max) in zip(reach.index, reach.to_numpy(), strict=True):
        path = phantom[0] / "train" / f"{image_id}.dicom"
        height, width = read_gray(path.read_bytes(), name=path.name).shape
        assert x_max <= width
        assert y_max <= height


def test_same_bytes_for_any_number_of_processes(tmp_path):
    options = {"images": 7, "test_images": 2, "image_format": "dicom", "size": 64, "abnormal_share": 0.6, "seed": 1}
    seen: list[tuple[int, int]] = []
    write_phantom(tmp_path / "one", **options, progress=lambda done, total: seen.append((done, total)))
    write_phantom(tmp_path / "two", **options, processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert seen == [(k, 9) for k in range(1, 10)]


def test_an_image_depends_on_seed_and_index_alone(tmp_path):
    for name, images, seed in (("few", 2, 1), ("more", 4, 1), ("other", 2, 2)):
        write_phantom(tmp_path / name, images=images, test_images=1, image_format="png", size=64, seed=seed)
    few, more, other = (contents(tmp_path / name) for name in ("few", "more", "other"))
    pictures = [name for name in few if name.endswith(".png")]
    assert all(few[name] == more[name] for name in pictures)
    assert not set(pictures) & set(other)


def test_writing_again_does_nothing_and_other_options_replace(tmp_path):
    options = {"test_images": 1, "image_format": "png", "size": 64, "abnormal_share": 1.0}
    first = write_phantom(tmp_path, images=3, **options)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_phantom(tmp_path, images=3, **options) == first
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_phantom(tmp_path, images=2, **options)
    assert len(list((tmp_path / "train").iterdir())) == 2
    assert read_source(str(tmp_path)).rejects == []


def test_films_of_somebody_else_stay_and_links_are_refused(tmp_path):
    options = {"test_images": 1, "image_format": "png", "size": 64}
    write_phantom(tmp_path / "a", images=2, **options)
    (tmp_path / "a" / "train" / "mine.png").write_bytes(b"mine")
    write_phantom(tmp_path / "a", images=1, **options)
    assert len(list((tmp_path / "a" / "train").iterdir())) == 2
    assert (tmp_path / "a" / "train" / "mine.png").read_bytes() == b"mine"
    (tmp_path / "a" / "train").rename(tmp_path / "elsewhere")
    (tmp_path / "a" / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"a/train: a link to another place, which would be written over; remove it"):
        write_phantom(tmp_path / "a", images=2, **options)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


def test_interrupted_writing_is_begun_anew(tmp_path):
    options = {"images": 3, "test_images": 1, "image_format": "png", "size": 64}

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "a", **options, progress=stop)
    assert not (tmp_path / "a" / "train.csv").exists()
    write_phantom(tmp_path / "a", **options)
    write_phantom(tmp_path / "b", **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_phantom(tmp_path, images=1, test_images=0)


@pytest.mark.parametrize("wrong", [{"images": 0}, {"size": 8}, {"abnormal_share": 2.0}, {"image_format": "gif"}])
def test_bad_options_are_named(tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        write_phantom(tmp_path / "x", **{"images": 1, "test_images": 0, **wrong})


def test_only_normal_images_and_no_test_part(tmp_path):
    counts = write_phantom(tmp_path, images=2, test_images=0, image_format="png", size=64, abnormal_share=0)
    assert (counts.abnormal, counts.readings) == (0, 0)
    source = read_source(str(tmp_path))
    assert (len(source.images), len(source.readings), len(source.readers)) == (2, 0, 6)
    assert source.sample_submission == []


@pytest.mark.parametrize("label", range(14))
def test_each_finding_changes_the_film_inside_its_box_most(label):
    hw, changes = (256, 220), []
    for seed in range(3):
        healthy, _ = draw_film(np.random.default_rng(seed), hw, [])
        film, boxes = draw_film(np.random.default_rng(seed), hw, [label])
        x_min, y_min, x_max, y_max = boxes[0].round().astype(int)
        inside = np.zeros(hw, bool)
        inside[y_min:y_max, x_min:x_max] = True
        assert inside.any()
        if label not in (0, 3):  # heart and aorta are part of the anatomy, which is then drawn anew
            difference = np.abs(film - healthy)
            assert difference[inside].mean() > 10 * difference[~inside].mean()
            changes.append(difference[inside].mean())
    assert label in (0, 3) or np.mean(changes) > 0.02


def test_dicom_and_png_show_the_same_film():
    film, _ = draw_film(np.random.default_rng(0), (96, 80), [8])
    film = film.clip(0, 1)
    png = read_gray(encode_film(np.random.default_rng(0), film, "png", name="a"), name="a") / 255
    headers = Counter()
    for seed in range(25):
        data = encode_film(np.random.default_rng(seed), film, "dicom", name="a")
        image = read_gray(data, name="a")
        shown = (image - image.min()) / np.ptp(image)
        # A narrow window clips a little at both ends.
        assert np.corrcoef(shown.ravel(), png.ravel())[0, 1] > 0.995
        headers[b"MONOCHROME1" in data] += 1
        assert b"SYNTHETIC^PHANTOM" in data
    assert set(headers) == {True, False}
