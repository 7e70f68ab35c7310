"""Weights that were put by hand where the error message says are used, and fetched from nowhere."""

import urllib.request
from pathlib import Path

import pytest
import torch

from vbd.errors import InputError
from vbd.models import build_detector
from vbd.models.torchvision_networks import published_weights
from vbd.models.weights import describe


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder where torch keeps weights, empty, without a network."""
    forbid_downloads(monkeypatch, tmp_path)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def forbid_downloads(monkeypatch, home: Path) -> None:
    """Closes every library's door: torch's hub (torchvision, effdet, timm) and urllib (yolox)."""

    def refuse(*args, **kwargs):
        raise OSError("no network")

    import yolox.models.yolox

    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(urllib.request, "urlretrieve", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(yolox.models.yolox, "HOME", home)


def build(name, variant):
    return build_detector(name, variant=variant, image_size=128, pretrained=True)


@pytest.mark.parametrize(
    ("family", "variant", "build_library", "file", "new"),
    [
        (
            "faster_rcnn",
            "mobilenet_v3_large_320",
            "fasterrcnn_mobilenet_v3_large_320_fpn",
            "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
            ("backbone.fpn", "rpn", "roi_heads"),
        ),
        (
            "faster_rcnn",
            "resnet50_v2",
            "fasterrcnn_resnet50_fpn_v2",
            "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
            ("roi_heads.box_predictor",),
        ),
        (
            "retinanet",
            "resnet50",
            "retinanet_resnet50_fpn",
            "retinanet_resnet50_fpn_coco-eeacb38b.pth",
            ("head.classification_head.cls_logits",),
        ),
        (
            "retinanet",
            "resnet50_v2",
            "retinanet_resnet50_fpn_v2",
            "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
            ("head.classification_head.cls_logits",),
        ),
        (
            "fcos",
            "resnet50",
            "fcos_resnet50_fpn",
            "fcos_resnet50_fpn_coco-99b0c9b7.pth",
            ("head.classification_head.cls_logits",),
        ),
    ],
)
def test_torchvisions_detectors_keep_all_but_the_new_layers(hub, family, variant, build_library, file, new):
    from torchvision.models import detection

    coco = getattr(detection, build_library)(weights=None, weights_backbone=None).state_dict()
    torch.save(coco, hub / file)
    model = build(family, variant)
    own = model.state_dict()
    kept = [key for key in coco if not key.startswith(new)]
    assert len(kept) > 100
    assert all(torch.equal(own[f"network.{key}"], coco[key]) for key in kept)
    classes = [key for key in own if key.endswith(("cls_score.bias", "cls_logits.bias")) and "rpn" not in key]
    anchors = {"faster_rcnn": 15, "retinanet": 9 * 14, "fcos": 14}[family]
    assert [len(own[key]) for key in classes] == [anchors]
    assert {f"network.{key}" for key in kept if coco[key].ndim} <= set(model.first_weights.loaded)
    assert f"network.{new[-1]}" in "".join(model.first_weights.new)


def test_names_of_torchvisions_older_files_are_understood(hub):
    """Its first detectors had convolutions that were no blocks of their own: the library renames them when it loads."""
    from torchvision.models import detection

    coco = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    older = {older_name(key): value for key, value in coco.items() if not key.endswith("num_batches_tracked")}
    assert {"backbone.fpn.inner_blocks.0.weight", "head.regression_head.conv.6.bias"} <= set(older)
    torch.save(older, hub / "retinanet_resnet50_fpn_coco-eeacb38b.pth")
    model = build("retinanet", "resnet50")
    assert torch.equal(
        model.network.backbone.fpn.inner_blocks[0][0].weight, coco["backbone.fpn.inner_blocks.0.0.weight"]
    )
    assert torch.equal(model.network.head.regression_head.conv[3][0].bias, coco["head.regression_head.conv.3.0.bias"])
    assert set(model.first_weights.new) == {
        f"network.head.classification_head.cls_logits.{n}" for n in ("weight", "bias")
    }
    assert len(model.first_weights.unused) == 2


def older_name(key: str) -> str:
    parts = key.split(".")
    if "fpn" in parts and "blocks" in key and "extra" not in key:
        return key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
    if parts[0] == "head" and "conv" in parts:
        return ".".join([*parts[:3], str(2 * int(parts[3])), parts[-1]])
    return key


def test_the_older_files_of_faster_rcnn_are_understood(hub):
    from torchvision.models import detection

    coco = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    older = {older_name(key).replace("rpn.head.conv.0.0.", "rpn.head.conv."): value for key, value in coco.items()}
    assert "rpn.head.conv.weight" in older
    torch.save(older, hub / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
    model = build("faster_rcnn", "resnet50")
    assert torch.equal(model.network.rpn.head.conv[0][0].weight, coco["rpn.head.conv.0.0.weight"])
    assert all("box_predictor" in name for name in model.first_weights.new)


@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet", "fcos"])
def test_a_backbone_without_coco_weights_starts_from_imagenet(hub, family):
    from torchvision.models import resnet18

    variant = "resnet18"
    imagenet = resnet18(weights=None).state_dict()
    torch.save(imagenet, hub / published_weights(family, variant).url.rsplit("/", 1)[1])
    model = build(family, variant)
    assert torch.equal(model.backbone.layer4[1].conv2.weight, imagenet["layer4.1.conv2.weight"])
    assert torch.equal(model.backbone.bn1.running_mean, imagenet["bn1.running_mean"])
    assert set(model.first_weights.unused) == {"fc.weight", "fc.bias"}
    assert "ImageNet" in model.first_weights.source


def test_yolox_keeps_all_but_the_class_layers(hub):
    from yolox.config import YoloxConfig

    coco = YoloxConfig.get_named_config("yolox_nano").get_model().state_dict()
    weights = hub.parent.parent / "weights"
    weights.mkdir()
    torch.save({"model": coco}, weights / "yolox_nano.pth")
    model = build("yolox", "nano")
    own = model.state_dict()
    kept = [key for key in coco if not key.startswith("head.cls_preds")]
    assert all(torch.equal(own[f"network.{key}"], coco[key]) for key in kept)
    assert own["network.head.cls_preds.0.weight"].shape[0] == 14
    assert all("cls_preds" in name for name in model.first_weights.new)


def test_efficientdet_keeps_all_but_the_last_layer_of_classes(hub):
    import effdet

    config = effdet.get_efficientdet_config("tf_efficientdet_lite0")
    coco = effdet.EfficientDet(config, pretrained_backbone=False).state_dict()
    torch.save(coco, hub / config.url.rsplit("/", 1)[1])
    own = build("efficientdet", "lite0").state_dict()
    kept = [key for key in coco if not key.startswith("class_net.predict.conv_pw")]
    assert all(torch.equal(own[f"network.{key}"], coco[key]) for key in kept)
    assert own["network.class_net.predict.conv_pw.bias"].shape[0] == 14 * 9


@pytest.mark.parametrize(
    ("variant", "backbone", "file"),
    [
        ("torch_d2", "efficientnet_b2", "efficientnet_b2_ra-bcdf34b7.pth"),
        ("torch_d5", "efficientnet_b5", "efficientnet_b5.sw_in12k_ft_in1k.bin"),
    ],
)
def test_efficientdet_without_coco_weights_starts_from_imagenet(hub, variant, backbone, file):
    import timm

    imagenet = timm.create_model(backbone).state_dict()
    torch.save(imagenet, hub / file)
    model = build("efficientdet", variant)
    assert torch.equal(model.backbone.conv_stem.weight, imagenet["conv_stem.weight"])
    assert {name for name, _ in model.backbone.named_parameters(prefix="network.backbone")} <= set(
        model.first_weights.loaded
    )


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("faster_rcnn", "resnet50"),
        ("faster_rcnn", "resnet18"),
        ("retinanet", "resnet50_v2"),
        ("fcos", "resnet50"),
        ("yolox", "tiny"),
        ("efficientdet", "d0"),
        ("efficientdet", "torch_d0"),
        ("efficientdet", "torch_d2"),
        ("efficientdet", "torch_d5"),
    ],
)
def test_without_network_it_says_what_to_fetch_and_where_to_put_it(hub, family, variant):
    with pytest.raises(
        InputError, match=r"cannot fetch https://\S+ \(no network\).*put it into /\S+ as \S+$"
    ) as caught:
        build(family, variant)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_told_in_one_line(hub):
    name = published_weights("fcos", "resnet18").url.rsplit("/", 1)[1]
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, hub / name)
    (hub / name).write_bytes((hub / name).read_bytes()[:5000])
    with pytest.raises(InputError, match=r"resnet18-.* is broken or not the file of https://.*; remove it") as caught:
        build("fcos", "resnet18")
    assert "\n" not in str(caught.value)


def test_a_download_that_hangs_ends_soon(hub, monkeypatch):
    import socket

    seen = []

    def hang(*args, **kwargs):
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(torch.hub, "urlopen", hang)
    before = socket.getdefaulttimeout()
    with pytest.raises(InputError, match="timed out"):
        build("fcos", "resnet18")
    assert 0 < seen[0] <= 60
    assert socket.getdefaulttimeout() == before


def test_what_was_loaded_is_told_in_few_lines(hub):
    from torchvision.models import detection

    coco = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    torch.save(coco, hub / "fcos_resnet50_fpn_coco-99b0c9b7.pth")
    lines = describe(build("fcos", "resnet50").first_weights).splitlines()
    assert len(lines) == 4
    assert "fcos_resnet50_fpn_coco-99b0c9b7.pth" in lines[0]
    assert "network.backbone.body" in lines[1]
    assert "2: network.head.classification_head.cls_logits" in lines[2]
    assert all(len(line) < 300 for line in lines)
