"""`Recipe`: how a scan becomes an array, as JSON in cards and stores. It reads no scan: `preprocess` applies it, `recipe_guess` derives one."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from jaxseg.data.intensity import check_rule
from jaxseg.data.nyul import check_scale
from jaxseg.errors import ConfigError

IGNORE = 255
RESAMPLING = ("linear", "nnunet")
STRIPPING = ("", "mask", "surface")
REGISTRATION = ("", "rigid", "affine")
# Fields that came later count in a case's hash only where they are set, so that stores made before stay valid.
_LATER = ("resampling", "landmarks", "strip", "n4", "register", "defaced")


@dataclass(frozen=True)
class Recipe:
    """How a scan becomes an array: the same for training and for segmenting.

    Attributes:
        channels: names in the order of the array's last axis.
        spacing: mm along x, y, z of the array.
        intensity: one rule a channel: "zscore", "percentile", "nyul", "ct" or "ct:LOW:HIGH" (see `intensity.normalise`).
        orientation: of the array's axes; RAS is the only one.
        crop: whether the array ends at the body's box.
        labels: name → value in the label files, or values of a region; a label called "ignore" is left out of training.
        regions: whether labels are overlapping regions.
        resampling: "linear" (low-pass filtered where voxels get coarser) or "nnunet": its order of steps (crop to the body, normalise, resample by
            `spline`: cubic, a coarse axis by itself) and its grid, a whole number of voxels over the crop, which are not quite of `spacing`.
        landmarks: for each channel with the rule "nyul", the scale that its histogram is matched to (`nyul.standard_scale`).
        strip: "" keeps the whole head; "mask" keeps what the case's own brain mask holds; "surface" finds the brain (`skull.brain_mask`).
        n4: whether each channel that is no CT is freed of its bias field first (`itk.correct_bias`).
        register: "" trusts the scanner's frame; "rigid" or "affine" lays every channel over the one that labels were drawn on.
        defaced: whether faces replaced by a constant are looked for in cases without masks of them (`anonymised.blanked`), so that no loss
            asks for them; the image stays the same.
    """

    channels: tuple[str, ...]
    spacing: tuple[float, float, float]
    intensity: tuple[str, ...]
    orientation: str = "RAS"
    crop: bool = True
    labels: dict[str, int | list[int]] = field(default_factory=dict)
    regions: bool = False
    resampling: str = "linear"
    landmarks: dict[str, list[float]] = field(default_factory=dict)
    strip: str = ""
    n4: bool = False
    register: str = ""
    defaced: bool = False

    def __post_init__(self) -> None:
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise ConfigError(f"recipe: channels {self.channels} must be different names, at least one")
        if len(self.intensity) != len(self.channels):
            raise ConfigError(f"recipe: {len(self.intensity)} intensity rules for {len(self.channels)} channels; expected one each")
        for rule in self.intensity:
            check_rule(rule)
        if len(self.spacing) != 3 or not all(np.isfinite(value) and value > 0 for value in self.spacing):
            raise ConfigError(f"recipe: spacing {self.spacing} must be three positive numbers in mm")
        if self.orientation != "RAS":
            raise ConfigError(f"recipe: orientation {self.orientation!r}; arrays are always RAS")
        for name, known in (("resampling", RESAMPLING), ("strip", STRIPPING), ("register", REGISTRATION)):
            if getattr(self, name) not in known:
                raise ConfigError(f"recipe: {name} is {getattr(self, name)!r}; choose among {', '.join(map(repr, known))}")
        for channel, rule in zip(self.channels, self.intensity):
            if rule == "nyul":
                check_scale(channel, self.landmarks.get(channel, ()))
        if any(not isinstance(value, int) for value in self.labels.values()) and not self.regions:
            raise ConfigError("recipe: a label with several values is a region; set regions=True")
        if len(self.values) >= IGNORE or any(value < 0 for value in self.values):
            raise ConfigError(f"recipe: label values must be positive, at most {IGNORE - 1} different ones; found {self.values}")

    def content(self) -> dict[str, Any]:
        """What decides the arrays, as JSON data: the part of a recipe that a case's hash covers."""
        content = {name: value for name, value in asdict(self).items() if name not in _LATER or (value and value != "linear")}
        if self.resampling == "nnunet":
            # It once resampled first: stores made then are prepared again.
            content["resampling"] = "nnunet: crop, normalise, resample"
        return content

    @property
    def values(self) -> tuple[int, ...]:
        """The distinct label values on disk, ascending, without 0 and "ignore": `values[i]` is `i + 1` in prepared labels."""
        listed = [value for name, value in self.labels.items() if name != "ignore"]
        flat = {number for value in listed for number in ([value] if isinstance(value, int) else value)}
        return tuple(sorted(flat - {0}))

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """Label name → the values it has in prepared labels (one each, several for a region)."""
        place = {value: i + 1 for i, value in enumerate(self.values)}
        named = {name: value for name, value in self.labels.items() if name != "ignore"}
        return {
            name: tuple(place[number] for number in ([value] if isinstance(value, int) else value) if number in place)
            for name, value in named.items()
        }
