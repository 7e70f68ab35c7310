"""A node whose libraries are not the driver's ends the job in one line."""

import json
import sys
from collections.abc import Iterator

import pyarrow as pa
import pytest

from vbd.cluster import tasks as prepare_tasks
from vbd.cluster import versions
from vbd.cluster.versions import VersionsError, check_versions, compare, installed
from vbd.config import RunOptions, TrainConfig
from vbd.data.batches import on_ray as dataset_ray
from vbd.errors import InputError
from vbd.predict import stages as predict_stages
from vbd.search.cost import measure as calibrate
from vbd.search.tune import trial as tuning
from vbd.training.folds import worker as run_worker

WITH_OLD_NUMPY = installed() | {"numpy": "1.26.0"}


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    check_versions.cache_clear()
    yield
    check_versions.cache_clear()


def test_equal_versions_are_no_fault() -> None:
    compare(installed(), installed(), node="a")
    assert installed()["torch"]
    assert {"vbd", "pyarrow", "timm", "effdet"} <= set(installed())


@pytest.mark.parametrize(
    ("here", "told"),
    [
        (WITH_OLD_NUMPY, f"node a: numpy 1.26.0, and the driver has {installed()['numpy']}; .*constraints.txt"),
        (installed() | {"timm": ""}, "node a: timm is missing, and the driver has "),
    ],
)
def test_another_version_names_node_package_and_both(here: dict[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        compare(installed(), here, node="a")


def test_the_driver_tells_its_versions_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    check_versions()  # nothing was told: not a worker of a job
    check_versions.cache_clear()
    monkeypatch.setenv(versions.VARIABLE, json.dumps(WITH_OLD_NUMPY))
    with pytest.raises(InputError, match=r"numpy .*the driver has 1\.26\.0"):
        check_versions()


@pytest.fixture
def other_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a worker of a driver with another numpy."""
    monkeypatch.setenv(versions.VARIABLE, json.dumps(WITH_OLD_NUMPY))


def test_tasks_tell_it_as_a_result(other_driver: None) -> None:
    """As an exception it would lose its type on the way through Ray."""
    told = "the driver has 1.26.0"
    assert told in prepare_tasks._guarded({}, inner=lambda task: {"images": 1}, options={})["fault"]
    assert told in predict_stages._decode({"part": 0, "items": "[]"}, wanted=[])["fault"]
    check_versions.cache_clear()
    detect = predict_stages._Detect([], RunOptions(), "none")
    assert told in detect({"fault": "", "part": 0}, members=[], pixels=[], drop=[])["fault"]
    share = dataset_ray._Share("/nowhere", "", TrainConfig(), 0, 1)
    (row,) = dataset_ray._make_rows(pa.table({"id": [0]}), share=share, first_step=0).to_pylist()
    assert told in row["fault"]


def test_a_trial_tells_it_to_the_search(other_driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[dict[str, object]] = []
    monkeypatch.setattr(tuning.tune, "report", reports.append)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which a trial replaces
    with pytest.raises(InputError, match=r"the driver has 1\.26\.0"):
        tuning.run_trial({}, location="/nowhere", run="/nowhere", options=RunOptions())
    assert "the driver has 1.26.0" in str(reports[0]["fault"])


def test_so_does_what_measures_before_the_first_trial(other_driver: None) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured")

    with pytest.raises(VersionsError, match=r"the driver has 1\.26\.0"):
        calibrate._Bench(never).measure(TrainConfig(), "/nowhere", RunOptions(), workers=1)  # type: ignore[arg-type]


def test_a_worker_of_ray_train_raises_it(other_driver: None) -> None:
    with pytest.raises(InputError, match=r"the driver has 1\.26\.0"):
        run_worker.attempt({}, "/nowhere", resume_from=lambda: None, report=lambda *_: None)
