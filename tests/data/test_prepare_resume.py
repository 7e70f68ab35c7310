"""The same bytes however the work was cut, stopped, resumed or shared; and nothing is done twice."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.data.folders import hashes_of
from vbd.config import PrepareConfig
from vbd.data.prepare import shards as prepare_shards
from vbd.data.prepare.dataset import prepare
from vbd.data.prepared import open_dataset, read_truths
from vbd.errors import InputError
from vbd.storage.ownership import OWNER

CONFIG = PrepareConfig(image_size=64, num_folds=3, shard_size=16)
# Which raw files a shard was made of, with their times: not part of the dataset itself.
RECEIPTS = "receipts/"


@pytest.fixture(scope="module")
def whole(phantom: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom prepared in one go."""
    folder = tmp_path_factory.mktemp("whole") / "data"
    prepare(str(phantom), str(folder), CONFIG)
    return folder


@pytest.fixture
def raw(phantom: Path, tmp_path: Path) -> Path:
    """A copy of the raw films that a test may spoil; file times are kept."""
    shutil.copytree(phantom, tmp_path / "raw", copy_function=shutil.copy2)
    return tmp_path / "raw"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A finished dataset that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs the tasks of `prepare` in this process, and lists the names of the raw files that were decoded."""
    from vbd.data.images import prepare as images

    names: list[str] = []
    real = images.prepare_image

    def spy(data: bytes, *, name: str, **options):
        names.append(Path(name).stem)
        return real(data, name=name, **options)

    def run(tasks, worker, *, title, total, **options):
        for task in tasks:
            worker(task, **options)

    monkeypatch.setattr(images, "prepare_image", spy)
    monkeypatch.setattr(prepare_shards, "run_tasks", run)
    return names


def without_receipts(folder: Path) -> dict[str, str]:
    return {name: value for name, value in hashes_of(folder).items() if not name.startswith(RECEIPTS)}


@pytest.mark.parametrize("workers", [1, 4])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    workers: int, whole: Path, phantom: Path, tmp_path: Path
) -> None:
    code = (
        f"import ray; ray.init(address='local', num_cpus={workers}, include_dashboard=False, log_to_driver=False,"
        " object_store_memory=100_000_000)\n"
        "from vbd.config import PrepareConfig; from vbd.data.prepare.dataset import prepare\n"
        f"prepare({str(phantom)!r}, {str(tmp_path / 'out')!r}, PrepareConfig(image_size=64, num_folds=3, shard_size=16))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ, timeout=240)
    assert hashes_of(tmp_path / "out") == hashes_of(whole)


def test_the_bytes_do_not_depend_on_the_blocks_of_ray(
    whole: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    plain = ray.data.from_items
    monkeypatch.setattr(ray.data, "from_items", lambda items, **_: plain(items, override_num_blocks=2))
    prepare(str(phantom), str(tmp_path / "out"), CONFIG)
    assert hashes_of(tmp_path / "out") == hashes_of(whole)


def test_another_size_of_shards_gives_the_same_dataset(
    whole: Path, phantom: Path, ray_session: None, tmp_path: Path
) -> None:
    other = prepare(str(phantom), str(tmp_path / "out"), replace(CONFIG, shard_size=7))
    parts = ("images/", "annotations/", "rejects.csv", "sample_submission.csv")
    mine, wanted = hashes_of(tmp_path / "out"), hashes_of(whole)
    assert {k: v for k, v in mine.items() if k.startswith(parts)} == {
        k: v for k, v in wanted.items() if k.startswith(parts)
    }
    assert other.fingerprint == open_dataset(str(whole)).fingerprint


def test_running_again_does_no_work(copy: Path, phantom: Path, decoded: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    prepare(str(phantom), str(copy), CONFIG)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before
    assert decoded == []


@pytest.mark.parametrize(
    "lost",
    [
        ("dataset.json",),
        ("dataset.json", "annotations/instances_all.json"),
        ("annotations/labels.parquet",),
        ("rejects.csv",),
        ("shards/shard-00001.parquet",),
        ("receipts/shard-00000.json", "dataset.json"),
    ],
)
def test_what_is_missing_is_made_again(
    lost: tuple[str, ...], copy: Path, whole: Path, phantom: Path, decoded: list[str]
) -> None:
    for name in lost:
        (copy / name).unlink()
    prepare(str(phantom), str(copy), CONFIG)
    assert hashes_of(copy) == hashes_of(whole)
    # Only a lost receipt makes the raw files of its shard be read again.
    assert len(decoded) == (16 if "receipts/shard-00000.json" in lost else 0)


def test_a_lost_and_a_cut_image_are_made_again(copy: Path, whole: Path, phantom: Path, decoded: list[str]) -> None:
    first, second, *_ = sorted((copy / "images").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-7])
    prepare(str(phantom), str(copy), CONFIG)
    assert hashes_of(copy) == hashes_of(whole)
    assert sorted(decoded) == sorted([first.stem, second.stem])


def test_a_cut_shard_and_a_broken_receipt_are_made_again(
    copy: Path, whole: Path, phantom: Path, decoded: list[str]
) -> None:
    shard = copy / "shards" / "shard-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    (copy / "receipts" / "shard-00003.json").write_text('{"key": ')
    prepare(str(phantom), str(copy), CONFIG)
    assert hashes_of(copy) == hashes_of(whole)
    assert len(decoded) == 16


def test_only_a_changed_film_is_decoded_again(copy: Path, raw: Path, decoded: list[str]) -> None:
    before = open_dataset(str(copy)).fingerprint
    films = sorted((raw / "train").iterdir())
    films[3].write_bytes(films[4].read_bytes())
    changed = prepare(str(raw), str(copy), CONFIG)
    assert decoded == [films[3].stem]
    assert changed.fingerprint != before
    assert changed.counts["near_duplicates"] >= 2


def test_a_touched_film_is_read_but_not_decoded(copy: Path, raw: Path, whole: Path, decoded: list[str]) -> None:
    film = next((raw / "train").iterdir())
    os.utime(film, ns=(1, 1))
    prepare(str(raw), str(copy), CONFIG)
    assert decoded == []
    assert without_receipts(copy) == without_receipts(whole)


def test_a_changed_label_decodes_nothing(copy: Path, raw: Path, decoded: list[str]) -> None:
    table = pd.read_csv(raw / "train.csv")
    at = table.index[table["class_id"] < 14][0]
    table.loc[at, "x_max"] -= 5
    table.to_csv(raw / "train.csv", index=False)
    before = open_dataset(str(copy)).fingerprint
    assert prepare(str(raw), str(copy), CONFIG).fingerprint != before
    assert decoded == []


def test_films_that_came_and_went_are_followed(copy: Path, raw: Path, decoded: list[str]) -> None:
    table = pd.read_csv(raw / "train.csv")
    gone, twin = table["image_id"].unique()[:2]
    (raw / "train" / f"{gone}.dicom").unlink()
    shutil.copy2(raw / "train" / f"{twin}.dicom", raw / "train" / "0new.dicom")
    rows = table[table["image_id"] == twin].assign(image_id="0new")
    pd.concat([table[table["image_id"] != gone], rows]).to_csv(raw / "train.csv", index=False)
    prepare(str(raw), str(copy), CONFIG)
    fresh = copy.parent / "fresh"
    assert decoded == ["0new"]
    prepare(str(raw), str(fresh), CONFIG)
    assert hashes_of(copy) == hashes_of(fresh)
    assert not (copy / "images" / f"{gone}.png").exists()


def test_a_mended_film_comes_in(raw: Path, ray_session: None, tmp_path: Path) -> None:
    film = next((raw / "train").iterdir())
    data = film.read_bytes()
    film.write_bytes(bytes(len(data)))
    first = prepare(str(raw), str(tmp_path / "out"), CONFIG)
    assert film.name in (tmp_path / "out" / "rejects.csv").read_text()
    film.write_bytes(data)
    second = prepare(str(raw), str(tmp_path / "out"), CONFIG)
    assert second.counts["train_images"] == first.counts["train_images"] + 1
    assert film.name not in (tmp_path / "out" / "rejects.csv").read_text()


def test_another_dataset_is_not_replaced_unasked(copy: Path, raw: Path, decoded: list[str]) -> None:
    with pytest.raises(InputError, match=r"folds 3, not 4; choose another --output, or pass --overwrite"):
        prepare(str(raw), str(copy), replace(CONFIG, num_folds=4))
    for part in ("train", "test"):
        for film in (raw / part).iterdir():
            film.rename(film.with_name(f"x{film.name}"))
    for name in ("train.csv", "test_truth.csv", "sample_submission.csv"):
        table = pd.read_csv(raw / name)
        table.assign(image_id="x" + table["image_id"]).to_csv(raw / name, index=False)
    with pytest.raises(InputError, match="holds a dataset of other images"):
        prepare(str(raw), str(copy), CONFIG)
    assert len(open_dataset(str(copy)).shards) == 5


def test_other_folds_over_the_same_images_decode_nothing(copy: Path, phantom: Path, decoded: list[str]) -> None:
    four = prepare(str(phantom), str(copy), replace(CONFIG, num_folds=4), overwrite=True)
    assert len(read_truths(four, 3)) == 15
    prepare(str(phantom), str(copy), replace(CONFIG, num_folds=2), overwrite=True)
    assert sorted(path.name for path in (copy / "annotations").glob("instances_fold*")) == [
        "instances_fold0.json",
        "instances_fold1.json",
    ]
    assert decoded == []


def test_what_another_version_left_is_replaced_when_asked(
    copy: Path, whole: Path, phantom: Path, decoded: list[str]
) -> None:
    for name in ("plan.json", "dataset.json"):
        content = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(content | {"schema": 1}))
    shutil.rmtree(copy / "receipts")
    with pytest.raises(InputError) as error:
        prepare(str(phantom), str(copy), CONFIG)
    assert str(error.value) == f"{copy}/plan.json: schema 1, want 2; choose another --output, or pass --overwrite"
    prepare(str(phantom), str(copy), CONFIG, overwrite=True)
    assert hashes_of(copy) == hashes_of(whole)


def test_a_truth_that_is_gone_is_not_scored_on(copy: Path, raw: Path, decoded: list[str]) -> None:
    (raw / "test_truth.csv").unlink()
    dataset = prepare(str(raw), str(copy), CONFIG)
    with pytest.raises(InputError, match="the truth of the test part is not known"):
        read_truths(dataset, "test")


@pytest.mark.parametrize("name", ["annotations/labels.parquet", "rejects.csv", "dataset.json", "annotations/folds.csv"])
def test_a_file_that_was_cut_short_is_made_again(
    name: str, copy: Path, whole: Path, phantom: Path, decoded: list[str]
) -> None:
    (copy / name).write_bytes(b"")
    prepare(str(phantom), str(copy), CONFIG)
    assert hashes_of(copy) == hashes_of(whole)
    assert decoded == []


def test_folders_of_other_programs_do_not_disturb(copy: Path, raw: Path, decoded: list[str]) -> None:
    for part in ("images", "shards", "receipts", "annotations"):
        (copy / part / ".ipynb_checkpoints").mkdir()
    (copy / "dataset.json").unlink()
    prepare(str(raw), str(copy), CONFIG)
    assert open_dataset(str(copy)).counts["train_images"] == 60


def test_what_somebody_else_put_into_its_folders_stays(
    copy: Path, raw: Path, decoded: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(b"theirs")
    mine = [copy / name for name in ("images/mine.png", "shards/notes.txt", "receipts/a.json", "annotations/my.json")]
    for path in mine:
        path.write_bytes(b"theirs")
    (copy / "images" / "link.png").symlink_to(other)
    gone = sorted((raw / "train").iterdir())[3]
    table = pd.read_csv(raw / "train.csv")
    table[table["image_id"] != gone.stem].to_csv(raw / "train.csv", index=False)
    gone.unlink()
    prepare(str(raw), str(copy), replace(CONFIG, image_format="jpeg"), overwrite=True)
    assert [path.read_bytes() for path in (*mine, other)] == [b"theirs"] * 5
    images = sorted(path.name for path in (copy / "images").iterdir())
    assert [name for name in images if not name.endswith(".jpg")] == ["link.png", "mine.png"]
    assert f"{gone.stem}.jpg" not in images
    assert len(images) == 71 + 2
    assert f"{copy}/images: left alone, not known to vbd: link.png, mine.png\n" in capsys.readouterr().out
    assert not (copy / OWNER).exists()


def test_options_that_cannot_be_met_leave_the_dataset_alone(copy: Path, whole: Path, phantom: Path) -> None:
    with pytest.raises(InputError, match="--folds 61: too many or too few for 60 training images"):
        prepare(str(phantom), str(copy), replace(CONFIG, num_folds=61), overwrite=True)
    assert open_dataset(str(copy)) == replace(open_dataset(str(whole)), location=str(copy))


def test_a_refusal_is_not_for_ever(copy: Path, raw: Path, whole: Path, decoded: list[str]) -> None:
    """A fault of the machine, not of the film: trying again takes the film in."""
    receipt = copy / "receipts" / "shard-00000.json"
    told = json.loads(receipt.read_text())
    name = told["images"][0]["image_id"]
    told["images"][0] |= {"refused": "out of memory", "prepared_size": 0, "prepared_sha256": ""}
    receipt.write_text(json.dumps(told))
    prepare(str(raw), str(copy), CONFIG, overwrite=True)
    assert decoded == [name]
    assert without_receipts(copy) == without_receipts(whole)


def test_two_runs_do_not_publish_a_mixture(copy: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run, with other options, gets in between a run's images and its publishing."""
    from vbd.data.prepare import dataset as module

    (copy / "images" / next((copy / "images").iterdir()).name).unlink()
    real = module.write_shards
    config = replace(CONFIG, resize="letterbox")

    def both(*args, **kwargs):
        real(*args, **kwargs)
        monkeypatch.setattr(module, "write_shards", real)
        prepare(str(phantom), str(copy), config, overwrite=True)

    monkeypatch.setattr(module, "write_shards", both)
    with pytest.raises(InputError, match="another run writes into this folder"):
        prepare(str(phantom), str(copy), CONFIG)


def test_the_fingerprint_is_that_of_the_content(copy: Path, raw: Path, decoded: list[str]) -> None:
    film = sorted((raw / "train").iterdir())[0]
    film.write_bytes(b"broken")
    refused = prepare(str(raw), str(copy), CONFIG)
    film.unlink()
    table = pd.read_csv(raw / "train.csv")
    table[table["image_id"] != film.stem].to_csv(raw / "train.csv", index=False)
    assert prepare(str(raw), str(copy), CONFIG).fingerprint == refused.fingerprint


def test_a_dataset_is_unfinished_until_its_manifest_is_there(copy: Path) -> None:
    (copy / "dataset.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        open_dataset(str(copy))


def test_a_killed_run_is_gone_on_with(whole: Path, phantom: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the images: what was finished is kept, what was half written is not believed."""
    out = tmp_path / "out"
    code = (
        "import os; from vbd.data.prepare import dataset as module, shards; from vbd.config import PrepareConfig\n"
        "done = []\n"
        "def run(tasks, worker, *, title, total, **options):\n"
        "    for task in tasks:\n"
        "        if len(done) == 2: os.kill(os.getpid(), 9)\n"
        "        done.append(worker(task, **options))\n"
        "shards.run_tasks = run\n"
        "module.check_decoding = lambda cpus: {}\n"  # no Ray runs here
        f"module.prepare({str(phantom)!r}, {str(out)!r}, PrepareConfig(image_size=64, num_folds=3, shard_size=16))"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert sorted(path.name for path in (out / "receipts").iterdir()) == ["shard-00000.json", "shard-00001.json"]
    before = (out / "shards" / "shard-00000.parquet").stat().st_mtime_ns
    prepare(str(phantom), str(out), CONFIG)
    assert hashes_of(out) == hashes_of(whole)
    assert (out / "shards" / "shard-00000.parquet").stat().st_mtime_ns == before


def test_receipts_tell_what_each_image_was_made_of(whole: Path, phantom: Path) -> None:
    told = json.loads((whole / "receipts" / "shard-00000.json").read_text())["images"]
    hashes = hashes_of(phantom / "train")
    assert [item["sha256"] for item in told] == [hashes[f"{item['image_id']}.dicom"] for item in told]
    assert len({item["perceptual_hash"] for item in told}) == 16
