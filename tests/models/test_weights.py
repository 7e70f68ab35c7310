"""Starting from a file or a checkpoint folder: what fits is taken, what does not is told."""

import pickle

import pytest
import torch

from vbd.config import Anchors
from vbd.errors import InputError
from vbd.models import build_detector
from vbd.models.weights import FirstWeights, describe, load_tensors


def build(weights="", *, family="yolox", variant="nano", anchors=Anchors(), seed=0):  # noqa: B008
    torch.manual_seed(seed)
    return build_detector(family, variant=variant, image_size=128, weights=str(weights), anchors=anchors)


@pytest.fixture
def other():
    """A detector whose weights no other has by chance."""
    return build(seed=7)


def assert_equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_random_weights_come_from_nowhere(other):
    assert other.first_weights is None


def test_a_checkpoint_folder_gives_all_its_weights(other, tmp_path):
    torch.save(other.state_dict(), tmp_path / "model.pt")
    model = build(tmp_path)
    assert_equal(model, other)
    assert model.first_weights.source == str(tmp_path)
    assert model.first_weights.new == model.first_weights.unused == ()


def test_a_uri_is_a_place_too(other, tmp_path):
    torch.save(other.state_dict(), tmp_path / "model.pt")
    assert_equal(build(f"file://{tmp_path}"), other)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model.state_dict(),
        lambda model: model.network.state_dict(),
        lambda model: {"model": model.network.state_dict(), "optimizer": {"state": {}}, "start_epoch": 3},
        lambda model: {"state_dict": model.network.state_dict(), "epoch": 1, "arch": "x"},
        lambda model: {"model": {f"module.{key}": value for key, value in model.network.state_dict().items()}},
        lambda model: {f"module.network.{key}": value for key, value in model.network.state_dict().items()},
        lambda model: {"state_dict_ema": model.network.state_dict(), "state_dict": build(seed=9).network.state_dict()},
    ],
    ids=["ours", "bare", "yolox", "timm", "parallel", "ours parallel", "running mean"],
)
def test_the_formats_of_the_libraries_are_understood(other, tmp_path, wrap):
    torch.save(wrap(other), tmp_path / "weights.pth")
    model = build(tmp_path / "weights.pth")
    assert_equal(model.network, other.network)


def test_a_detector_of_the_library_itself_fits_into_faster_rcnn(tmp_path):
    """Its last layer stands one level deeper in ours."""
    other = build(family="faster_rcnn", variant="mobilenet_v3_large_320", seed=7)
    names = {
        name.replace("box_predictor.predictor.", "box_predictor."): t for name, t in other.network.state_dict().items()
    }
    assert "roi_heads.box_predictor.cls_score.weight" in names
    torch.save({"model": names, "epoch": 2}, tmp_path / "checkpoint.pth")
    model = build(tmp_path / "checkpoint.pth", family="faster_rcnn", variant="mobilenet_v3_large_320")
    assert_equal(model, other)


def test_a_classifier_fits_into_the_backbone(tmp_path):
    from torchvision.models import resnet18

    classifier = resnet18(weights=None).state_dict()
    torch.save(classifier, tmp_path / "resnet18.pth")
    model = build(tmp_path / "resnet18.pth", family="fcos", variant="resnet18")
    assert torch.equal(model.backbone.conv1.weight, classifier["conv1.weight"])
    assert "fc.weight" in model.first_weights.unused


def test_what_has_another_shape_stays_new_and_is_told(tmp_path):
    other = build(family="retinanet", variant="resnet18", seed=7)
    torch.save(other.state_dict(), tmp_path / "model.pt")
    model = build(tmp_path, family="retinanet", variant="resnet18", anchors=Anchors(ratios=(0.2, 0.5, 1.0, 2.0)))
    new = {
        f"network.head.{part}.{kind}"
        for part in ("classification_head.cls_logits", "regression_head.bbox_reg")
        for kind in ("weight", "bias")
    }
    assert set(model.first_weights.new) == set(model.first_weights.unused) == new
    assert torch.equal(model.backbone.conv1.weight, other.backbone.conv1.weight)
    assert "4: network.head" in describe(model.first_weights)


def test_weights_and_pretrained_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match="start from one of them"):
        build_detector("yolox", variant="nano", image_size=128, weights=str(tmp_path), pretrained=True)


class _Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a file of weights was run')",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "truncated or not a file of weights"),
        (b"not weights at all", "truncated or not a file of weights"),
        (pickle.dumps({"model": _Evil()}, protocol=2), "truncated or not a file of weights"),
        ("evil", "truncated or not a file of weights"),
        ("cut", "truncated or not a file of weights"),
        (torch.zeros(3), "holds a Tensor, want tensors by name"),
        ({"epoch": 3}, "none of its 0 tensors fits"),
        ({"layer.weight": torch.zeros(3)}, "none of its 1 tensors fits"),
        ({"mean_positives": torch.tensor(2.0), "x": torch.zeros(3)}, "none of its 2 tensors fits"),
    ],
    ids=[
        "missing",
        "empty",
        "text",
        "code",
        "code in torch's format",
        "cut",
        "a tensor",
        "no tensors",
        "foreign",
        "a scalar",
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_line(other, tmp_path, content, reason):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "evil" if isinstance(content, str) else False:
        torch.save({"model": _Evil()}, path)
    elif isinstance(content, str):
        torch.save(other.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=reason) as caught:
        build(path)
    assert "\n" not in str(caught.value)
    assert "weights.pth" in str(caught.value)


def test_a_folder_without_weights_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no model\.pt in this folder"):
        build(tmp_path)


def test_weights_of_another_family_are_told(other, tmp_path):
    torch.save(other.state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="same family and variant"):
        build(tmp_path, family="fcos", variant="resnet18")


def test_scalars_of_numpy_are_read(tmp_path):
    """The trainer of YOLOX keeps its best score as one."""
    import numpy as np

    torch.save({"model": build(seed=7).network.state_dict(), "best_ap": np.float64(0.4)}, tmp_path / "best.pth")
    assert load_tensors(str(tmp_path / "best.pth"))["best_ap"] == 0.4


def test_many_modules_are_told_by_the_first_few():
    names = tuple(f"part{i}.layer.weight" for i in range(20))
    text = describe(FirstWeights(source="here", loaded=names, new=(), unused=()))
    assert "20: " in text
    assert "and 14 more" in text
    assert len(text.splitlines()) == 4
