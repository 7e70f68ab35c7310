"""Detections of one or many checkpoints in a folder of images, or in a part of a prepared dataset."""

import _environment  # noqa: F401 # isort: skip

import functools
from typing import Annotated, Literal

import tyro

from vbd.cli import Location, main
from vbd.cluster.connect import connect
from vbd.config import Device, Processes
from vbd.config.checked import Share
from vbd.console.last_line import tell
from vbd.errors import InputError
from vbd.storage import shown
from vbd.storage.outputs import check_outputs


def predict(
    *,
    images: Location,
    output: Location,
    checkpoint: Annotated[tuple[Location, ...], tyro.conf.UseAppendAction] = (),
    run: Location = "",
    ensemble: Location = "",
    part: str = "test",
    augmentation: Literal["none", "flip", "scale", "flip_scale"] = "none",
    coco: Location = "",
    overlay: Location = "",
    dicom_sr: Location = "",
    score_threshold: Share = 0.3,
    workers: Processes | None = None,
    device: Device = "auto",
    overwrite: bool = False,
) -> None:
    """Run detectors over images on all workers of the cluster. For research; not for clinical use.

    The same command goes on after a stop. docs/predict.md tells more.

    Args:
        images: Folder of DICOM, PNG or JPEG files, or a prepared dataset.
        output: Folder for detections.parquet (boxes in original pixels), or one such file for each of several checkpoints, and
            rejects.csv.
        checkpoint: Folder of a checkpoint (config.json, model.pt); may be given again.
        run: Instead: folder of a search or of jobs/train.py; all the members it kept predict.
        ensemble: Instead: run folder in which jobs/ensemble.py has made one; ensemble.parquet holds what it finds.
        part: Of a prepared dataset: test, train or a fold number.
        augmentation: Test-time augmentation: the mirror image, smaller scales (0.83 and 0.67), or both, fused.
        coco: Also write COCO results to this JSON file.
        overlay: Also draw the boxes on each image, as PNG files in this folder.
        dicom_sr: Also write a DICOM structured report for each raw DICOM file into this folder.
        score_threshold: Least score of a box that is drawn or reported.
        workers: Detector processes; by default one for each core or GPU.
        device: Where they run.
        overwrite: Replace other predictions in the output folder.
    """
    from vbd.config import RunOptions
    from vbd.ensemble.apply import ensemble_checkpoints, write_ensemble
    from vbd.predict.outputs import Extras
    from vbd.predict.request import Request, name_checkpoints, write_predictions

    extras = Extras(coco=coco, overlay=overlay, dicom_sr=dicom_sr, score_threshold=score_threshold, part=part)
    if ensemble and (checkpoint or run):
        raise InputError("--ensemble has members of its own; leave --checkpoint and --run out")
    checkpoints = ensemble_checkpoints(ensemble) if ensemble else name_checkpoints(checkpoint, run)
    names = ["ensemble"] if ensemble else list(checkpoints)
    check_outputs(
        extras.places(output, names),
        reads={"--images": images} | {f"--checkpoint {folder}": folder for folder in checkpoint},
        beside={"--run": run, "--ensemble": ensemble},
    )
    request = Request(checkpoints, images, output, part=part, augmentation=augmentation, extras=extras)
    write = functools.partial(write_ensemble, ensemble) if ensemble else write_predictions
    found, refused = write(
        request, options=RunOptions(device=device), workers=workers, overwrite=overwrite, connect=connect
    )
    tell(images=found, refused=refused)
    print(f"{shown(output)}: detections in {found} images, {refused} refused. For research; not for clinical use.")


if __name__ == "__main__":
    main(predict)
