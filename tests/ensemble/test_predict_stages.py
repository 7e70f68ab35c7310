"""Many checkpoints over a stream of parts, on a small Ray."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.ensemble.checkpoints import write_random
from vbd.config import RunOptions
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.predict.images import images_in_folder, images_of_part
from vbd.predict.request import Predictions, predict
from vbd.predict.stages import Pool, plan_pools

CPU = RunOptions(device="cpu")


@pytest.fixture(scope="module")
def checkpoints(prepared: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return [
        write_random(folder / "retinanet", prepared, "retinanet", image_size=64, batch_size=3),
        write_random(folder / "classifier", prepared, "classifier", image_size=64, batch_size=4),
        write_random(folder / "yolox", prepared, "yolox", image_size=96, batch_size=4),
    ]


def _assert_same(one: Predictions, other: Predictions) -> None:
    """To the last bit."""
    assert one.rejects == other.rejects
    assert one.by_checkpoint.keys() == other.by_checkpoint.keys()
    for folder, found in one.by_checkpoint.items():
        assert len(found) == len(other.by_checkpoint[folder]) > 0
        for a, b in zip(found, other.by_checkpoint[folder], strict=True):
            assert (a.image_id, a.no_finding) == (b.image_id, b.no_finding)
            for name in ("boxes", "scores", "labels"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_one_pool_or_one_for_each_detector_finds_the_same_and_none_waits_for_ever(
    checkpoints: list[str], prepared: str
) -> None:
    items = images_of_part(open_dataset(prepared), "train")
    shared = predict(checkpoints, items, options=CPU, workers=1, pools="shared")
    own = predict(checkpoints, items[::-1], options=CPU, workers=4, pools="own")  # more actors than the two cores
    _assert_same(shared, own)
    boxes, normal, others = shared.by_checkpoint.values()
    assert [found.image_id for found in boxes] == sorted(item["image_id"] for item in items)
    assert sum(len(found.boxes) for found in boxes) > 0 < sum(len(found.boxes) for found in others)
    assert all(found.no_finding is None for found in (*boxes, *others))
    assert all(found.no_finding is not None and 0 < found.no_finding < 1 for found in normal)


def test_an_unreadable_image_is_told_by_its_file_and_changes_no_other(
    checkpoints: list[str], phantom: Path, tmp_path: Path, ray_session: None
) -> None:
    folder = tmp_path / "films"
    shutil.copytree(phantom / "test", folder)
    whole = predict(checkpoints[:1], images_in_folder(str(folder)), options=CPU)
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[4]).write_bytes((folder / names[4]).read_bytes()[:3000])
    (folder / names[7]).write_bytes(b"")
    found = predict(checkpoints[:1], images_in_folder(str(folder)), options=CPU)
    assert [row["file"] for row in found.rejects] == [str(folder / names[4]), str(folder / names[7])]
    assert "empty file" in found.rejects[1]["reason"]
    kept = [each for place, each in enumerate(whole.by_checkpoint[checkpoints[0]]) if place not in (4, 7)]
    # Batches of other sizes may round otherwise in the last digits.
    for a, b in zip(kept, found.by_checkpoint[checkpoints[0]], strict=True):
        assert a.image_id == b.image_id
        np.testing.assert_allclose(np.sort(a.scores), np.sort(b.scores), atol=1e-4)


def test_what_is_wrong_in_an_actor_comes_back_as_the_users_mistake(
    checkpoints: list[str], prepared: str, tmp_path: Path
) -> None:
    items = images_of_part(open_dataset(prepared), "test")
    other = Path(write_random(tmp_path / "other", prepared, "yolox", image_size=64))
    config = other / "config.json"  # as if these were the weights of a larger network
    text = config.read_text().replace('"nano"', '"tiny"')
    from vbd.config import TrainConfig, config_hash

    text = re.sub(
        r'"config_hash": "\w+"',
        f'"config_hash": "{config_hash(TrainConfig(detector="yolox", variant="tiny", image_size=64))}"',
        text,
    )
    config.write_text(text)
    with pytest.raises(InputError, match=r"model.pt: not the weights of yolox tiny") as caught:
        predict([str(other)], items, options=CPU)
    assert len(str(caught.value).splitlines()) == 1


def test_a_gpu_that_is_not_here_is_told_at_once(checkpoints: list[str], prepared: str) -> None:
    items = images_of_part(open_dataset(prepared), "test")
    with pytest.raises(InputError, match="the cluster has none; use --device cpu"):
        predict(checkpoints[:1], items, options=RunOptions(device="cuda"))


def test_no_images_have_no_detections(checkpoints: list[str]) -> None:
    assert predict(checkpoints[:1], [], options=CPU) == Predictions({checkpoints[0]: []}, [])


@pytest.mark.parametrize(
    ("costs", "units", "use_gpu", "pools", "planned"),
    [
        ([1], 5, True, "auto", [Pool((0,), 5)]),
        ([1, 1], 2, True, "auto", [Pool((0,), 1), Pool((1,), 1)]),
        ([1, 1, 1], 2, True, "auto", [Pool((0, 1, 2), 2)]),  # fewer GPUs than detectors: each holds all
        ([1, 6, 1], 6, True, "auto", [Pool((0,), 1), Pool((1,), 4), Pool((2,), 1)]),
        ([1, 1], 4, False, "auto", [Pool((0, 1), 4)]),  # on few cores pools would wait for each other
        ([1, 1], 8, False, "auto", [Pool((0,), 4), Pool((1,), 4)]),
        ([1, 1], 8, False, "shared", [Pool((0, 1), 8)]),
        ([1, 1, 1], 1, False, "own", [Pool((0,), 1), Pool((1,), 1), Pool((2,), 1)]),
    ],
)
def test_pools_share_out_what_the_cluster_has(costs, units, use_gpu, pools, planned) -> None:
    assert plan_pools(costs, units=units, use_gpu=use_gpu, pools=pools) == planned
