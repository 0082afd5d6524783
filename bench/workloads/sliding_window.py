"""A whole scan, end to end (small UNETR): files read, prepared, tiled by windows, labels written. MONAI's `sliding_window_inference` and ours."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import torch_side
from bench.case import SAME_MATHS, Case, Setting, Work
from bench.torch_side import import_or_absent, save_weights
from bench.workloads import unetr

_CHANNELS = ("T1", "T1c", "T2", "FLAIR")
_CLASSES = 4
_WINDOWS = 4  # that a form is timed on, and the most that it takes at once


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A scan of `shape` voxels of 1 mm and four channels, windows of `window`; `aligned` is a shape on which both choose the same windows."""

    shape: tuple[int, int, int]
    aligned: tuple[int, int, int]
    window: int
    overlap: float
    width: int
    heads: int
    feature: int


_FULL = Sizes((240, 240, 155), (168, 96, 96), 96, 0.25, 192, 3, 16)
_QUICK = Sizes((48, 32, 32), (48, 32, 32), 32, 0.5, 24, 2, 4)
# Both count the same windows on the scan that is timed; where steps do not end at its border, MONAI moves the last window, ours all.
CASES = (
    Case("unetr_small_240", "MONAI", SAME_MATHS, _FULL, _QUICK, lambda sizes: float(np.prod(sizes.shape)), "voxels", {"labels": 1e-3}),
)


def _scan(folder: Path, name: str, shape: tuple[int, int, int]) -> dict[str, Path]:
    """Four files of positive noise, prepared as CT: no air, so that nothing is cropped or skipped."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    paths = {channel: folder / f"{name}_{channel}.nii.gz" for channel in _CHANNELS}
    for path in paths.values():
        nib.save(nib.Nifti1Image(rng.integers(100, 1000, shape).astype(np.int16), np.eye(4)), path)
    return paths


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """MONAI's reading, normalising, tiling and writing around its UNETR; the scans and the weights are left for ours."""
    import nibabel as nib

    nets, t, inferers, torch = (
        import_or_absent(setting, module) for module in ("monai.networks.nets", "monai.transforms", "monai.inferers", "torch")
    )
    shape = {"feature_size": sizes.feature, "hidden_size": sizes.width, "mlp_dim": 4 * sizes.width, "num_heads": sizes.heads}
    net = nets.UNETR(len(_CHANNELS), _CLASSES, (sizes.window,) * 3, **shape)
    save_weights(net, folder)
    device = torch_side.device_of(setting)
    net = net.to(device).eval()
    net, layout, batch, form = _fastest_windows(net, sizes, setting)
    read = t.LoadImage(image_only=True, ensure_channel_first=True)
    normalise = t.ScaleIntensityRange(-1000, 1000, -2, 2, clip=True)

    def segment(paths: dict[str, Path]) -> np.ndarray:
        image = normalise(read([str(path) for path in paths.values()]))
        with torch.inference_mode(), torch_side.precision(setting):
            logits = inferers.sliding_window_inference(
                image[None].to(device, memory_format=layout),
                sizes.window,
                batch,
                net,
                overlap=sizes.overlap,
                mode="gaussian",
                device=torch.device(device),
            )
        labels = logits.argmax(1)[0].to(torch.uint8).cpu().numpy()
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "peer_labels.nii.gz")
        return labels

    aligned, scan = _scan(folder, "aligned", sizes.aligned), _scan(folder, "scan", sizes.shape)
    return Work(lambda: {"labels": segment(aligned)}, lambda: segment(scan), form=form)


def _fastest_windows(net: Any, sizes: Sizes, setting: Setting) -> tuple[Any, Any, int, str]:
    """The peer's network in its fastest form for windows, the memory format of that, how many windows at once take the least time, and what all took
    for `_WINDOWS` of them."""
    import torch

    windows = torch.zeros((_WINDOWS, len(_CHANNELS), *(sizes.window,) * 3), device=torch_side.device_of(setting))
    forms = {f"{form} by {count}": (form, count) for form in torch_side.forms_of(setting) for count in (1, 2, _WINDOWS)}

    def make(form: str) -> Callable[[], None]:
        kind, count = forms[form]
        called, images = torch_side.formed(net, windows, kind)

        def run() -> None:
            with torch.inference_mode(), torch_side.precision(setting):
                for group in images.split(count):
                    called(group)
            torch_side.wait(setting)

        return run

    best, _, told = torch_side.fastest(make, forms, setting)
    kind, count = forms[best]
    called, images = torch_side.formed(net, windows, kind)
    layout = torch.channels_last_3d if images.is_contiguous(memory_format=torch.channels_last_3d) else torch.contiguous_format
    return called, layout, count, told


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """`load_volume`, `segment`, `save_volume`, as `jaxseg segment` does. The scans are made here where there is no peer that left them."""
    from flax import nnx

    from bench.jax_side import converted
    from jaxseg.data.io import load_volume, save_volume
    from jaxseg.infer.predict import segment
    from jaxseg.zoo import Model

    network = {"feature_size": sizes.feature, "hidden_size": sizes.width, "mlp_dim": 4 * sizes.width, "num_heads": sizes.heads}
    graph, params = converted(
        folder, setting, {"heads": sizes.heads}, alone=lambda: unetr.config(network, sizes.window, len(_CHANNELS), _CLASSES)
    )
    if not (folder / f"scan_{_CHANNELS[0]}.nii.gz").exists():
        _scan(folder, "scan", sizes.shape)
    recipe = {
        "channels": list(_CHANNELS),
        "spacing": [1.0, 1.0, 1.0],
        "intensity": ["ct"] * len(_CHANNELS),
        "labels": {f"label_{value}": value for value in range(1, _CLASSES)},
        "regions": False,
    }
    card: dict[str, Any] = {"recipe": recipe, "crop": [sizes.window] * 3}
    model = Model(nnx.merge(graph, params), card)

    def work(name: str) -> np.ndarray:
        volume = load_volume({channel: folder / f"{name}_{channel}.nii.gz" for channel in _CHANNELS})
        labels = segment(model, volume, overlap=sizes.overlap)
        save_volume(labels, folder / "our_labels.nii.gz", like=labels.source)
        return labels.array[..., 0]

    return Work(lambda: {"labels": work("aligned")}, lambda: work("scan"), _flops(graph, params, sizes, setting))


def _flops(graph: Any, params: Any, sizes: Sizes, setting: Setting) -> float | None:
    """Of the network on all windows of the scan, on a GPU; on a CPU the fast forms of a convolution do more of them than the convolution."""
    import jax
    from flax import nnx

    from jaxseg.infer.window import window_starts
    from jaxseg.zoo.cost import program_flops

    if setting.device != "gpu":
        return None
    window = (sizes.window,) * 3
    one = jax.ShapeDtypeStruct((1, *window, len(_CHANNELS)), np.float32)
    count = len(window_starts([max(pair) for pair in zip(sizes.shape, window)], window, sizes.overlap))
    return count * float(program_flops(lambda params, x: nnx.merge(graph, params)(x), params, one))
