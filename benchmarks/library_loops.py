"""Training loops in the manner of the libraries, of their own pieces: what ours is compared with.

Each `train_*` builds the library's own detector with random weights and trains it with the library's own augmentation,
optimiser, schedule and running mean; the recipes are those of torchvision's `references/detection`, of the trainer in
the package yolox, and of the training script of effdet. What cannot stay as it is in some hundred steps is said where it changes.
"""

import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, MultiStepLR
from torch.utils.data import DataLoader, RandomSampler

from vbd.config import Family
from vbd.labels import NUM_FINDINGS
from vbd.models.dense import select
from vbd.records import Prediction, Row

Predict = Callable[[Tensor], list[Prediction]]  # images (B, 3, S, S) of 0..1
Sample = tuple[Tensor, dict[str, Tensor]]
# Warm-up of the one-stage detectors, in steps: as long as ours. The libraries' five epochs are all of a short run.
WARMUP_STEPS = 50
# Regions of each image that Faster R-CNN learns from. torchvision's 512 cost four times the rest of the step on a CPU; ours
# takes 32 at this size.
_REGIONS = 64


@dataclass(frozen=True)
class Recipe:
    """What is chosen for a library's loop; everything else is its own."""

    learning_rate: float  # for the whole batch
    augmented: bool  # with the library's own augmentation; without it images are only mirrored
    steps: int
    batch_size: int = 8
    seed: int = 0


def train_by_library(family: Family, rows: Sequence[Row], recipe: Recipe) -> Predict:
    """The detector of a family, trained by its library's loop; FloatingPointError when the loss is no number."""
    torch.manual_seed(recipe.seed)
    random.seed(recipe.seed)  # yolox and effdet augment with Python's and numpy's own generators
    np.random.seed(recipe.seed)
    match family:
        case "faster_rcnn":
            return train_torchvision(rows, recipe)
        case "yolox":
            return train_yolox(rows, recipe)
        case "efficientdet":
            return train_effdet(rows, recipe)
    raise ValueError(f"no library's loop for {family}")


def check_finite(loss: Tensor) -> None:
    """As torchvision's loop does at every step."""
    if not math.isfinite(loss.item()):
        raise FloatingPointError("the loss is no number")


def rgb(row: Row) -> np.ndarray:
    """uint8 (H, W, 3), a copy that a library may draw on."""
    image = row["image"]
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()


def to_sample(row: Row) -> Sample:
    """An image (3, S, S) of 0..1 and a target with labels from 1, as torchvision's detectors want them."""
    pixels = torch.from_numpy(rgb(row)).permute(2, 0, 1).float().div_(255)
    return pixels, {"boxes": torch.from_numpy(row["boxes"]), "labels": torch.from_numpy(row["labels"]) + 1}


def lists(samples: Sequence[Sample]) -> tuple[tuple[Tensor, ...], tuple[dict[str, Tensor], ...]]:
    """Collates to lists of images and targets: detectors of torchvision take images of any size."""
    images, targets = zip(*samples, strict=True)
    return images, targets


# ---------------------------------------------------------------------------------------------------------- torchvision


class TorchvisionLoop:
    """SGD with momentum, a linear warm-up over the first epoch, and steps down at 16 and 22 of 26 parts of the run."""

    def __init__(self, model: nn.Module, *, learning_rate: float, epoch_steps: int, steps: int):
        self.model = model.train()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-4)
        warmup = LinearLR(self.optimizer, start_factor=1 / 1000, total_iters=max(1, min(1000, epoch_steps - 1)))
        milestones = [round(steps * part / 26) for part in (16, 22)]
        self.schedules = (warmup, MultiStepLR(self.optimizer, milestones=milestones, gamma=0.1))

    def step(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> None:
        """One step on lists of images and targets."""
        losses = self.model(list(images), list(targets))
        loss = torch.stack(list(losses.values())).sum()
        check_finite(loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for schedule in self.schedules:
            schedule.step()


def train_torchvision(rows: Sequence[Row], recipe: Recipe) -> Predict:
    """Faster R-CNN with MobileNetV3 as torchvision builds it for small images, which it enlarges to 320 pixels itself."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_FINDINGS + 1, box_batch_size_per_image=_REGIONS
    )
    epoch = len(rows) // recipe.batch_size
    loop = TorchvisionLoop(model, learning_rate=recipe.learning_rate, epoch_steps=epoch, steps=recipe.steps)
    count = recipe.steps * recipe.batch_size
    sampler: Any = RandomSampler(rows, num_samples=count)
    loader: Any = DataLoader(
        _Mirrored(rows),  # type: ignore[arg-type]  # a sequence
        batch_size=recipe.batch_size,
        sampler=sampler,
        collate_fn=lists,
    )
    for images, targets in loader:
        loop.step(images, targets)
    # Average precision wants the boxes of low scores too, as ours gives them.
    model.roi_heads.score_thresh, model.rpn.score_thresh = 1e-3, 0.0
    model.eval()

    def predict(images: Tensor) -> list[Prediction]:
        return [found | {"labels": found["labels"] - 1} for found in model(list(images))]

    return predict


class _Mirrored:
    """Rows as samples, half of them mirrored: all the augmentation of torchvision's plain recipe."""

    def __init__(self, rows: Sequence[Row]):
        from torchvision.transforms import v2

        self.rows, self.flip = rows, v2.RandomHorizontalFlip(0.5)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        from torchvision import tv_tensors

        image, target = to_sample(self.rows[index])
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[-2:])  # type: ignore[call-arg]
        image, boxes = self.flip(tv_tensors.Image(image), boxes)
        return image.as_subclass(Tensor), target | {"boxes": boxes.as_subclass(Tensor)}


# ---------------------------------------------------------------------------------------------------------------- yolox


class YoloxLoop:
    """The step of the package's trainer: SGD by its groups, its schedule and its running mean of the weights."""

    def __init__(self, config: Any, *, learning_rate: float, batch_size: int, steps: int):
        from yolox.utils import ModelEMA

        # The assignment uses the old spelling of autocast, on every image of every step.
        warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp\.autocast", category=FutureWarning)
        config.basic_lr_per_img = learning_rate / batch_size
        # Its 300 epochs in so many steps: the last 15 are without mosaic and with the L1 loss.
        epoch_steps = steps / config.max_epoch
        config.warmup_epochs = WARMUP_STEPS / epoch_steps
        self.model = config.get_model()
        self.optimizer = config.get_optimizer(batch_size)
        self.schedule = config.get_lr_scheduler(learning_rate, epoch_steps)
        self.mean = ModelEMA(self.model, 0.9998)
        self.plain_from = round(steps - config.no_aug_epochs * epoch_steps)
        self.done = 0

    def step(self, pixels: Tensor, targets: Tensor) -> None:
        """One step on pixels of 0..255 (B, 3, S, S) and padded targets (B, n, 5): class, centre and size."""
        loss = self.model(pixels, targets)["total_loss"]
        check_finite(loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.mean.update(self.model)
        self.done += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.update_lr(self.done)


def yolox_config(image_size: int) -> Any:
    """The package's own YOLOX-Nano for 14 classes."""
    from yolox.config import YoloxConfig

    config: Any = YoloxConfig.get_named_config("yolox_nano")
    config.num_classes = NUM_FINDINGS
    config.input_size = (image_size, image_size)
    return config


def train_yolox(rows: Sequence[Row], recipe: Recipe) -> Predict:
    """YOLOX-Nano. Its random input sizes are left out: they need a GPU in the package."""
    config = yolox_config(rows[0]["image"].shape[0])
    config.seed, config.data_num_workers = recipe.seed, 0
    if not recipe.augmented:
        config.mosaic_prob, config.hsv_prob = 0.0, 0.0
    config.dataset = _yolox_dataset(rows, config.input_size)
    loop = YoloxLoop(config, learning_rate=recipe.learning_rate, batch_size=recipe.batch_size, steps=recipe.steps)
    loader = config.get_data_loader(recipe.batch_size, False)
    for step, (pixels, targets, _, _) in zip(range(recipe.steps), loader, strict=False):
        if step == loop.plain_from:
            loader.close_mosaic()
            loop.model.head.use_l1 = True
        loop.step(pixels, targets)
    model = loop.mean.ema.eval()

    def predict(images: Tensor) -> list[Prediction]:
        return [_from_yolox(found, images.shape[-1]) for found in model(images * 255)]

    return predict


def _from_yolox(decoded: Tensor, side: int) -> Prediction:
    """Decoded outputs (A, 5 + C) to boxes, by the same suppression as ours."""
    centres, sides = decoded[:, :2], decoded[:, 2:4]
    boxes_xyxy = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    return select(boxes_xyxy, decoded[:, 4:5] * decoded[:, 5:], (side, side))


def _yolox_dataset(rows: Sequence[Row], input_size: tuple[int, int]) -> Any:
    """Rows as the package's data set, which its mosaic draws from."""
    from yolox.data.datasets import Dataset

    class RowsForYolox(Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(rows)

        def load_anno(self, index: int) -> np.ndarray:
            row = rows[index]
            return np.column_stack([row["boxes"], row["labels"]]).astype(np.float64)

        def pull_item(self, index: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int], np.ndarray]:
            return rgb(rows[index]), self.load_anno(index), input_size, np.array([int(index)])

    return RowsForYolox(input_size)


# --------------------------------------------------------------------------------------------------------------- effdet


def train_effdet(rows: Sequence[Row], recipe: Recipe) -> Predict:
    """EfficientDet-Lite0 with the package's training bench, and timm's optimiser, cosine and running mean."""
    # timm, which effdet is made of, scripts some activations when it is imported.
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
    import effdet
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV2

    side = rows[0]["image"].shape[0]
    bench = effdet.create_model(
        "tf_efficientdet_lite0",
        bench_task="train",
        num_classes=NUM_FINDINGS,
        pretrained_backbone=False,
        image_size=(side, side),
        bench_labeler=True,
    ).train()
    optimizer = create_optimizer_v2(bench, opt="momentum", lr=recipe.learning_rate, weight_decay=4e-5, momentum=0.9)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=recipe.steps,
        lr_min=1e-5,
        warmup_t=WARMUP_STEPS,
        warmup_lr_init=1e-4,
        t_in_epochs=False,
    )
    # Its decay of 0.9998 would leave nine tenths of the random start after some hundred steps.
    mean = ModelEmaV2(bench, decay=0.98)
    config = bench.config
    for step, (pixels, target) in enumerate(_effdet_batches(rows, recipe, config)):
        schedule.step_update(step)
        loss = bench(_normalised(pixels, config), target)["loss"]
        check_finite(loss)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(bench.parameters(), 10.0)
        optimizer.step()
        mean.update(bench)
    network = effdet.DetBenchPredict(mean.module.model).eval()
    return lambda images: [_from_effdet(found) for found in network(_normalised(images * 255, config))]


def _normalised(pixels: Tensor, config: Any) -> Tensor:
    """Pixels of 0..255 by the mean and deviation of the package's model."""
    mean, std = (255 * torch.tensor(value).view(1, 3, 1, 1) for value in (tuple(config.mean), tuple(config.std)))
    return (pixels.float() - mean) / std


def _from_effdet(found: Tensor) -> Prediction:
    """Rows (100, 6) of box, score and class from 1, padded with zeros, to boxes."""
    found = found[found[:, 4] > 0]
    return {"boxes": found[:, :4], "scores": found[:, 4], "labels": found[:, 5].long() - 1}


def _effdet_batches(rows: Sequence[Row], recipe: Recipe, config: Any) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    from effdet.data.loader import DetectionFastCollate

    count = recipe.steps * recipe.batch_size
    loader: Any = DataLoader(
        _EffdetRows(rows, augmented=recipe.augmented, config=config),  # type: ignore[arg-type]
        batch_size=recipe.batch_size,
        sampler=RandomSampler(rows, num_samples=count),
        collate_fn=DetectionFastCollate(),
    )
    return iter(loader)


class _EffdetRows:
    """Rows after the package's transforms: mirrored, and with its augmentation resized by 0.1 to 2."""

    def __init__(self, rows: Sequence[Row], *, augmented: bool, config: Any):
        from effdet.data import transforms

        side = config.image_size[0]
        plain = [transforms.RandomFlip(prob=0.5), transforms.ResizePad(side), transforms.ImageToNumpy()]
        self.rows = rows
        self.transform = (
            transforms.transforms_coco_train(side, use_prefetcher=True, mean=tuple(config.mean), std=tuple(config.std))
            if augmented
            else transforms.Compose(plain)
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        from PIL import Image

        row = self.rows[index]
        target = {"bbox": row["boxes"][:, [1, 0, 3, 2]].astype(np.float32), "cls": row["labels"] + 1}
        return self.transform(Image.fromarray(rgb(row)), target)
