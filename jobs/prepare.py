"""Raw chest X-rays to a prepared dataset."""

from typing import Literal

from vbd.cli import connect, main


def prepare(
    *,
    source: str,
    output: str,
    image_size: int = 512,
    resize: Literal["stretch", "letterbox"] = "stretch",
    fusion: Literal["wbf", "union"] = "wbf",
    fusion_iou: float = 0.4,
    folds: int = 5,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Turn raw X-rays (Kaggle's csv with DICOM or PNG, YOLO labels, COCO JSON) into a prepared dataset.

    Args:
        source: Folder of the raw data.
        output: Folder of the prepared dataset. An unfinished one is gone on with.
        image_size: Side of the square prepared images, pixels.
        resize: stretch fills the square, letterbox keeps the aspect ratio.
        fusion: How the boxes of several readers become one set: weighted box fusion, or all of them.
        fusion_iou: Two boxes of a class that overlap more are the same finding.
        folds: Number of folds for validation.
        seed: Seed of the folds.
        overwrite: Replace another dataset that lies in the output folder.
    """
    from vbd.config import PrepareConfig
    from vbd.data.prepare import prepare as run

    config = PrepareConfig(image_size, resize, fusion, fusion_iou, folds, seed)
    connect()
    dataset = run(source, output, config, overwrite=overwrite)
    counts = ", ".join(f"{name} {value}" for name, value in dataset.counts.items() if isinstance(value, int))
    print(f"{output}: {counts}" + (" (synthetic)" if dataset.synthetic else ""))


if __name__ == "__main__":
    main(prepare)
