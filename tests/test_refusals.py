"""What a job refuses before its work leaves every folder as it was, and no secret of a location is repeated."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from tests.mistakes import mistake_of, refused
from vbd import storage
from vbd.config import PrepareConfig, RunOptions
from vbd.config.presets import preset_of
from vbd.data.prepare.augmented import prepare_and_materialise
from vbd.errors import InputError
from vbd.search.run import run_search
from vbd.search.space.settings import search_from
from vbd.storage.credentials import refuse_credentials

TUNE = ("search", "--data", "{data}", "--storage", "{here}/runs")
EVALUATE = ("--predictions", "{here}/mine.csv", "--data", "{data}")


def _state(*folders: Path) -> dict[str, tuple[int, int] | None]:
    """Every folder, and every file with its size and time."""
    paths = [path for folder in folders for path in [folder, *folder.rglob("*")]]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None for path in paths}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with some files of the user's."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("notes")
    (tmp_path / "mine.csv").write_text("my,table\n")
    (tmp_path / "mine.html").write_text("my page")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("job", "flags", "told"),
    [
        ("sample", ("--output", "mine", "--images", "2"), "mine: not empty"),
        ("sample", ("--output", "mine.csv", "--images", "2"), "mine.csv: is a file, want a folder"),
        ("sample", ("--output", "new", "--images", "0"), "--images 0: want 1 to"),
        ("prepare", ("--source", "{data}", "--output", "{data}"), "--source reads it"),
        ("prepare", ("--source", "{raw}", "--output", "mine"), "holds other files and no dataset of ours"),
        ("prepare", ("--source", "{raw}", "--output", "new", "--readers", "R99"), "--readers R99: no such reader"),
        ("prepare", ("--source", "{raw}", "--output", "mine.csv/new"), "mine.csv is a file); choose"),
        ("prepare", ("--source", "{data}", "--output", "{data}/new", "--policy", "B"), "lies within"),
        ("prepare", ("--source", "{data}", "--output", "new", "--policy", "B", "--copies", "1000"), "MB needed"),
        ("eda", ("--data", "{data}", "--output", "{data}/dataset.json"), "want a file that ends in .html"),
        ("eda", ("--data", "{data}", "--output", "{data}/eda.html"), "lies within {data}, which --data reads"),
        ("eda", ("--data", "{data}", "--output", "mine.html"), "mine.html: holds a file that was not written"),
        ("eda", ("--data", "nowhere", "--output", "a.html", "--picture", "a.png"), "nowhere: not a prepared dataset"),
        ("eda", ("--data", "{data}", "--output", "a.html", "--picture", "{data}/images/a.png"), "lies within"),
        ("tune", (*TUNE, "--name", "../new"), "--name ../new: want a name of ASCII letters"),
        ("tune", (*TUNE, "--name", "a", "--warm-start", "nowhere"), "nowhere: no leaderboard.json"),
        ("tune", ("search", "--storage", "runs"), "preset search needs --data"),
        ("tune", ("search", "--data", "nowhere"), "nowhere: not a prepared dataset"),
        (
            "tune",
            ("search", "--data", "{data}", "--storage", "mine.csv"),
            "--storage {here}/mine.csv/search: cannot be",
        ),
        ("tune", ("search", "--data", "{data}", "--storage", "{data}", "--name", "a"), "lies within {data}"),
        ("train", ("--data", "{data}", "--output", "mine"), "mine: the folder is not empty and holds no training"),
        ("train", ("--data", "{data}", "--output", "{data}/new"), "lies within {data}, which --data reads"),
        ("train", ("--data", "{data}", "--output", "new", "--folds", "9"), "--folds 9"),
        ("predict", ("--images", "{raw}", "--output", "{raw}/new", "--run", "mine"), "no manifest.json"),
        ("predict", ("--images", "{raw}", "--output", "mine", "--checkpoint", "c"), "mine: holds other files"),
        ("predict", ("--images", "{raw}", "--output", "{raw}/new", "--checkpoint", "c"), "which --images reads"),
        (
            "predict",
            ("--images", "{raw}", "--output", "new", "--checkpoint", "c", "--overlay", "{raw}/train"),
            "--overlay {raw}/train: lies within {raw}",
        ),
        ("predict", ("--images", "{raw}", "--output", "new", "--checkpoint", "c", "--dicom-sr", "mine"), "mine: holds"),
        ("predict", ("--images", "{raw}", "--output", "new", "--checkpoint", "c", "--coco", "a/b.txt"), "in .json"),
        ("ensemble", ("--run", "mine", "--data", "{data}", "--output", "mine.csv"), "mine.csv: holds a file that was"),
        ("ensemble", ("--run", "mine", "--data", "{data}", "--html", "mine.html"), "mine.html: holds a file that was"),
        ("ensemble", ("--run", "mine", "--data", "{data}", "--output", "{data}/sample_submission.csv"), "lies within"),
        ("evaluate", (*EVALUATE, "--json", "{data}/scores.json"), "lies within {data}"),
        ("evaluate", (*EVALUATE, "--html", "{here}/mine.csv"), "want a file that ends in .html"),
        ("evaluate", (*EVALUATE, "--html", "mine"), "mine: want a file that ends in .html"),
        ("evaluate", ("--check", "mine.csv", "--data", "{data}", "--json", "mine"), "want a file that ends in .json"),
        ("report", ("--run", "mine", "--output", "mine.html"), "mine.html: holds a file that was not written"),
        ("report", ("--run", "mine", "--output", "new/a.html"), "mine: "),
    ],
)
def test_a_refusal_leaves_everything_as_it_was(
    job: str,
    flags: tuple[str, ...],
    told: str,
    prepared: str,
    phantom: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**8))
    places = {"data": prepared, "raw": str(phantom), "here": str(here)}
    before = _state(here, Path(prepared), phantom)
    line = mistake_of(job, monkeypatch, capsys, *(flag.format(**places) for flag in flags))
    assert told.format(**places) in line
    assert _state(here, Path(prepared), phantom) == before


def test_what_only_a_cluster_can_refuse_leaves_no_run(prepared: str, ray_session: None, tmp_path: Path) -> None:
    search = search_from(preset_of("search"), warm_start=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"nowhere: no leaderboard\.json"):
        run_search(search, data=prepared, storage_root=str(tmp_path), name="a", options=RunOptions(device="cpu"))
    assert list(tmp_path.iterdir()) == []


def test_another_policy_is_refused_before_anything_is_prepared(phantom: Path, tmp_path: Path) -> None:
    storage.write_json(
        f"{tmp_path}/augmentation.json", {"policy": "B", "copies": None, "seed": 0, "version": 1, "dataset": "f00d"}
    )
    before = _state(tmp_path)
    with pytest.raises(InputError, match="holds an augmented dataset of policy 'B', not 'C'"):
        prepare_and_materialise(str(phantom), str(tmp_path), PrepareConfig(), policy="C")
    assert _state(tmp_path) == before


# -------------------------------------------------------------------------------------------------------------- secrets

SECRET = "wJalrXUtnFEMI"
WITH_SECRETS = [
    f"s3://AKIA:{SECRET}@bucket/a",
    f"s3://AKIA:half/{SECRET}@bucket/a",
    f"s3://AKIA:{SECRET}/a",
    f"s3://AKIA:a@b/{SECRET}@bucket/a?region=x",
    f"s3://bucket/a?secret_key={SECRET}",
    f"s3:/bucket/a?access_key={SECRET}",
    f"gs://{SECRET}@bucket/a",
    f"abfss://box@account.dfs.core.windows.net/a?sas_token={SECRET}",
    f"abfs://box:{SECRET}@account.dfs.core.windows.net/a",
    f"https://account.blob.core.windows.net/box/a?sv=1&sig={SECRET}",
]


@pytest.mark.parametrize("location", WITH_SECRETS)
@pytest.mark.parametrize(
    ("job", "flags"),
    [
        ("sample", ("--output", "{}")),
        ("prepare", ("--source", "raw", "--output", "{}")),
        ("eda", ("--data", "{}", "--output", "a.html")),
        ("tune", ("--data", "data", "--storage", "{}")),
        ("train", ("--data", "data", "--output", "out", "--set", "weights={}")),
        ("predict", ("--images", "films", "--output", "out", "--chekpoint", "{}")),  # a slip: flags are repeated then
        ("ensemble", ("--run", "{}", "--data", "data")),
        ("evaluate", ("--predictions={}", "--data", "data")),
        ("report", ("--run", "run", "--output", "{}")),
    ],
)
def test_no_secret_is_repeated(
    job: str,
    flags: tuple[str, ...],
    location: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(job, monkeypatch, capsys, *(flag.format(location) for flag in flags))
    assert SECRET not in said.out + said.err
    (line,) = said.err.splitlines()
    assert "which would show in logs and on disk; leave it out and set it in the environment" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("location", WITH_SECRETS)
def test_a_location_in_a_file_is_refused_without_its_secret(location: str) -> None:
    if "://" in location:
        with pytest.raises(InputError) as caught:
            storage.exists(location)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        *("s3://bucket/a", "s3://bucket/user@host.png", "gs://anonymous@bucket/a", "data/what?.png", "a@b/c:d"),
        *(
            "http://localhost:5000/a",
            "file:///data/what?.png",
            "weights=s3://bucket/w-{{fold}}.pt",
            "R8",
            "lr=1e-3..1e-2",
        ),
    ],
)
def test_a_plain_location_is_taken(location: str) -> None:
    refuse_credentials(location)
