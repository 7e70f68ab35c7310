import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vbd.boxes import to_original
from vbd.config import TrainConfig
from vbd.data.batches.make import Images
from vbd.data.prepared import open_dataset
from vbd.records import Prediction
from vbd.training.validation import detect


class _Finder(nn.Module):
    """Finds one box in every image, which grows with the image's brightness; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = list[Tensor]()

    def forward(self, images: Tensor) -> list[Prediction]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(images)
        return [
            Prediction(
                boxes=torch.tensor([[8.0, 16.0, 8 + 32 * image.mean().item(), 48.0]]),
                scores=torch.tensor([0.5], dtype=torch.bfloat16),
                labels=torch.tensor([3]),
            )
            for image in images
        ]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_boxes_come_in_original_pixels_and_in_the_order_that_was_asked_for(batch_size: int, prepared: str) -> None:
    dataset, finder = open_dataset(prepared), _Finder()
    images = Images(dataset, 0, image_size=64)
    indices = np.arange(len(images))[::-3]
    config, device = TrainConfig(image_size=64), torch.device("cpu")
    found = detect(finder.train(), images, indices, batch_size=batch_size, device=device, config=config)
    assert [each.image_id for each in found] == [images.image_ids[index] for index in indices]
    assert max(map(len, finder.seen)) == min(batch_size, len(indices))
    for each, index in zip(found, indices, strict=True):
        row = images[index]
        height, width = map(int, row["original_hw"])
        right = 8 + 32 * (row["image"] / np.float32(255)).mean()
        wanted = to_original(
            np.array([[8, 16, right, 48]], np.float32), original_hw=(height, width), image_size=64, mode="stretch"
        )
        np.testing.assert_allclose(each.boxes, wanted, rtol=1e-4)
        assert each.scores.tolist() == [0.5]
        assert each.labels.tolist() == [3]
        assert each.scores.dtype == np.float32


def test_no_images_have_no_detections(prepared: str) -> None:
    images = Images(open_dataset(prepared), 0, image_size=64)
    none, device = np.zeros(0, np.int64), torch.device("cpu")
    assert detect(_Finder(), images, none, batch_size=4, device=device, config=TrainConfig()) == []
