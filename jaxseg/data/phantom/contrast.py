"""What a scanner makes of a head: tissue contrast in each channel, texture, bias field, blur, noise. Called by `case.py`."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from jaxseg.data.phantom.anatomy import INDEX, TISSUES
from jaxseg.data.phantom.shapes import Array, Lattice, smooth_noise

CHANNELS = ("T1", "T1c", "T2", "FLAIR")

# Signal relative to the brightest healthy tissue at 1.5-3 T, by eye from textbook images: T1, T1c, T2, FLAIR.
SIGNAL = {
    "air": (0.01, 0.01, 0.01, 0.01),
    "csf": (0.17, 0.18, 1.00, 0.12),
    "grey": (0.50, 0.53, 0.60, 0.62),
    "white": (0.72, 0.74, 0.42, 0.50),
    "deep": (0.56, 0.59, 0.53, 0.58),
    "pallidum": (0.65, 0.68, 0.36, 0.47),
    "stem": (0.64, 0.66, 0.48, 0.53),
    "fat": (0.98, 1.00, 0.72, 0.66),
    "skin": (0.50, 0.66, 0.45, 0.48),
    "bone": (0.07, 0.08, 0.06, 0.06),
    "marrow": (0.50, 0.55, 0.36, 0.34),
    "muscle": (0.40, 0.52, 0.26, 0.32),
    "vessel": (0.30, 1.20, 0.15, 0.20),
    "choroid": (0.40, 1.05, 0.80, 0.50),
    "dura": (0.42, 0.90, 0.25, 0.32),
    "eye": (0.18, 0.19, 1.05, 0.25),
    "mucosa": (0.45, 0.95, 0.90, 0.72),
    "hyperintensity": (0.60, 0.62, 0.72, 0.92),
    "necrosis": (0.30, 0.32, 0.88, 0.52),
    "oedema": (0.50, 0.52, 0.82, 0.93),
    "enhancing": (0.47, 0.52, 0.64, 0.76),
}
ENHANCED = 0.75  # what full enhancement adds to the T1c signal of enhancing tumour


@dataclass(frozen=True)
class Scanner:
    """How one machine renders tissue: one number per channel (T1, T1c, T2, FLAIR) in each tuple."""

    name: str
    gain: tuple[float, float, float, float]  # stored value of signal 1
    gamma: tuple[float, float, float, float]  # contrast: signal ** gamma
    noise: tuple[float, float, float, float]  # standard deviation of each quadrature channel, relative to signal 1
    blur_mm: tuple[float, float, float, float]
    bias: float  # log-amplitude of the bias field
    jitter: float  # how far each tissue strays from the table


SCANNERS = (
    Scanner("alpha", (500, 560, 640, 450), (1.0, 1.0, 1.0, 1.0), (0.018, 0.018, 0.022, 0.025), (0, 0, 0, 0.5), 0.10, 0.03),
    Scanner("beta", (320, 350, 420, 300), (1.3, 1.25, 0.85, 1.15), (0.03, 0.03, 0.03, 0.04), (0.5, 0.5, 0.7, 0.9), 0.20, 0.04),
    Scanner("gamma", (1300, 1250, 900, 1050), (0.8, 0.85, 1.25, 0.9), (0.012, 0.014, 0.02, 0.02), (0, 0, 0.4, 0.4), 0.25, 0.03),
    Scanner("delta", (150, 160, 210, 140), (1.1, 1.0, 1.1, 0.8), (0.045, 0.045, 0.04, 0.05), (0.8, 0.8, 0.6, 0.8), 0.15, 0.05),
)


def scanner_named(name: str) -> Scanner:
    """The scanner of that name; KeyError if there is none."""
    return {scanner.name: scanner for scanner in SCANNERS}[name]


def signals(rng: np.random.Generator, scanner: Scanner, enhancement: float) -> Array:
    """(4, tissue) float32: the signal of each tissue on this machine, on this day."""
    table = np.array([SIGNAL[tissue] for tissue in TISSUES]).T
    table = table * np.exp(rng.normal(0, scanner.jitter, table.shape))
    table[1, INDEX["enhancing"]] += ENHANCED * enhancement
    weaker = 0.7 + 0.5 * rng.uniform()  # dose and timing of the contrast agent change vessels and mucosa as well
    for tissue in ("vessel", "choroid", "dura", "mucosa"):
        table[1, INDEX[tissue]] *= weaker
    return (table ** np.array(scanner.gamma)[:, None]).astype(np.float32)


def render(rng: np.random.Generator, scanner: Scanner, fractions: Array, lattice: Lattice, enhancement: float) -> Array:
    """(4, x, y, z) float32 noise-free signals on the working lattice: contrast, texture, bias field, in-plane blur."""
    table = signals(rng, scanner, enhancement)
    images = np.zeros((len(CHANNELS), *lattice.shape), np.float32)
    for part, values in zip(fractions, table.T):  # not a matrix product: BLAS rounds by the number of its threads
        for image, value in zip(images, values):
            image += value * part
    texture = smooth_noise(rng, lattice, 5.5)
    lumps = smooth_noise(rng, lattice, 9)
    ill = fractions[INDEX["necrosis"]] + fractions[INDEX["enhancing"]] + 0.5 * fractions[INDEX["oedema"]]
    for number, image in enumerate(images):
        image *= 1 + 0.022 * texture + (0.09 if number % 2 else -0.09) * lumps * ill
        image *= np.exp(scanner.bias * 0.6 * smooth_noise(rng, lattice, 110))
        if scanner.blur_mm[number]:
            ndimage.gaussian_filter(image, [scanner.blur_mm[number] / s for s in lattice.spacing], output=image, truncate=2.5)
    return images


def add_noise(rng: np.random.Generator, scanner: Scanner, channel: int, image: Array, voxel_ml: float) -> Array:
    """Rician noise and gain: float32 values as a scanner stores them. Larger voxels are less noisy, by the square root of their volume."""
    sigma = np.float32(scanner.noise[channel] * np.clip((0.004 / voxel_ml) ** 0.5, 0.5, 1.6))
    real = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, imaginary) * np.float32(scanner.gain[channel])
