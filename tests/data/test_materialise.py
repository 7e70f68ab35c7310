import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO

from tests.data.folders import hashes_of
from vbd.augment.policies import apply_transform, draws_of
from vbd.config import PrepareConfig
from vbd.data.images.prepare import decode_image
from vbd.data.prepare import augmented as module
from vbd.data.prepare.augmented import Augmentation, materialise, prepare_and_materialise
from vbd.data.prepared import open_dataset, read_rows
from vbd.data.sources.read import read_source
from vbd.errors import InputError
from vbd.labels import RARE_LABELS


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs the tasks in this process, and lists the parts that were made."""
    made: list[str] = []

    def run(tasks, worker, *, title, total, **options):
        for task in tasks:
            worker(task, **options)
            made.append(task["part"])

    monkeypatch.setattr(module, "run_tasks", run)
    return made


@pytest.fixture(scope="module")
def policy_c(prepared: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmented") / "C"
    print(materialise(open_dataset(prepared), str(folder), Augmentation("C", None, 3)))
    return folder


def provenance(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "provenance.csv").open()))


def labels_of(prepared: str) -> dict[str, list[int]]:
    rows = read_rows(open_dataset(prepared), ["image_id", "fold", "labels"]).to_pylist()
    return {row["image_id"]: row["labels"] for row in rows if row["fold"] >= 0}


@pytest.mark.parametrize(
    ("policy", "times"),
    [
        ("A", lambda labels: 1),
        ("B", lambda labels: 4),
        ("D", lambda labels: 7 if set(labels) & set(RARE_LABELS) else 1),
    ],
)
def test_each_policy_has_the_multiplicity_of_the_study(
    policy, times, prepared: str, tmp_path: Path, in_process: list[str]
) -> None:
    summary = materialise(open_dataset(prepared), str(tmp_path), Augmentation(policy, None, 0))
    labels = labels_of(prepared)
    counts = Counter(row["source"] for row in provenance(tmp_path))
    assert counts == {image_id: times(held) if held else 1 for image_id, held in labels.items()}
    assert f"policy {policy}, {sum(counts[i] for i, held in labels.items() if held)} pictures of" in summary


def test_policy_c_holds_each_abnormal_image_under_each_of_its_transforms(policy_c: Path, prepared: str) -> None:
    labels = labels_of(prepared)
    made: dict[str, list[str]] = {}
    for row in provenance(policy_c):
        made.setdefault(row["source"], []).append(row["transform"])
    assert all(tuple(made[i]) == (draws_of("C", held) if held else ("original",)) for i, held in labels.items())
    assert len(made) == 60


def test_coco_and_images_and_provenance_are_the_same_pictures(policy_c: Path, prepared: str) -> None:
    whole = COCO(str(policy_c / "annotations" / "instances_all.json"))
    rows = {row["file_name"]: row for row in provenance(policy_c)}
    assert sorted(rows) == sorted(path.name for path in (policy_c / "images").iterdir())
    assert {image["file_name"] for image in whole.imgs.values()} == set(rows)
    for image in whole.imgs.values():
        row = rows[image["file_name"]]
        assert len(whole.imgToAnns[image["id"]]) == int(row["boxes_out"]) <= int(row["boxes_in"])
        assert (image["source"], image["transform"], str(image["fold"])) == (
            row["source"],
            row["transform"],
            row["fold"],
        )
    parts = [COCO(str(policy_c / "annotations" / f"instances_fold{k}.json")) for k in range(3)]
    assert sorted(i for part in parts for i in part.imgs) == sorted(whole.imgs)
    told = json.loads((policy_c / "augmented.json").read_text())
    assert told["synthetic"] is True
    assert told["counts"]["boxes"] == len(whole.anns)
    assert told["counts"]["boxes_that_vanished"] == sum(int(r["boxes_in"]) - int(r["boxes_out"]) for r in rows.values())


def test_originals_are_the_very_files_and_are_there_to_validate_on(policy_c: Path, prepared: str) -> None:
    files = {row["file_name"] for row in provenance(policy_c) if row["transform"] == "original"}
    assert len(files) == 60
    for name in files:
        assert (policy_c / "images" / name).read_bytes() == Path(prepared, "images", name).read_bytes()
    folds = [COCO(str(policy_c / "annotations" / f"originals_fold{k}.json")) for k in range(3)]
    assert {image["file_name"] for part in folds for image in part.imgs.values()} == files


def test_a_picture_can_be_drawn_again_from_its_provenance(policy_c: Path, prepared: str) -> None:
    images = module._Images(prepared)
    rows = [row for row in provenance(policy_c) if row["transform"] in ("cutmix", "mosaic", "clahe", "zoom")]
    assert len(rows) > 40
    for row in rows[::5]:
        partners = iter(row["partners"].split())
        rng = np.random.default_rng(int(row["seed"]))

        def draw_partner(generator: np.random.Generator, partners=partners, fold=int(row["fold"])):
            drawn = images.partner(generator, fold)
            assert drawn["image_id"] == next(partners)
            return drawn

        again = apply_transform(
            row["transform"], images.row(row["source"]), strength=1.0, rng=rng, draw_partner=draw_partner
        )
        assert np.array_equal(decode_image((policy_c / "images" / row["file_name"]).read_bytes()), again["image"])


def test_partners_come_from_the_same_fold(policy_c: Path, prepared: str) -> None:
    rows = read_rows(open_dataset(prepared), ["image_id", "fold"]).to_pylist()
    fold_of = {row["image_id"]: row["fold"] for row in rows}
    mixed = [row for row in provenance(policy_c) if row["partners"]]
    assert {len(row["partners"].split()) for row in mixed} == {1, 3}
    assert all({fold_of[partner] for partner in row["partners"].split()} == {int(row["fold"])} for row in mixed)


def test_the_labels_move_with_the_pixels(tmp_path: Path, in_process: list[str], ray_session: None) -> None:
    """Bright rectangles, one in each film: every box of every picture must lie around bright pixels, and nothing else."""
    raw, size = tmp_path / "raw", 128
    (raw / "train").mkdir(parents=True)
    rng, lines = np.random.default_rng(0), ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for number in range(12):
        x, y, w, h = *rng.integers(10, 70, 2), *rng.integers(16, 48, 2)
        image = np.full((size, size), 20, np.uint8)
        image[y : y + h, x : x + w] = 220
        cv2.imwrite(str(raw / "train" / f"r{number}.png"), image)
        lines.append(f"r{number},Cardiomegaly,3,R1,{x},{y},{x + w},{y + h}")
    (raw / "train.csv").write_text("\n".join(lines) + "\n")
    config = PrepareConfig(image_size=size, num_folds=2, duplicates="exact")
    prepare_and_materialise(str(raw), str(tmp_path / "out"), config, policy="C")
    document = COCO(str(tmp_path / "out" / "annotations" / "instances_all.json"))
    seen = Counter(image["transform"] for image in document.imgs.values())
    assert seen == dict.fromkeys(draws_of("C", [3]), 12)
    for image in document.imgs.values():
        pixels = decode_image((tmp_path / "out" / "images" / image["file_name"]).read_bytes())
        bright = pixels > (120 if image["transform"] != "clahe" else 60)
        covered = np.zeros_like(bright)
        for annotation in document.imgToAnns[image["id"]]:
            x, y, w, h = (round(value) for value in annotation["bbox"])
            covered[y : y + h, x : x + w] = True
            if image["transform"] in ("cutmix", "mosaic"):
                continue  # a patch may lie upon a box
            assert bright[y + 1 : y + h - 1, x + 1 : x + w - 1].mean() > 0.95, image
        # What is bright outside of all boxes was cut to less than a quarter, and is small.
        assert (bright & ~cv2.dilate(covered.astype(np.uint8), np.ones((5, 5))).astype(bool)).mean() < 0.02, image


def test_the_bytes_do_not_depend_on_the_workers(
    policy_c: Path, prepared: str, tmp_path: Path, in_process: list[str]
) -> None:
    materialise(open_dataset(prepared), str(tmp_path), Augmentation("C", None, 3))
    assert len(in_process) == 2
    assert hashes_of(tmp_path) == hashes_of(policy_c)


def test_another_seed_gives_other_pictures(
    policy_c: Path, prepared: str, tmp_path: Path, in_process: list[str]
) -> None:
    materialise(open_dataset(prepared), str(tmp_path), Augmentation("C", None, 4))
    mine, other = hashes_of(tmp_path), hashes_of(policy_c)
    assert any(mine[name] != other[name] for name in mine if "mosaic" in name)


def test_only_what_is_missing_is_made_again(
    policy_c: Path, prepared: str, tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(policy_c, tmp_path / "copy"))
    victim = sorted((copy / "images").glob("*mosaic*"))[0]
    victim.write_bytes(b"cut")
    (copy / "augmented.json").unlink()
    stranger = copy / "images" / "stranger.png"
    stranger.write_bytes(b"theirs")
    materialise(open_dataset(prepared), str(copy), Augmentation("C", None, 3))
    assert len(in_process) == 1
    assert f"{copy}/images: left alone, not known to vbd: stranger.png\n" in capsys.readouterr().out
    assert stranger.read_bytes() == b"theirs"
    stranger.unlink()
    assert hashes_of(copy) == hashes_of(policy_c)


def test_another_policy_is_not_written_over_unasked(
    policy_c: Path, prepared: str, tmp_path: Path, in_process: list[str]
) -> None:
    copy = Path(shutil.copytree(policy_c, tmp_path / "copy"))
    with pytest.raises(InputError, match="holds an augmented dataset of policy 'C', not 'B'; choose another --output"):
        materialise(open_dataset(prepared), str(copy), Augmentation("B", None, 3))
    materialise(open_dataset(prepared), str(copy), Augmentation("B", None, 3), overwrite=True)
    assert not list((copy / "images").glob("*mosaic*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(InputError, match="holds other files"):
        materialise(open_dataset(prepared), str(tmp_path / "mine"), Augmentation("B", None, 3))


@pytest.mark.parametrize("policy", ["B", "E"])
def test_copies_are_drawn_from_the_policy(policy, prepared: str, tmp_path: Path, in_process: list[str]) -> None:
    materialise(open_dataset(prepared), str(tmp_path), Augmentation(policy, 3, 0))
    labels = labels_of(prepared)
    rows = provenance(tmp_path)
    counts = Counter(row["source"] for row in rows)
    assert counts == {image_id: 3 if held else 1 for image_id, held in labels.items()}
    allowed = {"original", "competitors"} if policy == "E" else set(draws_of("B", [3]))
    assert {row["transform"] for row in rows if row["copy"] != "0"} <= allowed


def test_the_contact_sheet_shows_the_boxes(policy_c: Path) -> None:
    sheet = cv2.imread(str(policy_c / "contact_sheet.png"))
    assert sheet.shape[1] > 7 * 320
    assert sheet.shape[0] > 4 * 320
    # Coloured lines upon grey films.
    assert (np.ptp(sheet.astype(int), axis=2) > 60).sum() > 2_000


def test_raw_data_are_prepared_on_the_way(phantom: Path, ray_session: None, tmp_path: Path) -> None:
    config = PrepareConfig(image_size=64, num_folds=3)
    summary = prepare_and_materialise(str(phantom), str(tmp_path / "out"), config, policy="B")
    assert "168 pictures of 42 abnormal images, 18 normal images" in summary
    assert open_dataset(str(tmp_path / "out" / "prepared")).counts["train_images"] == 60
    assert len(read_source(str(tmp_path / "out")).images) == 186
    with pytest.raises(InputError, match="an augmented dataset, made to be handed on"):
        open_dataset(str(tmp_path / "out"))


def test_mended_raw_data_are_followed(phantom: Path, tmp_path: Path, ray_session: None) -> None:
    raw, config = Path(shutil.copytree(phantom, tmp_path / "raw")), PrepareConfig(image_size=64, num_folds=3)
    first = prepare_and_materialise(str(raw), str(tmp_path / "out"), config, policy="A")
    table = pd.read_csv(raw / "train.csv")
    normal = table[table["class_id"] == 14]["image_id"].iloc[0]
    table[table["image_id"] != normal].to_csv(raw / "train.csv", index=False)
    (raw / "train" / f"{normal}.dicom").unlink()
    second = prepare_and_materialise(str(raw), str(tmp_path / "out"), config, policy="A")
    assert "18 normal images" in first
    assert "17 normal images" in second
    assert not (tmp_path / "out" / "images" / f"{normal}.png").exists()


def test_an_augmented_dataset_is_not_augmented_again(policy_c: Path, ray_session: None, tmp_path: Path) -> None:
    config = PrepareConfig(image_size=128, num_folds=3, duplicates="exact")
    with pytest.raises(InputError, match="is named like an augmented picture"):
        prepare_and_materialise(str(policy_c), str(tmp_path / "out"), config, policy="B")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"copies": 3}, "--copies 3: only an augmented dataset has copies; add --policy"),
        ({"policy": "B", "copies": 0}, "--copies 0: want 1 to 1000"),
        ({"policy": "A", "copies": 2}, "--copies 2: policy A has nothing but the image itself"),
    ],
)
def test_options_that_make_no_sense_are_told(options, told: str, prepared: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        prepare_and_materialise(prepared, str(tmp_path / "out"), PrepareConfig(), **options)


def test_a_prepared_dataset_is_not_prepared_otherwise(prepared: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--image-size 256: .* is prepared already, with 128"):
        prepare_and_materialise(prepared, str(tmp_path / "out"), PrepareConfig(image_size=256), policy="B")


@pytest.mark.parametrize(("policy", "pictures"), [("A", 4_394), ("B", 17_576), ("C", 30_758), ("D", 5_990)])
def test_the_real_labels_give_the_counts_of_the_study(policy, pictures: int) -> None:
    from tests.data.real_data import competition_csv

    table = pd.read_csv(competition_csv())
    held = table[table["class_id"] < 14].groupby("image_id")["class_id"].agg(set)
    augmentation = Augmentation(policy, None, 0)
    assert sum(len(augmentation.transforms(sorted(labels))) for labels in held) == pictures
