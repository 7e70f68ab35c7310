"""The detectors, behind one contract.

A detector is a `torch.nn.Module`:

    model.train(); losses = model(images, targets)   # {"loss": scalar with a gradient, its parts: detached scalars}
    model.eval();  predictions = model(images)       # list[Prediction], one per image

`images` is float32 (B, 3, S, S) in 0..1; a grey X-ray has three equal channels. `targets` is a list of `Target`, boxes
`xyxy` in pixels of `images`; a normal image has boxes of shape (0, 4). The parts add up to `"loss"`.
A `Prediction` has at most 100 boxes inside the image, by descending score, down to scores of about 0.001: average
precision wants them all. It does not depend on the other images of the batch, and nothing that is passed in is changed.

`pretrained` changes the first weights and nothing else, so a checkpoint always loads into a detector that was built
without it. All layers are trained, with ordinary BatchNorm. `images` may be of any side that is a multiple of
`vbd.config.size_multiple`, whatever `image_size` was.

A classifier is a detector that finds no boxes: its predictions carry `no_finding`, P(normal image).

`detector.backbone` is the part that was trained as a classifier: it can be frozen, or learn more slowly.
`detector.first_weights` says what it started from (`vbd.models.weights.FirstWeights`); None: random weights.
A target's `weights`, where it has them, say what each box counts in the loss: a box of weight 0 is neither learnt nor
learnt to be nothing. They do not change what a sum is divided by. The network's layout in memory
(`detector.to(memory_format=...)`) is that of its input too.
"""

from typing import TYPE_CHECKING, TypeAlias, assert_never

from vbd.config import VARIANTS, Anchors, Family, TrainConfig, anchors_of, size_multiple
from vbd.errors import InputError
from vbd.labels import NUM_FINDINGS

if TYPE_CHECKING:
    from vbd.models.classifier import Classifier
    from vbd.models.efficientdet import EfficientDet
    from vbd.models.torchvision_detectors import FasterRCNN, OneStage
    from vbd.models.yolox import YOLOX

    Detector: TypeAlias = FasterRCNN | OneStage | YOLOX | EfficientDet | Classifier


def build_detector(
    name: Family,
    *,
    variant: str,
    image_size: int,
    num_classes: int = NUM_FINDINGS,
    pretrained: bool = False,
    weights: str = "",
    anchors: Anchors = Anchors(),  # noqa: B008  # frozen
) -> "Detector":
    """A detector of a family and size (see `vbd.config.VARIANTS`) for square images of `image_size` pixels.

    With `pretrained` it starts from the weights that its library fetches, and a new head: of COCO, or where there are
    none of ImageNet; InputError when they cannot be had. `weights` is a file or a checkpoint folder to start from
    instead. Without both nothing is fetched.
    """
    if variant not in VARIANTS[name]:
        raise InputError(f"{name}: unknown variant {variant!r}; choose one of {', '.join(VARIANTS[name])}")
    multiple = size_multiple(name)
    if image_size <= 0 or image_size % multiple:
        raise InputError(f"{name}: image_size is {image_size}; want a multiple of {multiple}")
    if weights and pretrained:
        raise InputError(f"{name}: weights {weights} beside pretrained; start from one of them")
    detector = _build(
        name, variant, image_size=image_size, num_classes=num_classes, anchors=anchors, pretrained=pretrained
    )
    if weights:
        from vbd.models.weights import load_file

        detector.first_weights = load_file(detector, weights)
    return detector


def _build(
    name: Family, variant: str, *, image_size: int, num_classes: int, anchors: Anchors, pretrained: bool
) -> "Detector":
    match name:  # each library takes seconds to import: only the one that is asked for is loaded
        case "faster_rcnn":
            from vbd.models.torchvision_detectors import FasterRCNN

            return FasterRCNN(
                variant, image_size=image_size, num_classes=num_classes, anchors=anchors, pretrained=pretrained
            )
        case "retinanet" | "fcos":
            from vbd.models.torchvision_detectors import OneStage

            return OneStage(
                name, variant, image_size=image_size, num_classes=num_classes, anchors=anchors, pretrained=pretrained
            )
        case "yolox":
            from vbd.models.yolox import YOLOX

            return YOLOX(variant, num_classes=num_classes, pretrained=pretrained)
        case "efficientdet":
            from vbd.models.efficientdet import EfficientDet

            return EfficientDet(
                variant, image_size=image_size, num_classes=num_classes, anchors=anchors, pretrained=pretrained
            )
        case "classifier":
            from vbd.models.classifier import Classifier

            return Classifier(variant, num_classes=num_classes, pretrained=pretrained)
        case _:
            assert_never(name)


def detector_of(config: TrainConfig, *, with_first_weights: bool) -> "Detector":
    """The detector that a config describes; with the weights it starts from, or random ones for a checkpoint to replace."""
    return build_detector(
        config.detector,
        variant=config.variant,
        image_size=config.image_size,
        pretrained=config.pretrained and with_first_weights,
        weights=config.weights if with_first_weights else "",
        anchors=anchors_of(config),
    )
