"""Writes the synthetic chest X-ray data set."""

import _environment  # noqa: F401 # isort: skip

from typing import Annotated, Any, Literal

from vbd.cli import Location, main
from vbd.config import Processes, Seed
from vbd.config.checked import Share, between
from vbd.console.last_line import tell
from vbd.storage import shown
from vbd.storage.outputs import check_outputs


def sample(
    *,
    output: Location = "data/phantom",
    images: Annotated[int, between(1, 1_000_000)] = 600,
    test_images: Annotated[int, between(0, 1_000_000)] = 120,
    format: Literal["dicom", "png"] = "dicom",
    size: Annotated[int, between(64, 8192)] = 512,
    abnormal_share: Share = 0.3,
    seed: Seed = 0,
    processes: Processes = 1,
) -> None:
    """Writes a SYNTHETIC chest X-ray data set in the competition's own layout: no download, no patients.

    Args:
        output: Folder to write; must be new, empty, or an older one of these.
        images: Images of the train part.
        test_images: Images of the test part.
        format: DICOM with real archives' oddities, or 8-bit PNG.
        size: Median height, pixels.
        abnormal_share: Share of images that hold findings, 0 to 1.
        seed: The same seed gives the same bytes.
        processes: Processes that draw at the same time.
    """
    check_outputs({"--output": (output, "folder")})
    from vbd.data.phantom.write import write_phantom

    options: dict[str, Any] = {"size": size, "abnormal_share": abnormal_share, "seed": seed, "processes": processes}
    counts = write_phantom(output, images=images, test_images=test_images, image_format=format, **options)
    tell(images=counts.images, test_images=counts.test_images)
    parts = f"{counts.images} train ({counts.abnormal} abnormal, {counts.readings} boxes), {counts.test_images} test"
    print(f"{shown(output)}: {parts} images, all SYNTHETIC")


if __name__ == "__main__":
    main(sample)
