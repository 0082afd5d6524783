"""Saving and restoring a training state (parameters and two moments): `torch.save` and `torch.load`, and ours, which hash every file too."""

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bench.case import OUR_RECIPE, Case, Setting, Work
from bench.torch_side import import_or_absent


@dataclasses.dataclass(frozen=True)
class Sizes:
    """`arrays` square matrices of `width` float32 numbers a side, three times. `restore`: read it back, else write it."""

    arrays: int
    width: int
    restore: bool


def _case(variant: str, restore: bool) -> Case:
    sizes, quick = Sizes(24, 2048, restore), Sizes(2, 64, restore)
    exact = {"params": 0.0, "moment": 0.0}
    return Case(
        variant, "torch.save, torch.load", OUR_RECIPE, sizes, quick, lambda sizes: 12 * sizes.arrays * sizes.width**2, "bytes", exact
    )


CASES = (_case("save", False), _case("restore", True))


def _state(sizes: Sizes) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shape = (sizes.width, sizes.width)
    return {part: {f"w{i}": rng.random(shape, np.float32) for i in range(sizes.arrays)} for part in ("params", "mu", "nu")}


def _check(params: Any, moment: Any) -> dict[str, np.ndarray]:
    """Bits, so that a number that changed in its last place counts."""
    return {"params": np.asarray(params).view(np.uint32), "moment": np.asarray(moment).view(np.uint32)}


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """One file, read back into memory of its own."""
    torch = import_or_absent(setting, "torch")
    state = {part: {name: torch.from_numpy(array) for name, array in arrays.items()} for part, arrays in _state(sizes).items()}
    path = folder / "state.pt"

    def save() -> None:
        torch.save(state, path)

    def restore() -> Any:
        return torch.load(path, weights_only=True)

    def check() -> dict[str, np.ndarray]:
        save()
        back = restore()
        return _check(back["params"]["w0"].numpy(), back["nu"]["w1"].numpy())

    return Work(check, restore if sizes.restore else save)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """`train.Checkpoints`, until the last byte is written; hashes are made on the way out and checked on the way in."""
    import jax

    from jaxseg.train.checkpoint import Checkpoints
    from jaxseg.train.parallel import Layout

    layout = Layout("mesh", jax.devices()[:1])
    state = layout.place(_state(sizes))
    numbers = itertools.count()

    def save() -> None:
        keeper = Checkpoints(folder / "ours", layout, keep=1)
        keeper.save(next(numbers), state, {})
        keeper.close()

    def restore() -> Any:
        keeper = Checkpoints(folder / "ours", layout)
        found = keeper.restore(state)
        keeper.close()
        assert found is not None
        return jax.block_until_ready(found.state)

    def check() -> dict[str, np.ndarray]:
        shutil.rmtree(folder / "ours", ignore_errors=True)
        save()
        back = restore()
        return _check(back["params"]["w0"], back["nu"]["w1"])

    return Work(check, restore if sizes.restore else save)
