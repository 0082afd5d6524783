"""Pictures of what a masked model makes of one crop while it learns: what it saw, its reconstruction, the scan. Called by `pretrain.train`.

The crop and its mask are the same at every step, so that pictures and the error beside them compare.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg.data.catalog import Store
from jaxseg.data.loader import cut
from jaxseg.errors import ConfigError
from jaxseg.files import write_bytes
from jaxseg.models import ViTConfig
from jaxseg.train import TrainState

FOLDER = "pictures"


@dataclass(frozen=True)
class PictureConfig:
    """What is drawn at every probe, every `loop.evaluate_every` steps where there is no probe, and at the end.

    Attributes:
        keep: so many of the latest pictures stay in the run folder; 0 for none.
        case: name of the case shown, "" for the first that the run learns from. One that it does not learn from tells more.
        channel: name of the channel shown, "" for the first that the case has.
    """

    keep: int = 3
    case: str = ""
    channel: str = ""

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise ConfigError(f"pictures.keep is {self.keep}; expected 0 (none) or more")


def make_pictures(
    graph: nnx.GraphDef, config: PictureConfig, store: Store, names: Sequence[str], encoder: ViTConfig, run: Path
) -> Callable[[TrainState], dict[str, float]]:
    """A function of the train state that draws `RUN/pictures/step_000500.png` for the masked model with structure `graph`.

    It returns {"picture_error"}: the mean absolute difference to the hidden voxels of the body in all channels of that crop.

    Raises:
        ConfigError: the store has not the channel, or the case lacks it.
        InputError: the store has not the case.
    """
    name = config.case or names[0]
    shown = _channel(store, name, config.channel)
    image, mask, spacing, present = _crop(store, name, encoder)

    @jax.jit
    def reconstruct(params: Any) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, params)
        keys = jax.random.split(jax.random.key(0), 1)
        filled, seen = model.reconstruct(jnp.asarray(image), keys, mask=jnp.asarray(mask), spacing=jnp.asarray(spacing))
        return filled[0], seen[0]

    def draw(state: TrainState) -> dict[str, float]:
        from jaxseg.report import reconstruction_figure  # matplotlib: half a second that the first step need not wait for

        filled, seen = (np.asarray(each, np.float32) for each in reconstruct(state.params))
        hidden = (seen == 0) & (mask[0] > 0)
        error = np.abs(filled - image[0])[hidden][:, present]
        if jax.process_index() == 0:
            step = int(state.step)
            png = reconstruction_figure(
                image[0, ..., shown], seen > 0, filled[..., shown], spacing[0], title=f"{store.recipe.channels[shown]}, step {step}"
            )
            write_bytes(run / FOLDER / f"step_{step:06d}.png", png)
            for old in drawn(run)[: -config.keep]:
                old.unlink(missing_ok=True)
        return {"picture_error": float(error.mean()) if error.size else 0.0}

    return draw


def drawn(run: Path) -> list[Path]:
    """The pictures in a run folder, the earliest first."""
    found = {path: re.fullmatch(r"step_(\d+)", path.stem) for path in (run / FOLDER).glob("step_*.png")}
    return sorted((path for path, match in found.items() if match), key=lambda path: int(path.stem.removeprefix("step_")))


def _channel(store: Store, name: str, wanted: str) -> int:
    channels, present = store.recipe.channels, store.entry(name).present
    if wanted and wanted not in channels:
        raise ConfigError(f"pictures.channel is {wanted!r}; the scans of {store.path} have {', '.join(channels)}")
    place = channels.index(wanted) if wanted else present.index(True)
    if not present[place]:
        raise ConfigError(f"pictures.channel is {wanted!r}, which case {name} of {store.path} lacks: choose another with --pictures.case")
    return place


def _crop(store: Store, name: str, encoder: ViTConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The crop around the middle of the body: image (1, x, y, z, c) and mask (1, x, y, z) float32, spacing (1, 3) mm, and channels there (c,)."""
    entry, arrays = store.entry(name), store.arrays(name)
    shape, size = np.asarray(arrays.mask.shape), np.asarray(encoder.crop)
    middle = arrays.body.mean(0).round().astype(int) if len(arrays.body) else shape // 2
    origin = np.where(shape < size, (shape - size) // 2, np.clip(middle - size // 2, 0, np.maximum(shape - size, 0)))
    image = cut(arrays.image, origin, encoder.crop, np.asarray(entry.air, np.float16))
    mask = cut(arrays.mask, origin, encoder.crop, 0) == 1
    batched = (np.asarray(each, np.float32)[None] for each in (image, mask, entry.spacing))
    image, mask, spacing = batched
    return image, mask, spacing, np.asarray(entry.present, bool)
