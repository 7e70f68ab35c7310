"""The synthetic data that the benchmarks of training share: what is measured on it says nothing about medicine."""

from pathlib import Path

import numpy as np

from vbd.config import PrepareConfig
from vbd.data.batches.make import Images
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.records import Row


def phantom(folder: Path, *, images: int, size: int, film: int) -> PreparedDataset:
    """A prepared dataset of synthetic films of `film` pixels at `size` pixels; made once in a folder."""
    import ray

    from vbd.data.phantom.write import write_phantom
    from vbd.data.prepare.dataset import prepare

    raw, prepared = folder / "phantom", folder / f"phantom-{size}"
    if (prepared / "dataset.json").exists():
        return open_dataset(str(prepared))
    write_phantom(raw, images=images, test_images=0, size=film, processes=2)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    dataset = prepare(str(raw), str(prepared), PrepareConfig(image_size=size))
    ray.shutdown()
    return dataset


def training_rows(dataset: PreparedDataset, *, image_size: int, without_fold: int, normal_share: float) -> list[Row]:
    """The training images of the other folds, decoded: all that hold a finding, and so many normal ones.

    The libraries' loops know no share of normal images: a list with that share in it puts them on an equal footing.
    """
    images = Images(dataset, "train", image_size=image_size, without_fold=without_fold)
    is_normal = np.array([not labels for labels in images.label_sets])
    abnormal, normal = np.flatnonzero(~is_normal), np.flatnonzero(is_normal)
    count = round(len(abnormal) * normal_share / (1 - normal_share))
    normal = np.random.default_rng(0).permutation(normal)[:count]
    return [images[int(index)] for index in np.concatenate([abnormal, normal])]
