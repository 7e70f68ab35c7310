import json
import shutil
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO

from vbd.boxes import to_original
from vbd.config import PrepareConfig
from vbd.data.images.prepare import decode_image
from vbd.data.prepare.dataset import prepare
from vbd.data.prepared import image_sizes, iter_shards, open_dataset, read_rows, read_truths, sample_submission_ids
from vbd.errors import InputError

CONFIG = PrepareConfig(image_size=64, num_folds=3, shard_size=16)


def test_every_image_has_its_row_its_file_and_a_fold(prepared: str) -> None:
    rows = [row for shard in iter_shards(open_dataset(prepared), ["image_id", "fold"]) for row in shard.to_pylist()]
    folds = [row["fold"] for row in rows]
    assert len(rows) == 72
    assert folds.count(-1) == 12
    assert {folds.count(fold) for fold in range(3)} == {20}
    for row in rows:
        assert decode_image(row["image"]).shape == (128, 128)
        assert Path(prepared, "images", f"{row['image_id']}.png").read_bytes() == row["image"]


def test_the_shards_of_the_test_part_hold_no_labels(prepared: str) -> None:
    dataset = open_dataset(prepared)
    rows = read_rows(dataset, ["fold", "labels", "boxes"]).to_pylist()
    assert all(not row["labels"] and not row["boxes"] for row in rows if row["fold"] == -1)
    assert sum(len(truth.boxes) for truth in read_truths(dataset, "test")) > 0


def test_pycocotools_loads_every_part(prepared: str) -> None:
    whole = COCO(f"{prepared}/annotations/instances_all.json")
    parts = [COCO(f"{prepared}/annotations/instances_fold{fold}.json") for fold in range(3)]
    assert len(whole.imgs) == 60
    assert sorted(i for part in parts for i in part.imgs) == sorted(whole.imgs)
    assert sum(len(part.anns) for part in parts) == len(whole.anns) > 60
    assert {a["category_id"] for a in whole.anns.values()} <= set(range(1, 15))


def test_boxes_of_shards_and_truth_are_the_same_boxes(prepared: str) -> None:
    dataset = open_dataset(prepared)
    rows = {r["image_id"]: r for r in read_rows(dataset, ["image_id", "boxes", "labels", "original_hw"]).to_pylist()}
    for truth in read_truths(dataset, "train"):
        row = rows[truth.image_id]
        assert row["labels"] == truth.labels.tolist()
        hw = (row["original_hw"][0], row["original_hw"][1])
        back = to_original(np.asarray(row["boxes"]).reshape(-1, 4), hw, 128, "stretch")
        assert back == pytest.approx(truth.boxes, abs=0.01)


def test_fused_boxes_lie_where_the_readers_drew(prepared: str, phantom: Path) -> None:
    drawn = pd.read_csv(phantom / "train.csv").query("class_id < 14")
    for truth in read_truths(open_dataset(prepared), "train"):
        mine = drawn[drawn["image_id"] == truth.image_id]
        assert set(truth.labels) == set(mine["class_id"])
        assert (truth.readers >= 1).all()
        assert (truth.readers <= 3).all()
        assert len(truth.boxes) <= len(mine)


def test_the_order_of_the_submission_is_kept(prepared: str, phantom: Path) -> None:
    wanted = pd.read_csv(phantom / "sample_submission.csv")["image_id"].tolist()
    assert sample_submission_ids(open_dataset(prepared)) == wanted
    assert set(image_sizes(open_dataset(prepared), "test")) == set(wanted)


def test_another_dataset_is_not_overwritten_unasked(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    prepare(str(phantom), str(tmp_path / "out"), CONFIG)
    other = PrepareConfig(image_size=32, num_folds=3, shard_size=16)
    with pytest.raises(InputError, match="--overwrite"):
        prepare(str(phantom), str(tmp_path / "out"), other)
    assert prepare(str(phantom), str(tmp_path / "out"), other, overwrite=True).options.image_size == 32


def test_what_cannot_be_used_is_told_and_counted(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(phantom, raw)
    table = pd.read_csv(raw / "train.csv")
    broken, empty = table["image_id"].unique()[:2]
    data = (raw / "train" / f"{broken}.dicom").read_bytes()
    (raw / "train" / f"{broken}.dicom").write_bytes(data[: len(data) // 2])
    (raw / "train" / f"{empty}.dicom").write_bytes(b"")
    outside = table[(table["class_id"] < 14) & ~table["image_id"].isin([broken, empty])]["image_id"].iloc[0]
    far = {"image_id": outside, "class_name": "ILD", "class_id": 5, "rad_id": "R1"}
    far |= {"x_min": 90000, "y_min": 90000, "x_max": 90100, "y_max": 90100}
    pd.concat([table, pd.DataFrame([far])]).to_csv(raw / "train.csv", index=False)

    dataset = prepare(str(raw), str(tmp_path / "out"), CONFIG)
    rejects = pd.read_csv(tmp_path / "out" / "rejects.csv")
    # Three films and boxes, and the rows of the film that is empty.
    assert dataset.counts["rejects"] == len(rejects) == 3 + (table["image_id"] == empty).sum()
    assert dataset.counts["train_images"] == 58
    assert rejects["file"].str.contains(broken).any()
    assert rejects["file"].str.contains(empty).any()
    assert rejects["reason"].str.contains("reaches beyond an image").sum() == 1
    assert outside in {truth.image_id for truth in read_truths(dataset, "train")}


def test_a_dataset_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(InputError, match="schema 99"):
        open_dataset(str(tmp_path))


def test_an_unknown_fold_is_refused(prepared: str) -> None:
    with pytest.raises(InputError, match="no fold 7; it has folds 0 to 2"):
        read_truths(open_dataset(prepared), 7)


@pytest.mark.parametrize("place", [".", "below", ".."])
def test_the_raw_data_are_never_written_to(place: str, phantom: Path, ray_session: None) -> None:
    before = sorted(path.name for path in phantom.iterdir())
    for overwrite in (False, True):
        with pytest.raises(InputError, match="same place as the raw data"):
            prepare(str(phantom), str(phantom / place), CONFIG, overwrite=overwrite)
    assert sorted(path.name for path in phantom.iterdir()) == before


def test_a_folder_of_somebody_else_is_left_alone(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        prepare(str(phantom), str(tmp_path), CONFIG)
    with pytest.raises(InputError, match="holds other files"):
        prepare(str(phantom), str(tmp_path), CONFIG, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_dataset_without_any_finding_left_is_no_dataset(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(phantom, raw)
    for film in (raw / "train").iterdir():
        film.write_bytes(b"junk")
    with pytest.raises(InputError, match="no image with a finding is left"):
        prepare(str(raw), str(tmp_path / "out"), CONFIG)
    assert len(pd.read_csv(tmp_path / "out" / "rejects.csv")) == 60
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_test_image_that_nobody_asks_for_is_told(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(phantom, raw)
    film = next((raw / "test").iterdir())
    shutil.copy(film, raw / "test" / f"extra{film.suffix}")
    dataset = prepare(str(raw), str(tmp_path / "out"), CONFIG)
    assert set(image_sizes(dataset, "test")) == set(sample_submission_ids(dataset))
    assert "not listed in sample_submission.csv" in (tmp_path / "out" / "rejects.csv").read_text()


@pytest.fixture
def with_faults(phantom: Path, tmp_path: Path) -> Path:
    """Raw data with a broken film and a row that cannot be right."""
    raw = tmp_path / "raw"
    shutil.copytree(phantom, raw)
    film = sorted((raw / "train").iterdir())[0]
    film.write_bytes(film.read_bytes()[:2000])
    table = pd.read_csv(raw / "train.csv")
    wrong = table[table["class_id"] < 14].iloc[[-1]].assign(x_min=50, x_max=40)
    pd.concat([table, wrong]).to_csv(raw / "train.csv", index=False)
    return raw


def test_refusals_are_told_by_reason(
    with_faults: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(str(with_faults), str(tmp_path / "out"), CONFIG, max_rejects=2)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("refused")]
    rows = len(pd.read_csv(with_faults / "train.csv")) + 1
    assert len(told) == 2
    assert any(line.startswith("refused 1 x") and f"train.csv:{rows}: x_min" in line for line in told)


def test_what_left_too_few_images_for_the_folds_is_listed(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(phantom, raw)
    films = sorted((raw / "train").iterdir())
    for film in films[2:]:
        film.write_bytes(film.read_bytes()[:2000])
    told = (
        rf"--folds 3: too many or too few for 2 training images; want 2 to 2; 58 files and rows were refused, "
        rf"see {tmp_path}/out/rejects\.csv"
    )
    with pytest.raises(InputError, match=told):
        prepare(str(raw), str(tmp_path / "out"), CONFIG)
    rejects = pd.read_csv(tmp_path / "out" / "rejects.csv")
    assert sorted(rejects["file"]) == sorted(map(str, films[2:]))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_too_many_refusals_are_an_error(with_faults: Path, ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"rejects\.csv: 2 files and rows refused, more than --max-rejects 1; most often"
    ):
        prepare(str(with_faults), str(tmp_path / "out"), CONFIG, max_rejects=1)
    assert len(pd.read_csv(tmp_path / "out" / "rejects.csv")) == 2
    assert not (tmp_path / "out" / "dataset.json").exists()
    prepare(str(with_faults), str(tmp_path / "out"), CONFIG, max_rejects=2)
    with pytest.raises(InputError, match="more than --max-rejects 1"):  # also of a dataset that is there already
        prepare(str(with_faults), str(tmp_path / "out"), CONFIG, max_rejects=1)


def test_the_layout_can_be_told(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="COCO"):
        prepare(str(phantom), str(tmp_path / "out"), CONFIG, layout="coco")
    assert not (tmp_path / "out").exists()


def test_a_prepared_dataset_can_be_prepared_again(prepared: str, ray_session: None, tmp_path: Path) -> None:
    again = prepare(prepared, str(tmp_path / "out"), CONFIG)
    assert again.counts["train_images"] == 60
    assert again.counts["boxes"] == open_dataset(prepared).counts["boxes"]
    assert again.synthetic


def test_ray_counts_images_and_refusals(with_faults: Path, ray_session: None, tmp_path: Path) -> None:
    time.sleep(3)  # what earlier tests counted has come in
    before = {name: _metric(name) for name in ("prepared", "refused")}
    prepare(str(with_faults), str(tmp_path / "out"), CONFIG)
    deadline = time.monotonic() + 60
    counted = {"prepared": 0.0, "refused": 0.0}
    while counted != {"prepared": 71, "refused": 1} and time.monotonic() < deadline:
        time.sleep(0.5)
        counted = {name: _metric(name) - before[name] for name in before}
    assert counted == {"prepared": 71, "refused": 1}


def _metric(what: str) -> float:
    """The sum over all worker processes of one of Ray's metrics, as Prometheus reads it."""
    import ray

    name = f"ray_vbd_images_{what}_total"

    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


@pytest.mark.parametrize(("image_format", "channels"), [("png16", "grey"), ("jpeg", "grey"), ("png", "composed")])
def test_other_formats_are_trained_on_as_well(
    image_format, channels, phantom: Path, ray_session: None, tmp_path: Path
) -> None:
    from vbd.config import TrainConfig
    from vbd.data.batches.make import training_batches

    config = replace(CONFIG, image_format=image_format, channels=channels)
    dataset = prepare(str(phantom), str(tmp_path / "out"), config)
    training = TrainConfig(image_size=64, batch_size=4, steps=2, policy="C")
    for batch in training_batches(dataset, training, first_step=0, loader_workers=0):
        assert batch.images.shape == (4, 3, 64, 64)
        assert bool((batch.images[:, 0] == batch.images[:, 1]).all()) is (channels == "grey")
    suffix = ".jpg" if image_format == "jpeg" else ".png"
    assert {path.suffix for path in (tmp_path / "out" / "images").iterdir()} == {suffix}
    COCO(str(tmp_path / "out" / "annotations" / "instances_all.json"))


def test_a_full_disk_is_told_before_the_work(
    phantom: Path, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbd.storage import stores

    monkeypatch.setattr(stores.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(InputError, match="MB free, about"):
        prepare(str(phantom), str(tmp_path / "out"), CONFIG)


def test_what_a_worker_cannot_write_is_told_in_one_line(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text("{}")
    name = next((phantom / "train").iterdir()).stem
    (tmp_path / "out" / "images" / f"{name}.png").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written") as caught:
        prepare(str(phantom), str(tmp_path / "out"), CONFIG, overwrite=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_film_that_vanishes_on_the_way_is_told(
    phantom: Path, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbd.data.prepare import dataset as module

    raw = Path(shutil.copytree(phantom, tmp_path / "raw"))
    film = next((raw / "train").iterdir())
    real = module.write_shards
    monkeypatch.setattr(module, "write_shards", lambda *args, **kwargs: (film.unlink(), real(*args, **kwargs)))
    with pytest.raises(InputError, match=f"{film.name}: no such file"):
        prepare(str(raw), str(tmp_path / "out"), CONFIG)


def test_a_half_made_dataset_is_no_source(prepared: str, ray_session: None, tmp_path: Path) -> None:
    half = Path(shutil.copytree(prepared, tmp_path / "half"))
    (half / "dataset.json").unlink()
    with pytest.raises(InputError, match="making this dataset was not finished"):
        prepare(str(half), str(tmp_path / "out"), CONFIG)


def test_the_images_of_a_single_json_file_are_not_written_to(
    prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(prepared, tmp_path / "coco"))
    monkeypatch.chdir(source / "annotations")
    for output in ("out", str(source / "annotations" / "out"), str(source)):
        with pytest.raises(InputError, match="same place as the raw data"):
            prepare("instances_all.json", output, CONFIG)


def test_an_output_that_leads_elsewhere_is_refused(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text("{}")
    (tmp_path / "out" / "images").symlink_to(phantom / "train")
    with pytest.raises(InputError, match="a link to another place"):
        prepare(str(phantom), str(tmp_path / "out"), CONFIG, overwrite=True)


def test_options_that_leave_no_finding_are_told(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--min-readers 9, --readers and --without-readers leave no finding"):
        prepare(str(phantom), str(tmp_path / "out"), replace(CONFIG, min_readers=9))
