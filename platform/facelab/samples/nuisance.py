"""The *known* nuisance of the sample faces: blur, downsampling by varied kernels, sensor noise, JPEG.

It plays the part of the real world, whose degradation nobody can write down: training never sees its parameters, only
images that it made of other identities; the demo measures how close the learnt degradation comes to it. The demo's
ceiling alone is trained on pairs of it.
"""

import numpy as np

from facelab.filters import convolve, interpolated, jpeg, quantised


def degrade(face: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 -> (H/scale, W/scale, 3) uint8, by one random draw of every nuisance.

    Strengths are in pixels of the *low-resolution* image, so they mean the same at any size.
    """
    image = face.astype(np.float64)
    image = _motion_blur(image, rng, scale) if rng.random() < 0.5 else _defocus(image, rng, scale)
    image = _downsample(image, scale, rng)
    image = _sensor_noise(image, rng)
    return jpeg(quantised(image), quality=int(rng.integers(40, 86)))


def _motion_blur(image: np.ndarray, rng: np.random.Generator, scale: int) -> np.ndarray:
    """A straight stroke of 0.8 to 2.2 LR pixels."""
    length, angle = rng.uniform(0.8, 2.2) * scale, rng.uniform(0, np.pi)
    radius = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * radius + 1,) * 2)
    for t in np.linspace(-length / 2, length / 2, 8 * radius + 1):
        y, x = radius + t * np.sin(angle), radius + t * np.cos(angle)
        y0, x0 = int(y), int(x)
        for dy in (0, 1):
            for dx in (0, 1):
                kernel[y0 + dy, x0 + dx] += (1 - abs(y - y0 - dy)) * (1 - abs(x - x0 - dx))
    return convolve(image, kernel)


def _defocus(image: np.ndarray, rng: np.random.Generator, scale: int) -> np.ndarray:
    """A disc of 0.4 to 1.2 LR pixels radius."""
    radius = rng.uniform(0.4, 1.2) * scale
    reach = int(np.ceil(radius)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return convolve(image, np.clip(radius + 0.5 - np.hypot(x, y), 0, 1))


def _downsample(image: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """By a box, triangle or cubic kernel, or by taking single pixels, as cheap cameras and web sites do."""
    mode = str(rng.choice(["area", "bilinear", "bicubic", "nearest"], p=[0.4, 0.25, 0.2, 0.15]))
    size = (image.shape[0] // scale, image.shape[1] // scale)
    return interpolated(image, size, mode, antialias=mode in ("bilinear", "bicubic"))


def _sensor_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shot noise that grows with brightness plus read noise, most of it common to the three channels."""
    sigma = rng.uniform(2, 9) * np.sqrt(0.35 + 0.65 * np.clip(image, 0, 255) / 255)
    grain = rng.normal(size=(*image.shape[:2], 1)) * 0.85 + rng.normal(size=image.shape) * 0.5
    return image + sigma * grain
