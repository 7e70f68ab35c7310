"""The classifier, which finds no boxes: what it learns from boxes, and what it says of an image."""

import pytest
import torch

from tests.models.test_contract import mixed_batch, one_thread, targets_of, train  # noqa: F401
from vbd.config import VARIANTS
from vbd.errors import StoreError
from vbd.models import build_detector
from vbd.models.classifier import Classifier, _soft_targets

SIZE = 128


def build(variant: str = VARIANTS["classifier"][0]) -> Classifier:
    torch.manual_seed(0)
    classifier = build_detector("classifier", variant=variant, image_size=SIZE)
    assert isinstance(classifier, Classifier)
    return classifier


def normals(classifier: Classifier, images: torch.Tensor) -> list[float]:
    with torch.inference_mode():
        return [prediction["no_finding"].item() for prediction in classifier.eval()(images)]


def test_it_learns_which_of_the_images_is_normal() -> None:
    classifier = build()
    losses = train(classifier, 40, learning_rate=3e-3)
    assert losses[-1] < 0.5 * losses[0]
    first, second, normal = normals(classifier, mixed_batch()[0])
    assert max(first, second) < 0.3
    assert normal > 0.7


def test_the_loss_is_the_sum_of_its_detached_parts_and_reaches_every_parameter() -> None:
    classifier = build().train()
    losses = classifier(*mixed_batch())
    assert isinstance(losses, dict)
    assert (losses["findings"] + losses["normal"]).item() == pytest.approx(losses["loss"].item(), rel=1e-6)
    assert not losses["findings"].requires_grad
    losses["loss"].backward()
    assert [name for name, parameter in classifier.named_parameters() if parameter.grad is None] == []


def test_a_prediction_has_no_boxes_and_does_not_depend_on_the_other_images() -> None:
    classifier = build().eval()
    images, _ = mixed_batch()
    with torch.inference_mode():
        together, alone = classifier(images), classifier(images[1:2])
    assert isinstance(together, list)
    assert [prediction["boxes"].shape for prediction in together] == [(0, 4)] * 3
    assert [prediction["scores"].shape for prediction in together] == [(0,)] * 3
    assert all(prediction["labels"].dtype == torch.int64 for prediction in together)
    torch.testing.assert_close(together[1]["no_finding"], alone[0]["no_finding"], rtol=1e-4, atol=1e-5)


def test_what_it_is_taught_is_the_surest_box_of_each_finding() -> None:
    targets = targets_of([[[0, 0, 9, 9], [5, 5, 9, 9], [0, 0, 5, 5]], []], [[3, 3, 13], []])
    targets[0]["weights"] = torch.tensor([1 / 3, 2 / 3, 1.0])
    wanted = _soft_targets(targets, num_classes=14)
    expected = torch.zeros(2, 15)
    expected[0, 3], expected[0, 13], expected[1, 14] = 2 / 3, 1.0, 1.0
    torch.testing.assert_close(wanted, expected)


def test_a_missed_rare_finding_costs_more_than_a_missed_common_one() -> None:
    classifier = build().train()
    classifier.shares[:] = 0.5
    classifier.shares[1] = 0.01
    logits = torch.zeros(1, 15)
    rare, common = ({**targets_of([[[0, 0, 9, 9]]], [[label]])[0]} for label in (1, 3))
    losses = [
        classifier._losses(logits, _soft_targets([target], num_classes=14))["loss"].item() for target in (rare, common)
    ]  # type: ignore[list-item]
    assert losses[0] > 1.1 * losses[1]


def test_how_often_findings_come_is_learned_and_kept_with_the_weights() -> None:
    classifier = build().train()
    targets = mixed_batch()[1]
    for _ in range(200):
        classifier._losses(torch.zeros(3, 15), _soft_targets(targets, num_classes=14))
    assert classifier.state_dict()["shares"][[3, 8, 0, 14]].tolist() == pytest.approx([1 / 3] * 4, abs=0.01)
    assert classifier.shares[1].item() < 0.01


@pytest.mark.parametrize("variant", VARIANTS["classifier"])
def test_every_variant_is_built_and_takes_images_of_any_side(variant: str) -> None:
    with torch.device("meta"):  # shapes only
        classifier = build_detector("classifier", variant=variant, image_size=SIZE).eval()
        for side in (128, 160):
            assert classifier.head(classifier.network(torch.zeros(2, 3, side, side))).shape == (2, 15)


def test_weights_that_cannot_be_fetched_are_told_with_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(StoreError, match=r"classifier resnet18: cannot fetch https://.*no route to host.* put it into"):
        build_detector("classifier", variant="resnet18", image_size=SIZE, pretrained=True)


def test_published_weights_reach_all_but_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    torch.manual_seed(1)
    published = timm.create_model("resnet18", pretrained=False).state_dict()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: published)
    classifier = build_detector("classifier", variant="resnet18", image_size=SIZE, pretrained=True)
    assert torch.equal(classifier.state_dict()["network.conv1.weight"], published["conv1.weight"])
    first = classifier.first_weights
    assert first is not None
    assert first.source.startswith("ImageNet weights of timm (https://")
    assert {"head.weight", "head.bias"} <= set(first.new)
    assert first.unused == ("fc.weight", "fc.bias")
