"""Changes of brightness, all bounded: in a chest film the opacity is the finding.

uint8 in and out: (H, W), or (H, W, 3) whose first channel is the film and whose others change along with it.
"""

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

CLAHE_CLIP_LIMIT = 2.0
CLAHE_TILES = (8, 8)


def clahe(image: Image, *, strength: float) -> Image:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994), blended into the picture by `strength`."""
    import cv2

    equalise = cv2.createCLAHE(CLAHE_CLIP_LIMIT, CLAHE_TILES).apply
    equalised = equalise(image) if image.ndim == 2 else cv2.merge([equalise(channel) for channel in cv2.split(image)])
    return equalised if strength >= 1 else cv2.addWeighted(equalised, strength, image, 1 - strength, 0)


def brightness_contrast(image: Image, *, brightness: float, contrast: float) -> Image:
    """Contrast about the film's mean grows by a share, and the brightness by a share of white."""
    import cv2

    mean = float((image if image.ndim == 2 else image[..., 0]).mean())
    levels = (np.arange(256) - mean) * (1 + contrast) + mean + 255 * brightness
    return cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def blur(image: Image, *, sigma: float) -> Image:
    """Gaussian blur; `sigma` in pixels."""
    import cv2

    return cv2.GaussianBlur(image, (0, 0), sigma)


def noise(image: Image, *, sigma: float, rng: np.random.Generator) -> Image:
    """Gaussian noise, the same in every channel; `sigma` in grey levels of 255."""
    grain = rng.standard_normal(image.shape[:2], np.float32) * np.float32(sigma)
    noisy = image + (grain if image.ndim == 2 else grain[..., None])
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
