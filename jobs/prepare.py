"""Raw chest X-rays to a prepared dataset, or to an augmented one to hand to others."""

import _environment  # noqa: F401 # isort: skip

from typing import Literal

from vbd.cli import Location, main
from vbd.cluster.connect import connect
from vbd.config import Copies, Folds, Overlap, Readers, Seed, Side
from vbd.config.checked import Count
from vbd.storage.outputs import check_outputs


def prepare(
    *,
    source: Location,
    output: Location,
    layout: Literal["auto", "competition", "yolo", "coco"] = "auto",
    image_size: Side = 512,
    resize: Literal["stretch", "letterbox"] = "stretch",
    image_format: Literal["png", "png16", "jpeg"] = "png",
    channels: Literal["grey", "composed"] = "grey",
    fusion: Literal["wbf", "nmw", "nms", "mean", "union"] = "wbf",
    fusion_iou: Overlap = 0.4,
    min_readers: Readers = 1,
    readers: tuple[str, ...] = (),
    without_readers: tuple[str, ...] = (),
    folds: Folds = 5,
    duplicates: Literal["near", "exact"] = "near",
    seed: Seed = 0,
    policy: Literal["A", "B", "C", "D", "E"] | None = None,
    copies: Copies | None = None,
    max_rejects: Count | None = None,
    overwrite: bool = False,
) -> None:
    """Turn raw X-rays (Kaggle's csv with DICOM or PNG, YOLO labels, COCO JSON) into a prepared dataset.

    Run again after a stop or a change of the raw files: only what is missing or has changed is done. With --policy it
    writes an augmented COCO dataset to hand to others instead; training itself augments as it goes and needs none.

    Args:
        source: Folder of the raw data; with --policy also a prepared dataset.
        output: Folder of the result.
        layout: How the raw data are laid out, where it is not to be guessed.
        image_size: Side of the square prepared images, pixels.
        resize: stretch fills the square, letterbox keeps the aspect ratio.
        image_format: 8-bit PNG, 16-bit PNG or JPEG.
        channels: grey is the film as a viewer shows it; composed adds its CLAHE and its edges as two more channels.
        fusion: How the boxes of several readers become one set: weighted box fusion, non-maximum weighted, non-maximum
            suppression, the mean of overlapping boxes, or all of them as they are.
        fusion_iou: Two boxes of a class that overlap more are the same finding.
        min_readers: Leave out findings that fewer readers drew.
        readers: Hear only these readers (R8 R9).
        without_readers: Do not hear these.
        folds: Number of folds for validation.
        duplicates: near keeps images that look alike in one fold; exact only equal files, without looking at pixels.
        seed: Seed of the folds and of the augmentation.
        policy: Write the augmented dataset of this policy: A nothing, B turns and flips, C mixing and CLAHE too, D C for
            rare findings, E the competitors' recipe.
        copies: Pictures made of each abnormal image, itself included; by default the policy's own (1, 4, 7, 1 or 7, 4).
        max_rejects: Fail when more files and rows than this cannot be used.
        overwrite: Replace a dataset of other images or options in the output folder.
    """
    check_outputs({"--output": (output, "folder")}, reads={"--source": source})
    from vbd.config import PrepareConfig
    from vbd.data.prepare.augmented import prepare_and_materialise

    config = PrepareConfig(
        image_size=image_size,
        resize=resize,
        image_format=image_format,
        channels=channels,
        fusion=fusion,
        fusion_iou=fusion_iou,
        min_readers=min_readers,
        readers=readers,
        without_readers=without_readers,
        num_folds=folds,
        duplicates=duplicates,
        seed=seed,
    )
    done = prepare_and_materialise(
        source,
        output,
        config,
        policy=policy,
        copies=copies,
        layout=layout,
        overwrite=overwrite,
        max_rejects=max_rejects,
        connect=connect,
    )
    print(done)


if __name__ == "__main__":
    main(prepare)
