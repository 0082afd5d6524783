"""The whole network that an objective trains, a decoder around the encoder: which family, and how wide. Called by `implants` and `objectives`."""

from typing import Literal

from jaxseg.errors import ConfigError
from jaxseg.models import UNETRConfig, UNETRPlusConfig, ViTConfig

Decoder = Literal["unetr", "unetr_plus"]
_FAMILIES: dict[str, type[UNETRConfig] | type[UNETRPlusConfig]] = {"unetr": UNETRConfig, "unetr_plus": UNETRPlusConfig}


def check_decoder(name: str, decoder: str | None) -> None:
    """ConfigError if `decoder`, the value of the setting `name`, is no family."""
    if decoder is not None and decoder not in _FAMILIES:
        raise ConfigError(f"{name} is {decoder!r}; expected {' or '.join(_FAMILIES)}")


def whole_network(encoder: ViTConfig, outputs: int, decoder: Decoder | None, feature: int, stride: int) -> UNETRConfig | UNETRPlusConfig:
    """`encoder` under a decoder (None for that of a UNETR) with `outputs` values a voxel. ConfigError as the family's config raises it."""
    return _FAMILIES[decoder or "unetr"](encoder=encoder, num_classes=outputs, feature=feature, stride=stride)
