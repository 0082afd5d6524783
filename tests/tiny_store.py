"""A store of two-channel blobs with labels, small enough to train on in seconds. Used by the tests of pretrain, finetune and the main job."""

from pathlib import Path

import numpy as np

from jaxseg.data.io import save_volume
from jaxseg.data.volume import Volume


def write_scans(
    folder: Path, count: int = 4, *, labelled: bool = True, seed: int = 0, shape=(20, 18, 16), channels=("T1", "T2"), first: int = 0
) -> Path:
    """Bright balls (the label) in a noisy box on black air: a folder a case, `case_0/T1.nii.gz`, …, `case_0/seg.nii.gz`, from case `first` on."""
    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        places = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
        body = np.all((places >= 2) & (places < np.array(shape) - 2), -1)
        ball = (np.linalg.norm(places - (np.array(shape) / 2 + rng.uniform(-3, 3, 3)), axis=-1) < 4) & body
        affine = np.diag([2.0, 2.0, 2.5, 1.0])
        for place, channel in enumerate(channels):
            image = np.where(body, 100 + 10 * rng.normal(size=shape) + (80 - 40 * place) * ball, 0)
            save_volume(
                Volume(image.astype(np.float32)[..., None], affine, (channel,), None), folder / f"case_{number}" / f"{channel}.nii.gz"
            )
        if labelled:
            save_volume(Volume(ball.astype(np.uint8)[..., None], affine, ("label",), None), folder / f"case_{number}" / "seg.nii.gz")
    return folder
