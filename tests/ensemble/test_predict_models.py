"""What detectors in a worker make of batches: views, memory, batches of validation. No Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.ensemble.checkpoints import write_random
from vbd.config import RunOptions, TrainConfig
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.predict import models as predict_models
from vbd.predict.images import decode_items, images_of_part
from vbd.predict.models import Checkpoint, LoadedDetectors, View, open_checkpoint, views_of
from vbd.predict.request import parts_of
from vbd.records import Detections, Prediction
from vbd.training.checkpoint import CheckpointInfo
from vbd.training.replay import detect_again

CPU = RunOptions(device="cpu")


class _Finder(nn.Module):
    """Finds a box at the left edge of each image, and no finding as its brightness says; has memory for `most` images."""

    def __init__(self, most: int = 100):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, 1))
        self.most, self.batches, self.moves = most, list[tuple[int, int]](), list[str]()

    def to(self, *arguments: Any, **options: Any) -> "_Finder":
        self.moves += [str(argument) for argument in arguments]
        return self

    def forward(self, images: Tensor) -> list[Prediction]:
        self.batches.append((len(images), images.shape[-1]))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        side = images.shape[-1]
        return [
            Prediction(
                boxes=torch.tensor([[0.0, 0.0, side / 4, side / 2]]),
                scores=torch.tensor([0.5]),
                labels=torch.tensor([3]),
                no_finding=image[0, 0, 0],
            )
            for image in images
        ]


def _checkpoint(batch_size: int = 4, **fields: Any) -> Checkpoint:
    config = TrainConfig(batch_size=batch_size, **({"image_size": 128} | fields))
    return Checkpoint("c", CheckpointInfo(config, "", "", "stretch", 1, {}), "")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch):
    def load(*finders: _Finder, augmentation: predict_models.TestTimeAugmentation = "none", **fields: Any):
        waiting = iter(finders)
        monkeypatch.setattr(predict_models, "load_detector", lambda folder: (next(waiting), None))
        return LoadedDetectors([_checkpoint(**fields) for _ in finders], CPU, augmentation)

    return load


def _detect(detectors: LoadedDetectors, images: np.ndarray, which: int = 0, places=None) -> list[Detections]:
    return detectors.detect(
        which,
        images,
        image_ids=[str(i) for i in range(len(images))],
        original_hw=[(256, 256)] * len(images),
        places=range(len(images)) if places is None else places,
    )


def _images(n: int) -> np.ndarray:
    return np.zeros((n, 128, 128), np.uint8)


@pytest.mark.parametrize(
    ("family", "size", "sides"),
    [
        ("yolox", 512, [512, 416, 352]),  # 0.83 of it is 425, 0.67 is 343
        ("yolox", 64, [64, 32]),  # 53 and 43
        ("efficientdet", 512, [512, 384]),
        ("efficientdet", 128, [128]),
    ],
)
def test_scales_are_sides_that_the_family_takes_and_none_comes_twice(family, size, sides) -> None:
    checkpoint = _checkpoint(detector=family, image_size=size)
    assert views_of(checkpoint, "none") == [View(size, False)]
    assert views_of(checkpoint, "flip") == [View(size, False), View(size, True)]
    assert views_of(checkpoint, "scale") == [View(side, False) for side in sides]
    assert views_of(checkpoint, "flip_scale") == [View(side, flip) for side in sides for flip in (False, True)]


def test_all_views_are_fused_in_original_pixels(loaded) -> None:
    finder = _Finder()
    (found,) = _detect(loaded(finder, augmentation="scale"), _images(1))
    assert [side for _, side in finder.batches] == [128, 96]
    np.testing.assert_allclose(found.boxes, [[0, 0, 64, 128]], atol=1e-4)
    assert found.scores == pytest.approx([0.5])
    assert found.labels.tolist() == [3]
    mirrored = _detect(loaded(_Finder(), augmentation="flip"), _images(1))[0]
    # At the left edge of the mirror image is the right edge of the image: two boxes, each seen in one of two views.
    order = np.argsort(mirrored.boxes[:, 0])
    np.testing.assert_allclose(mirrored.boxes[order], [[0, 0, 64, 128], [192, 0, 256, 128]], atol=1e-4)
    assert mirrored.scores == pytest.approx([0.25, 0.25])


def test_no_finding_is_the_mean_over_the_views(loaded) -> None:
    images = _images(2)
    images[0, :, :64] = 255  # its first pixel is white, that of its mirror image black
    plain = _detect(loaded(_Finder()), images)
    both = _detect(loaded(_Finder(), augmentation="flip"), images)
    assert [found.no_finding for found in plain] == [1.0, 0.0]
    assert [found.no_finding for found in both] == [0.5, 0.0]


def test_a_batch_ends_at_the_same_place_whichever_images_are_missing(loaded) -> None:
    finder = _Finder()
    found = _detect(loaded(finder), _images(7), places=[0, 1, 3, 4, 5, 6, 9])
    assert [n for n, _ in finder.batches] == [3, 3, 1]
    assert [each.image_id for each in found] == [str(i) for i in range(7)]
    assert _detect(loaded(finder), _images(0)) == []


def test_without_memory_for_a_batch_it_is_halved_for_all_that_follow(loaded) -> None:
    finder = _Finder(most=1)
    found = _detect(loaded(finder), _images(6))
    assert [n for n, _ in finder.batches] == [4, 2, 1, 1, 1, 1, 1, 1]
    assert len(found) == 6
    with pytest.raises(InputError, match="c: no memory on cpu for one image of 128 pixels through yolox nano; use"):
        _detect(loaded(_Finder(most=0)), _images(2))


def test_another_fault_is_not_taken_for_want_of_memory(loaded) -> None:
    finder = _Finder()
    finder.forward = lambda images: (_ for _ in ()).throw(RuntimeError("shape mismatch"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shape mismatch"):
        _detect(loaded(finder), _images(2))


def test_detectors_that_do_not_fit_together_take_turns_on_a_gpu(loaded) -> None:
    class Crowded(_Finder):
        def forward(self, images: Tensor) -> list[Prediction]:
            if "cpu" not in first.moves:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    first, second = _Finder(), Crowded()
    detectors = loaded(first, second)
    detectors.device = torch.device("meta")  # stands in for a GPU: nothing of the finders goes there
    Tensor_to = Tensor.to  # noqa: N806
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Tensor, "to", lambda self, *a, **k: self if a == (detectors.device,) else Tensor_to(self, *a, **k)
        )
        _detect(detectors, _images(4))
        _detect(detectors, _images(4), which=1)
    assert first.moves[-2:] == ["meta", "cpu"]
    assert second.moves[-2:] == ["meta", "meta"]
    assert second.batches == [(4, 128)]  # not halved


@pytest.mark.parametrize("family", ["efficientdet", "retinanet", "classifier"])
def test_detections_are_those_of_validation_to_the_last_bit(family, prepared: str, tmp_path: Path) -> None:
    dataset = open_dataset(prepared)
    folder = write_random(tmp_path / "c", prepared, family, image_size=128, batch_size=3)
    items = images_of_part(dataset, 0)
    checkpoint = open_checkpoint(folder, items)
    detectors = LoadedDetectors([checkpoint], CPU, "none")
    found = []
    for part in parts_of(items, [checkpoint]):
        decoded = decode_items(part, [checkpoint.pixels])
        ids = [item["image_id"] for item in part]
        found += detectors.detect(
            0, decoded.squares[0], image_ids=ids, original_hw=decoded.original_hw, places=decoded.places
        )
    wanted = detect_again(folder, dataset, device=torch.device("cpu"))
    assert len(found) == len(wanted) > 3
    for one, other in zip(found, wanted, strict=True):
        assert (one.image_id, one.no_finding) == (other.image_id, other.no_finding)
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (found[0].no_finding is not None) == (family == "classifier")
    assert bool(len(found[0].boxes)) == (family != "classifier")


def test_parts_hold_whole_batches_of_every_checkpoint() -> None:
    images = [{"image_id": f"{i:03d}"} for i in reversed(range(100))]
    for sizes, length in (((4,), 16), ((3, 4), 24), ((48,), 48), ((9, 16), 16), ((5, 10), 20)):
        parts = parts_of(images, [_checkpoint(batch_size) for batch_size in sizes])
        assert {len(part) for part in parts[:-1]} == {length}
        assert [item["image_id"] for part in parts for item in part] == [f"{i:03d}" for i in range(100)]
    assert parts_of([], [_checkpoint()]) == []


def test_a_broken_checkpoint_is_told_in_one_line(prepared: str, tmp_path: Path) -> None:
    folder = Path(write_random(tmp_path / "c", prepared, "yolox", image_size=64))
    whole = (folder / "model.pt").read_bytes()
    sha256 = json.loads((folder / "config.json").read_text())["files"]["model.pt"]["sha256"]
    assert open_checkpoint(str(folder), []).sha256 == sha256
    for content, told in ((whole[:-100], "truncated"), (whole[:-1] + b"x", "another SHA-256")):
        (folder / "model.pt").write_bytes(content)
        with pytest.raises(InputError, match=rf"model.pt: .*{told}") as caught:
            open_checkpoint(str(folder), [])
        assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_of_a_smaller_batch_is_asked_in_such_batches() -> None:
    checkpoint = _checkpoint(16)
    assert checkpoint.batch_size == 16
    assert replace(checkpoint, info=replace(checkpoint.info, micro_batch=2)).batch_size == 2
