"""Weights that were put by hand where the error message says are used, and fetched from nowhere."""

import urllib.request
from pathlib import Path

import pytest
import torch

from vbd.models import build_detector


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder where torch keeps weights, empty, without a network."""

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(urllib.request, "urlretrieve", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def build(name, variant):
    return build_detector(name, variant=variant, image_size=128, pretrained=True).state_dict()


@pytest.mark.parametrize(
    ("variant", "build_library", "file", "new"),
    [
        (
            "mobilenet_v3_large_320",
            "fasterrcnn_mobilenet_v3_large_320_fpn",
            "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
            ("backbone.fpn", "rpn", "roi_heads"),
        ),
        (
            "resnet50_v2",
            "fasterrcnn_resnet50_fpn_v2",
            "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
            ("roi_heads.box_predictor",),
        ),
    ],
)
def test_faster_rcnn_keeps_all_but_the_new_layers(hub, variant, build_library, file, new):
    from torchvision.models import detection

    coco = getattr(detection, build_library)(weights=None, weights_backbone=None).state_dict()
    torch.save(coco, hub / file)
    own = build("faster_rcnn", variant)
    kept = [key for key in coco if not key.startswith(new)]
    assert len(kept) > 100
    assert all(torch.equal(own[f"network.{key}"], coco[key]) for key in kept)
    assert own["network.roi_heads.box_predictor.predictor.cls_score.weight"].shape[0] == 15


def test_yolox_keeps_all_but_the_class_layers(hub, monkeypatch):
    import yolox.models.yolox
    from yolox.config import YoloxConfig

    coco = YoloxConfig.get_named_config("yolox_nano").get_model().state_dict()
    weights = hub / "weights"
    weights.mkdir()
    torch.save({"model": coco}, weights / "yolox_nano.pth")
    monkeypatch.setattr(yolox.models.yolox, "HOME", hub)
    own = build("yolox", "nano")
    kept = [key for key in coco if not key.startswith("head.cls_preds")]
    assert all(torch.equal(own[f"network.{key}"], coco[key]) for key in kept)
    assert own["network.head.cls_preds.0.weight"].shape[0] == 14


def test_efficientdet_keeps_all_but_the_class_head(hub):
    import effdet

    config = effdet.get_efficientdet_config("tf_efficientdet_lite0")
    coco = effdet.EfficientDet(config, pretrained_backbone=False).state_dict()
    torch.save(coco, hub / config.url.rsplit("/", 1)[1])
    own = build("efficientdet", "lite0")
    kept = [key for key in coco if not key.startswith("class_net")]
    assert all(torch.equal(own[f"network.{key}"], coco[key]) for key in kept)
    assert own["network.class_net.predict.conv_pw.bias"].shape[0] == 14 * 9
