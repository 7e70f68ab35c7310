"""What every detector promises, asked of the smallest of each family."""

import copy
import itertools
import urllib.request

import pytest
import torch

from vbd.boxes import hflip
from vbd.config import FAMILIES, VARIANTS, Family, finds_boxes
from vbd.errors import InputError
from vbd.models import build_detector
from vbd.records import Target

DETECTORS = tuple(filter(finds_boxes, FAMILIES))
SIZE = 128
# YOLOX assigns more anchors to a box as it learns, so its loss rises before it falls.
STEPS = {"faster_rcnn": 20, "retinanet": 20, "fcos": 20, "yolox": 120, "efficientdet": 25}
LEARNING_RATE = {"faster_rcnn": 3e-3, "retinanet": 1e-3, "fcos": 1e-3, "yolox": 3e-3, "efficientdet": 3e-3}
BOXES = [[[20.0, 30.0, 60.0, 70.0], [80.0, 90.0, 90.0, 98.0]], [[10.0, 100.0, 60.0, 112.0]], []]
LABELS = [[3, 8], [0], []]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=DETECTORS)
def family(request) -> Family:
    return request.param


def build(family: Family):
    torch.manual_seed(0)
    return build_detector(family, variant=VARIANTS[family][0], image_size=SIZE)


def mixed_batch() -> tuple[torch.Tensor, list[Target]]:
    """Noise with bright boxes: two abnormal images and a normal one."""
    images = torch.rand(len(BOXES), 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 0.3
    for image, boxes in zip(images, BOXES, strict=True):
        for x_min, y_min, x_max, y_max in boxes:
            image[:, int(y_min) : int(y_max), int(x_min) : int(x_max)] += 0.5
    return images.expand(-1, 3, -1, -1).contiguous(), targets_of(BOXES, LABELS)


def targets_of(boxes, labels) -> list[Target]:
    return [
        {"boxes": torch.tensor(b, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(k, dtype=torch.int64)}
        for b, k in zip(boxes, labels, strict=True)
    ]


def train(model, steps: int, *, learning_rate: float) -> list[float]:
    """Losses of some steps on the one batch."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3  # so few steps would leave the statistics of the first weights
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    images, targets = mixed_batch()
    losses = []
    for _ in range(steps):
        loss = model(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained_models():
    """One model of each family after a few steps, and the losses on the way: training costs the most time here."""
    models = {}
    for family in DETECTORS:
        model = build(family)
        models[family] = model, train(model, STEPS[family], learning_rate=LEARNING_RATE[family])
    return models


@pytest.fixture
def trained(trained_models, family):
    """A copy, in eval mode, so that no test changes another's."""
    return copy.deepcopy(trained_models[family][0]).eval()


def test_loss_is_the_sum_of_its_detached_parts_and_reaches_every_parameter(family):
    model = build(family).train()
    losses = model(*mixed_batch())
    parts = [value for name, value in losses.items() if name != "loss"]
    assert losses["loss"].shape == ()
    assert len(parts) >= 2
    assert not any(part.requires_grad for part in parts)
    assert torch.stack(parts).sum() == pytest.approx(losses["loss"].item(), rel=1e-5)
    losses["loss"].backward()
    without_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without_gradient == []


def test_a_batch_of_normal_images_has_a_loss_of_the_usual_order(family):
    images, targets = mixed_batch()
    normal = targets_of([[]] * len(images), [[]] * len(images))
    torch.manual_seed(0)
    mixed_loss = build(family).train()(images, targets)["loss"]
    losses = build(family).train()(images, normal)
    losses["loss"].backward()
    assert 0 < losses["loss"] < 3 * mixed_loss


def test_normal_images_keep_their_weight_after_training(trained):
    """Against images that the model has not seen either: its loss on those it learnt by heart says nothing."""
    images, targets = mixed_batch()
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(2)) * 0.3
    trained.train()
    mirrored = [target | {"boxes": torch.from_numpy(hflip(target["boxes"].numpy(), SIZE))} for target in targets]
    mixed_loss = trained(images.flip(3), mirrored)["loss"]
    assert 0 < trained(noise, targets_of([[]] * 3, [[]] * 3))["loss"] < 3 * mixed_loss


def test_loss_falls_on_one_batch(trained_models, family):
    losses = trained_models[family][1]
    first, last = losses[: len(losses) // 3], losses[-5:]
    assert sum(last) / len(last) < 0.6 * max(first)


def test_predictions_are_within_the_contract(trained):
    images, _ = mixed_batch()
    with torch.inference_mode():
        predictions = trained(images)
    assert len(predictions) == len(images)
    assert sum(len(prediction["boxes"]) for prediction in predictions) > 0
    for prediction in predictions:
        boxes, scores, labels = prediction["boxes"], prediction["scores"], prediction["labels"]
        assert boxes.dtype == scores.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert len(boxes) == len(scores) == len(labels) <= 100
        assert (boxes >= 0).all()
        assert (boxes <= SIZE).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (scores.diff() <= 0).all()
        assert ((scores > 0) & (scores <= 1)).all()
        assert ((labels >= 0) & (labels < 14)).all()


def test_weights_alone_bring_back_the_same_predictions(trained, family, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    again = build_detector(family, variant=VARIANTS[family][0], image_size=SIZE).eval()
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    images, _ = mixed_batch()
    with torch.inference_mode():
        for before, after in zip(trained(images), again(images), strict=True):
            assert all(torch.equal(before[key], after[key]) for key in ("boxes", "scores", "labels"))


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(trained):
    images, _ = mixed_batch()
    with torch.inference_mode():
        together, alone = trained(images)[1], trained(images[1:2])[0]
    # The arithmetic of a batch of three differs in the last bits, which may swap or drop boxes at the bottom.
    best = slice(0, 5)
    torch.testing.assert_close(together["boxes"][best], alone["boxes"][best], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(together["scores"][best], alone["scores"][best], rtol=1e-3, atol=1e-4)


def test_images_of_any_side_are_learnt_and_searched_with_the_weights_of_one(family, trained):
    """Multi-scale training: a batch of another side comes between those of the configured one."""
    images, targets = mixed_batch()
    big = torch.nn.functional.interpolate(images[:2], scale_factor=2)
    big_targets = [target | {"boxes": target["boxes"] * 2} for target in targets[:2]]
    model = build(family).train()
    names = list(model.state_dict())
    for pixels, wanted in ((images, targets), (big, big_targets), (images, targets)):
        loss = model(pixels, wanted)["loss"]
        loss.backward()
        assert torch.isfinite(loss)
    assert list(model.state_dict()) == names
    with torch.inference_mode():
        before = trained(images)
        found = trained(big)
        after = trained(images)
    assert max(prediction["boxes"].max().item() for prediction in found if len(prediction["boxes"])) > SIZE + 32
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one["boxes"], other["boxes"])


def test_three_equal_channels_in_one_memory_are_three_channels(trained):
    images, _ = mixed_batch()
    grey = images[:, :1].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        for one, other in zip(trained(grey), trained(images), strict=True):
            assert torch.equal(one["boxes"], other["boxes"])


def test_channels_that_differ_are_told_apart(trained):
    images, _ = mixed_batch()
    composed = images * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    with torch.inference_mode():
        one, other = trained(images)[0], trained(composed)[0]
    assert one["scores"].shape != other["scores"].shape or not torch.equal(one["scores"], other["scores"])


def test_the_layout_in_memory_changes_nothing_but_the_last_digits(trained):
    images, _ = mixed_batch()
    with torch.inference_mode():
        one = trained(images)[0]["scores"][:3]
        other = trained.to(memory_format=torch.contiguous_format)(images)[0]["scores"][:3]
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_backbone_is_part_of_the_network_once(family):
    model = build(family)
    parameters = {id(parameter) for parameter in model.parameters()}
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    assert 20 < len(backbone) < len(parameters)
    assert backbone < parameters
    assert not any(name.startswith("backbone") for name in model.state_dict())


def test_arguments_are_not_changed(family):
    model = build(family)
    images, targets = mixed_batch()
    images_before, targets_before = images.clone(), copy.deepcopy(targets)
    model.train()(images, targets)
    with torch.inference_mode():
        model.eval()(images)
    assert torch.equal(images, images_before)
    for now, before in zip(targets, targets_before, strict=True):
        assert now.keys() == before.keys()
        assert all(torch.equal(now[key], before[key]) for key in before)


def test_bfloat16_autocast_gives_a_float32_loss_and_float32_boxes(trained):
    images, targets = mixed_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = trained.train()(images, targets)
        with torch.inference_mode():
            predictions = trained.eval()(images)
    losses["loss"].backward()
    assert losses["loss"].dtype == torch.float32
    assert torch.isfinite(losses["loss"])
    assert all(torch.isfinite(p.grad).all() for p in trained.parameters() if p.grad is not None)
    assert all(prediction["boxes"].dtype == prediction["scores"].dtype == torch.float32 for prediction in predictions)


def test_nothing_is_fetched_unless_asked_for(family, monkeypatch):
    forbid_downloads(monkeypatch, AssertionError("a download was tried"))
    build(family)


def test_without_network_pretrained_weights_are_an_input_error(family, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    forbid_downloads(monkeypatch, OSError("Name or service not known"))
    if family == "yolox":
        import yolox.models.yolox

        monkeypatch.setattr(yolox.models.yolox, "HOME", tmp_path)
    with pytest.raises(InputError, match=r"cannot fetch https://.*Name or service not known.*put it into /") as caught:
        build_detector(family, variant=VARIANTS[family][0], image_size=SIZE, pretrained=True)
    assert "\n" not in str(caught.value)


def forbid_downloads(monkeypatch, error: Exception) -> None:
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(urllib.request, "urlretrieve", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def test_unknown_variant_and_bad_size_are_input_errors(family):
    with pytest.raises(InputError, match="unknown variant 'giant'"):
        build_detector(family, variant="giant", image_size=SIZE)
    with pytest.raises(InputError, match="multiple of"):
        build_detector(family, variant=VARIANTS[family][0], image_size=100)


@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name in DETECTORS for variant in VARIANTS[name]])
def test_every_variant_is_built(name, variant):
    with torch.device("meta"):  # shapes only: the largest has 77 million weights
        model = build_detector(name, variant=variant, image_size=512)
        model.eval()
        levels = model.network.backbone(torch.zeros(1, 3, 512, 512))
    assert sum(parameter.numel() for parameter in model.parameters()) > 100_000
    sides = [level.shape[-1] for level in (levels.values() if isinstance(levels, dict) else levels)]
    assert sides[0] in (64, 128)
    assert all(side == 2 * other for side, other in itertools.pairwise(sides))


@pytest.mark.parametrize("variant", ["lite1", "d7x", "torch_d2"])
@pytest.mark.parametrize("side", [128, 384, 512])
def test_every_cell_of_efficientdet_has_its_anchors_at_any_side(variant, side):
    """Levels of odd sides too: three cells become two, and two three."""
    with torch.device("meta"):
        model = build_detector("efficientdet", variant=variant, image_size=256).eval()
        images = torch.zeros(1, 3, side, side)
        labeler = model._prepare_for(side, side, images.device)
        classes, boxes = model.network(images)
    assert sum(level.numel() for level in boxes) == labeler.anchors.boxes.numel()
    assert sum(level.numel() for level in classes) * 4 == labeler.anchors.boxes.numel() * 14
