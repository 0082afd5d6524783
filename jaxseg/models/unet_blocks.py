"""What nnU-Net's U-Nets are made of: convolution - norm - LeakyReLU, residual blocks, encoder stages, decoder stages. Called by `unet`.

Arrays are `(b, x, y, z, c)`. Modules keep nnU-Net's structure, so that each array of a peer's file has one place here.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxseg.models.conv import average_pool, conv3d, upsample_conv
from jaxseg.models.instance_norm import SLOPE, instance_norm, leaky_relu
from jaxseg.models.positions import Triple


class Convolution(nnx.Module):
    """A convolution as torch pads it, k // 2 voxels of zeros on both sides whatever the stride; kernel (kx, ky, kz, in, out)."""

    def __init__(self, inputs: int, outputs: int, size: Triple, stride: Triple = (1, 1, 1), *, bias: bool, rngs: nnx.Rngs):
        self.stride, self.padding = stride, (size[0] // 2, size[1] // 2, size[2] // 2)
        self.kernel = nnx.Param(he_normal(rngs.params(), (*size, inputs, outputs), math.prod(size) * inputs))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        return conv3d(x, self.kernel[...], None if self.bias is None else self.bias[...], stride=self.stride, padding=self.padding)


class InstanceNorm(nnx.Module):
    """Instance norm with a learned scale and bias per channel; the scale begins at `scale`."""

    def __init__(self, width: int, *, scale: float = 1.0):
        self.scale = nnx.Param(jnp.full((width,), scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        return instance_norm(x, self.scale[...], self.bias[...])


class ConvNorm(nnx.Module):
    """Convolution, instance norm. `scale` is the norm's first value."""

    def __init__(
        self, inputs: int, outputs: int, size: Triple, stride: Triple = (1, 1, 1), *, bias: bool, scale: float = 1.0, rngs: nnx.Rngs
    ):
        self.conv = Convolution(inputs, outputs, size, stride, bias=bias, rngs=rngs)
        self.norm = InstanceNorm(outputs, scale=scale)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        return self.norm(self.conv(x))


class ConvStack(nnx.Module):
    """`count` times convolution - norm - LeakyReLU; the first one strides."""

    def __init__(self, count: int, inputs: int, outputs: int, size: Triple, stride: Triple = (1, 1, 1), *, bias: bool, rngs: nnx.Rngs):
        first = ConvNorm(inputs, outputs, size, stride, bias=bias, rngs=rngs)
        self.convs = nnx.List([first, *(ConvNorm(outputs, outputs, size, bias=bias, rngs=rngs) for _ in range(1, count))])

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        for conv in self.convs:
            x = leaky_relu(conv(x))
        return x


class ResidualBlock(nnx.Module):
    """conv - norm - LeakyReLU - conv - norm, plus a shortcut, LeakyReLU (ResNet-D, https://arxiv.org/abs/1812.01187).

    The shortcut averages over the stride's voxels and, where channels change, passes a 1x1x1 convolution without bias and a norm. The last
    norm's scale begins at 0, so that a new block is its shortcut.
    """

    def __init__(self, inputs: int, outputs: int, size: Triple, stride: Triple = (1, 1, 1), *, bias: bool, rngs: nnx.Rngs):
        self.stride = stride
        self.conv1 = ConvNorm(inputs, outputs, size, stride, bias=bias, rngs=rngs)
        self.conv2 = ConvNorm(outputs, outputs, size, bias=bias, scale=0.0, rngs=rngs)
        self.shortcut = ConvNorm(inputs, outputs, (1, 1, 1), bias=False, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        y = self.conv2(leaky_relu(self.conv1(x)))
        x = average_pool(x, self.stride)
        return leaky_relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResidualStage(nnx.Module):
    """`count` residual blocks. The first one strides and changes the channels; the others are equal, so they are stacked and scanned."""

    def __init__(self, count: int, inputs: int, outputs: int, size: Triple, stride: Triple, *, bias: bool, rngs: nnx.Rngs):
        def block(stream: nnx.Rngs) -> ResidualBlock:
            return ResidualBlock(outputs, outputs, size, bias=bias, rngs=stream)

        self.first = ResidualBlock(inputs, outputs, size, stride, bias=bias, rngs=rngs)
        self.blocks = nnx.vmap(block)(rngs.split(count - 1)) if count > 1 else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        x = self.first(x)
        return x if self.blocks is None else jax.lax.scan(lambda x, block: (block(x), None), x, self.blocks)[0]


class Upsampling(nnx.Module):
    """A transposed convolution with kernel = stride = `factors`; kernel (fx, fy, fz, in, out)."""

    def __init__(self, inputs: int, outputs: int, factors: Triple, *, bias: bool, rngs: nnx.Rngs):
        # nnU-Net counts the fan in of torch's transposed kernels on their output side; kept, since its recipes were tuned with it.
        self.kernel = nnx.Param(he_normal(rngs.params(), (*factors, inputs, outputs), math.prod(factors) * outputs))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        return upsample_conv(x, self.kernel[...], None if self.bias is None else self.bias[...])


class DecoderStage(nnx.Module):
    """Up-sample by the stride of the encoder's stage below, put the skip's channels behind, convolve `count` times."""

    def __init__(self, count: int, inputs: int, outputs: int, size: Triple, factors: Triple, *, bias: bool, rngs: nnx.Rngs):
        self.up = Upsampling(inputs, outputs, factors, bias=bias, rngs=rngs)
        self.stack = ConvStack(count, 2 * outputs, outputs, size, bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "b x y z i"], skip: Float[Array, "b x2 y2 z2 o"]) -> Float[Array, "b x2 y2 z2 o"]:
        return self.stack(jnp.concatenate([self.up(x), skip], -1))


def he_normal(key: Array, shape: tuple[int, ...], fan_in: int) -> Float[Array, "..."]:
    """Normal values whose deviation keeps that of the activations through a LeakyReLU (He et al., https://arxiv.org/abs/1502.01852)."""
    # Drawn in one row: the same numbers, and a tenth of the time to compile them that five axes take.
    values = jax.random.normal(key, (math.prod(shape),), jnp.float32).reshape(shape)
    return values * math.sqrt(2 / ((1 + SLOPE**2) * fan_in))
