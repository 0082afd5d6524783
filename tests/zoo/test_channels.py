"""Stems for other channels: N equal channels give the pretrained output, names decide, every family's stem is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.models.conv import conv3d
from jaxseg.zoo import create_model
from jaxseg.zoo.channels import adapt_channels, adapt_stems
from jaxseg.zoo.names import flatten_params, param_shapes, unflatten_params


def test_one_channel_becomes_many_and_equal_channels_give_the_same_output():
    rng = np.random.default_rng(0)
    kernel, voxels = rng.normal(size=(64, 24)).astype(np.float32), rng.normal(size=(64,)).astype(np.float32)
    adapted = adapt_channels(kernel, ["CT"], ["T1", "T2", "PET"])
    np.testing.assert_allclose(np.repeat(voxels, 3) @ adapted, voxels @ kernel, rtol=1e-4, atol=1e-5)
    kernel, image = rng.normal(size=(3, 3, 3, 1, 4)).astype(np.float32), jnp.asarray(rng.normal(size=(1, 5, 5, 5, 1)), jnp.float32)
    adapted = jnp.asarray(adapt_channels(kernel, ["CT"], ["T1", "T2"]))
    np.testing.assert_allclose(conv3d(jnp.repeat(image, 2, -1), adapted), conv3d(image, jnp.asarray(kernel)), atol=1e-4)


def test_channels_are_matched_by_name_not_by_place():
    kernel = np.arange(2 * 2 * 3, dtype=np.float32).reshape(4, 3)  # two voxels, channels (T1, T2)
    swapped = adapt_channels(kernel, ["T1", "T2"], ["t2", "T1"]).reshape(2, 2, 3)
    np.testing.assert_array_equal(swapped, kernel.reshape(2, 2, 3)[:, ::-1])
    np.testing.assert_array_equal(
        adapt_channels(kernel, ["T1", "T2"], ["CT", "T2"]).reshape(2, 2, 3)[:, 0], kernel.reshape(2, 2, 3).mean(1)
    )


def test_a_network_of_one_channel_answers_the_same_to_three_equal_ones():
    """Both stems of a UNETR are adapted: the patch embedding, and the convolutions on folded voxels."""
    how = {"crop": 16, "token": 8, "width": 24, "depth": 3, "heads": 2, "feature": 4, "positions": "learned"}
    network = create_model("unetr_tiny", **how)
    graph, params = nnx.split(nnx.eval_shape(lambda: create_model("unetr_tiny", in_channels=3, **how)))
    arrays, adapted = adapt_stems(flatten_params(network), param_shapes(params), ["CT"], ["T1", "T2", "FLAIR"])
    assert adapted == ["encoder.patch.kernel", "stem.conv1.kernel", "stem.shortcut.kernel"]
    image = jax.random.normal(jax.random.key(0), (1, 16, 16, 16, 1))
    wider = nnx.merge(graph, unflatten_params(params, arrays))
    apply = jax.jit(lambda model, image: model(image))
    np.testing.assert_allclose(apply(wider, jnp.repeat(image, 3, -1)), apply(network, image), atol=2e-4)


def test_channels_without_a_name_are_refused():
    with pytest.raises(ConfigError, match="channels are T1, t1; expected at least one name, and each only once"):
        adapt_stems({}, {}, ["CT"], ["T1", "t1"])
