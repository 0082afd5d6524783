"""One 3-D convolution, its value and both gradients: `torch.nn.functional.conv3d` and `models.conv.conv3d`, by kernel, stride and groups."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from bench.case import SAME_MATHS, Case, Setting, Work
from bench.torch_side import channels_last, device_of, fastest, formed, forms_of, import_or_absent, precision, tensor, wait


@dataclasses.dataclass(frozen=True)
class Sizes:
    """`side` voxels a side of `inputs` channels; `padding` voxels of zeros on both sides of each axis."""

    side: int
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


def _case(variant: str, sizes: Sizes) -> Case:
    quick = dataclasses.replace(sizes, side=8)
    return Case(variant, "torch conv3d", SAME_MATHS, sizes, quick, lambda sizes: sizes.side**3, "voxels")


CASES = (
    _case("3", Sizes(48, 32, 32, 3, padding=1)),
    _case("3_valid", Sizes(48, 32, 32, 3)),
    _case("3_by_2", Sizes(48, 32, 64, 3, stride=2, padding=1)),
    _case("4_by_2", Sizes(48, 32, 64, 4, stride=2, padding=1)),
    _case("2_by_2", Sizes(48, 32, 64, 2, stride=2)),
    _case("3_groups_4", Sizes(48, 32, 32, 3, padding=1, groups=4)),
    _case("3_depthwise", Sizes(48, 32, 32, 3, padding=1, groups=32)),
    _case("5_depthwise", Sizes(48, 32, 32, 5, padding=2, groups=32)),
    _case("3_by_2_depthwise", Sizes(48, 32, 32, 3, stride=2, padding=1, groups=32)),
)


def _arrays(sizes: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, a kernel and the gradient of the value, channels last."""
    rng, k = np.random.default_rng(0), sizes.kernel
    out = (sizes.side + 2 * sizes.padding - k) // sizes.stride + 1
    shapes = (1, *(sizes.side,) * 3, sizes.inputs), (k, k, k, sizes.inputs // sizes.groups, sizes.outputs), (1, *(out,) * 3, sizes.outputs)
    image, kernel, gradient = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return image, kernel / np.float32(np.sqrt(kernel[..., 0].size)), gradient / np.float32(out**1.5)


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """PyTorch's module of that kernel, in its fastest form."""
    torch = import_or_absent(setting, "torch")
    image, kernel, gradient = _arrays(sizes)
    net = torch.nn.Conv3d(
        sizes.inputs, sizes.outputs, sizes.kernel, sizes.stride, sizes.padding, groups=sizes.groups, bias=False, device=device_of(setting)
    )
    net.weight.data.copy_(torch.from_numpy(np.ascontiguousarray(np.moveaxis(kernel, (3, 4), (1, 0)))))
    x, g = tensor(image, setting), tensor(gradient, setting)

    def make(form: str) -> Any:
        called, seen = formed(net, x, form)
        seen = seen.detach().requires_grad_()

        def run() -> tuple[Any, Any, Any]:
            seen.grad = net.weight.grad = None
            with precision(setting):
                value = called(seen)
            value.backward(g.to(value.dtype))
            wait(setting)
            return value, seen.grad, net.weight.grad

        return run

    _, run, form = fastest(make, forms_of(setting), setting)

    def check() -> dict[str, np.ndarray]:
        value, dx, dk = run()
        return {
            "value": channels_last(value),
            "image": channels_last(dx),
            "kernel": np.moveaxis(dk.detach().float().cpu().numpy(), (1, 0), (3, 4)),
        }

    return Work(check, run, form=form)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """`conv3d` and its gradients as one compiled program."""
    import jax
    import jax.numpy as jnp

    from bench.jax_side import compile_timed
    from jaxseg.models.conv import conv3d

    def work(x: Any, kernel: Any, gradient: Any) -> Any:
        def form(x: Any, kernel: Any) -> Any:
            return conv3d(x.astype(setting.dtype), kernel, stride=sizes.stride, padding=(sizes.padding,) * 3, groups=sizes.groups)

        value, pull = jax.vjp(form, x, kernel)
        return value, *pull(gradient.astype(value.dtype))

    arrays = tuple(jnp.asarray(array) for array in _arrays(sizes))
    compiled, seconds = compile_timed(jax.jit(work), *arrays)

    def check() -> dict[str, np.ndarray]:
        return {name: np.asarray(value, np.float32) for name, value in zip(("value", "image", "kernel"), compiled(*arrays))}

    return Work(check, lambda: jax.block_until_ready(compiled(*arrays)), compile_s=seconds)
