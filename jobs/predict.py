"""Detections of one checkpoint in a folder of images, or in a part of a prepared dataset."""

from typing import Literal

from vbd.cli import connect, main


def predict(
    *,
    checkpoint: str,
    images: str,
    output: str,
    part: str = "test",
    augmentation: Literal["none", "flip"] = "none",
    workers: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Run a detector over images on all workers of the cluster. For research; not for clinical use.

    Args:
        checkpoint: Folder of a checkpoint (config.json, model.pt).
        images: Folder of DICOM, PNG or JPEG files, or a prepared dataset.
        output: Folder for detections.parquet (boxes in original pixels) and rejects.csv.
        part: Of a prepared dataset: test, train or a fold number.
        augmentation: Test-time augmentation; flip also looks at the mirror image.
        workers: Detector processes; by default one for each core or GPU.
        device: Where they run.
    """
    from vbd.config import RunOptions
    from vbd.ensemble.predict import write_predictions

    connect()
    found, refused = write_predictions(
        checkpoint,
        images,
        output,
        part=part,
        augmentation=augmentation,
        workers=workers,
        options=RunOptions(device=device),
    )
    print(f"{output}: detections of {found} images, {refused} refused. For research; not for clinical use.")


if __name__ == "__main__":
    main(predict)
