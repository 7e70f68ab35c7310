"""Which images a submission must hold."""

from dataclasses import dataclass

from vbd.data.parts import fold_of_image, parts_holding
from vbd.data.prepared import Part, PreparedDataset, image_sizes, sample_submission_ids
from vbd.submission.check import known_id, read_sheet


@dataclass(frozen=True)
class Asked:
    """What a submission is for."""

    parts: tuple[Part, ...]
    image_ids: list[str]  # that it must hold
    sizes: dict[str, tuple[int, int]]  # original (height, width) of each image of the parts


def asked_of(path: str, dataset: PreparedDataset, part: Part | None) -> Asked:
    """What the submission in a file is for: the named part, or else that of its images, or else the test part."""
    parts: tuple[Part, ...] = () if part is None else (part,)
    if not parts:
        known = fold_of_image(dataset)
        ids = [known_id(line.image_id, known) or line.image_id for line in read_sheet(path, known).lines]
        parts = parts_holding(ids, dataset, name=path) or ("test",)
    sizes = {image_id: hw for each in parts for image_id, hw in image_sizes(dataset, each).items()}
    return Asked(parts, sample_submission_ids(dataset) if parts == ("test",) else sorted(sizes), sizes)
