"""`Augment`: how often and how strongly each transform acts. Part of every training config, and so of the JSON that a run stores."""

from dataclasses import dataclass
from typing import Any

from jaxseg.errors import ConfigError

Range = tuple[float, float]

_PROBABILITIES = (
    "affine", "rotate", "rescale", "scale_each_axis", "elastic", "bias", "noise", "blur", "brightness", "contrast", "coarse", "gamma",
    "channel_share",
)  # fmt: skip
_RANGES = (
    "scale", "elastic_width", "elastic_strain", "bias_width", "bias_strength", "noise_std", "blur_sigma", "brightness_factor",
    "contrast_factor", "coarse_zoom", "gamma_power", "spacing_jitter",
)  # fmt: skip
_MAY_BE_ZERO = ("elastic_strain", "bias_strength", "noise_std")


@dataclass(frozen=True)
class Augment:
    """How often (probability per sample) and how strongly each transform acts; a probability of 0 leaves it out of the program.

    Attributes:
        flip: probability per axis; set it to 0 along x where labels tell left from right. Few bodies lie upside down or back to front: on brains
            mirroring along x alone is better (docs/results.md); all three axes are nnU-Net's.
        affine: rotation and scaling together. `rotate` and `rescale` draw each on its own, independently, as nnU-Net does.
        rotation: largest angle about each axis, degrees.
        scale: magnification, uniform in the logarithm; `scale_each_axis` is the part of scaled samples that draw one per axis.
        elastic: a smooth random displacement. `elastic_width` is the Gaussian's deviation as a part of the crop's edge, and
            `elastic_strain` the deviation of the displacement's derivative: at 0.2 it takes five deviations to fold the image over itself.
        bias: a smooth positive field that multiplies what a channel has above its air; `bias_width` as above, `bias_strength` the
            deviation of the field's logarithm.
        noise_std: in units of the prepared image.
        blur_sigma: in voxels.
        coarse_zoom: the resolution kept (low-resolution simulation), 0.5 being every second voxel.
        channel_share: the part of the channels that blur and coarse act on; below 1 each of them draws a strength of its own.
        spacing_jitter: every sample is resampled to another voxel size, and `spacing` says so: its own times a factor along each axis,
            uniform in the logarithm between these two. Unlike `scale` it does not change how large anything is in mm. Above 1 the crop
            reaches beyond what was loaded, which is air there. None for no jitter.

    The defaults are nnU-Net v2's strengths (Isensee et al., Nat. Methods 2021), with rotation and scaling drawn together.
    """

    flip: tuple[float, float, float] = (0.5, 0.5, 0.5)
    affine: float = 0.3
    rotation: tuple[float, float, float] = (30.0, 30.0, 30.0)
    scale: Range = (0.7, 1.4)
    noise: float = 0.1
    noise_std: Range = (0.0, 0.1)
    blur: float = 0.2
    blur_sigma: Range = (0.5, 1.0)
    brightness: float = 0.15
    brightness_factor: Range = (0.75, 1.25)
    contrast: float = 0.15
    contrast_factor: Range = (0.75, 1.25)
    coarse: float = 0.25
    coarse_zoom: Range = (0.5, 1.0)
    gamma: float = 0.3
    gamma_power: Range = (0.7, 1.5)
    # Younger fields default to what a stored config without them meant.
    rotate: float = 0.0
    rescale: float = 0.0
    scale_each_axis: float = 0.0
    elastic: float = 0.0
    elastic_width: Range = (0.1, 0.25)
    elastic_strain: Range = (0.0, 0.2)
    bias: float = 0.0
    bias_width: Range = (0.3, 0.6)
    bias_strength: Range = (0.0, 0.3)
    channel_share: float = 1.0
    spacing_jitter: Range | None = None

    def __post_init__(self) -> None:
        # A whole number is no probability to JAX, and a list no setting that a jitted function can be told apart by.
        for name in (*_PROBABILITIES, *_RANGES, "flip", "rotation"):
            if name != "spacing_jitter" or self.spacing_jitter is not None:
                object.__setattr__(self, name, _plain(getattr(self, name), name))
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"Augment.{name} is {getattr(self, name)}: it is a probability, between 0 and 1")
        if len(self.flip) != 3 or not all(0 <= p <= 1 for p in self.flip):
            raise ConfigError(f"Augment.flip is {self.flip}: expected one probability per axis, between 0 and 1")
        if len(self.rotation) != 3:
            raise ConfigError(f"Augment.rotation is {self.rotation}: expected one largest angle per axis, in degrees")
        for name in _RANGES:
            if getattr(self, name) is None:
                continue
            low, high = getattr(self, name)
            if not 0 <= low <= high or (low == 0 and name not in _MAY_BE_ZERO):
                raise ConfigError(f"Augment.{name} is {(low, high)}: expected (lowest, highest), both above 0")

    @classmethod
    def none(cls) -> "Augment":
        """Nothing but the cast to float32."""
        return cls(flip=(0.0, 0.0, 0.0), affine=0.0, noise=0.0, blur=0.0, brightness=0.0, contrast=0.0, coarse=0.0, gamma=0.0)

    @classmethod
    def light(cls) -> "Augment":
        """For pretraining by reconstruction: geometry and brightness, nothing that the target could not be told from."""
        return cls(affine=0.3, rotation=(15.0, 15.0, 15.0), scale=(0.85, 1.2), noise=0.0, blur=0.0, coarse=0.0, gamma=0.0)

    @classmethod
    def default(cls) -> "Augment":
        """For supervised training: nnU-Net's strengths."""
        return cls()

    @classmethod
    def nnunet(cls) -> "Augment":
        """What nnU-Net v2's default trainer draws for isotropic crops: rotation and scaling independently (0.2 each), blur and low
        resolution on half of the channels, gamma for 0.3 of the samples and inverted for another 0.1 (there both may meet in one
        sample). Blur has one width for the three axes of a channel; that trainer draws one for each. It has no elastic deformation and no bias
        field: set `elastic` and `bias` for them."""
        return cls(affine=0.0, rotate=0.2, rescale=0.2, gamma=0.4, channel_share=0.5)


def _plain(value: Any, name: str) -> float | tuple[float, ...]:
    try:
        return float(value) if name in _PROBABILITIES else tuple(map(float, value))
    except (TypeError, ValueError):
        raise ConfigError(f"Augment.{name} is {value!r}: expected {'a number' if name in _PROBABILITIES else 'numbers'}") from None
