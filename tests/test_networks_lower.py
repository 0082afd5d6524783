"""Value and gradient of every segmentation network lower for cuda and tpu from a CPU, without any form that is a CPU's own."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxseg.zoo import create_model

NETWORKS = (
    "unetr_tiny",
    "unetr_plus_tiny",
    "swin_unetr_12",
    "resunet_small",
    "attention_unet_small",
    "vnet_small",
    "transunet_small",
    "unet_plain",
    "unet_resenc_m",
    "primus_s",
    "primus_v3_s",
)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_and_its_gradient_lower_for_accelerators(name):
    graph, params = nnx.split(nnx.eval_shape(lambda: create_model(name, in_channels=2, num_classes=3)))
    x, spacing = jax.ShapeDtypeStruct((1, 64, 64, 64, 2), jnp.float32), jax.ShapeDtypeStruct((1, 3), jnp.float32)

    def loss(params, x, spacing):
        outputs = jax.tree.leaves(nnx.merge(graph, params)(x, spacing=spacing))
        return sum(jnp.sum(jnp.square(output.astype(jnp.float32))) for output in outputs)

    traced = jax.jit(jax.value_and_grad(loss)).trace(params, x, spacing)
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        # Primus with a patch embedding is products alone.
        assert ("stablehlo.convolution" in text) == (name != "primus_s")
        assert "[b, 0, 1, f]" not in text, "a 2-D convolution: the CPU form"
