"""MONAI's ViT, ViTAutoEnc and MaskedAutoEncoderViT in our networks: stored outputs everywhere, the peers themselves where torch is."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.models.mae import MAE, MAEConfig
from jaxseg.models.vit import ViT
from jaxseg.zoo.convert.monai_unetr import LAYOUTS as UNETR_LAYOUTS
from jaxseg.zoo.convert.monai_vit import LAYOUTS
from jaxseg.zoo.convert.source import Settings, Source
from jaxseg.zoo.names import unflatten_params
from tests.peers import import_peer


@pytest.fixture(scope="module")
def golden():
    """The module that made the golden file: its cases, and weights and images by seed."""
    path = Path(__file__).parents[1] / "golden" / "make_monai_vit.py"
    spec = importlib.util.spec_from_file_location("make_monai_vit", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(state, **settings) -> tuple[Any, Source]:
    """The converted network of the one layout that recognises the state, and what became of it."""
    shapes = {key: value.shape for key, value in state.items()}
    (layout,) = [layout for layout in (*LAYOUTS, *UNETR_LAYOUTS) if layout.recognise(shapes)]
    source = Source(state, layout.name)
    converted = layout.convert(source, Settings(settings))
    kind = MAE if isinstance(converted.config, MAEConfig) else ViT
    graph, params = nnx.split(nnx.eval_shape(lambda: kind(converted.config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, unflatten_params(params, converted.arrays)), source


def settings_of(case):
    given = {"heads": case.heads, "crop": case.size} | ({"token": case.token} if case.embedding == "perceptron" else {})
    return given | ({"decoder_heads": case.decoder_heads} if case.kind == "MaskedAutoEncoderViT" else {})


def outputs(network, image, visible):
    """What `make_monai_vit.run` gives."""
    if isinstance(network, MAE):
        grid, patches = network.encoder.grid_of(image), network.encoder.patchify(image)
        tokens = network.encode_visible(patches, grid, None, visible, None)
        return {"tokens": tokens, "reconstruction": network.predict_all(patches, grid, None, visible)}
    return {"tokens": network.encode(network.embed(network.patchify(image), network.grid_of(image)), None)}


def assert_equal(case, network, image, visible, wanted, every=1):
    graph, params = nnx.split(network)
    found = jax.jit(lambda params: outputs(nnx.merge(graph, params), image, visible))(params)
    for what, array in found.items():
        array = np.asarray(array)[..., :: every if what == "reconstruction" else 1]
        assert array.shape == wanted[what].shape
        assert np.abs(array - wanted[what]).max() <= 1e-5 * np.ptp(wanted[what]), (case, what)


@pytest.mark.parametrize("name", ["classifier", "autoencoder", "mae", "mae_learned"])
def test_outputs_are_the_peers_stored_ones(golden, name):
    case, stored = golden.CASES[name], np.load(golden.FILE)
    network, _ = convert(golden.make_state(case), **settings_of(case))
    wanted = {key.split(".")[1]: stored[key] for key in stored.files if key.startswith(f"{name}.")}
    assert_equal(case, network, golden.make_image(case), golden.make_visible(case), wanted, every=7)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["classifier", "autoencoder", "mae", "mae_learned"])
def test_outputs_are_the_living_peers(golden, name, seed):
    torch = import_peer("torch")
    import_peer("monai")
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    case = dataclasses.replace(golden.CASES[name], channels=1 + seed, width=72 if seed else 24, heads=2, depth=1 + seed, decoder_heads=1)
    peer = golden.make_peer(case)
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    state = {key: value.float().numpy() for key, value in peer.state_dict().items()}
    network, _ = convert(state, **settings_of(case))
    image, visible = golden.make_image(case), golden.make_visible(case)
    assert_equal(case, network, image, visible, golden.run(case, peer, image, visible))


def test_kinds_of_positions_are_told_by_their_values(golden):
    case = golden.CASES["mae"]
    network, _ = convert(golden.make_state(case), **settings_of(case))
    assert (network.config.encoder.positions, network.config.decoder.positions) == ("sincos", "sincos")
    blank = golden.make_state(case) | {"decoder_pos_embedding": np.zeros((1, case.tokens, case.decoder_width), np.float32)}
    network, _ = convert(blank, **settings_of(case))
    assert network.config.decoder.positions == "none" and network.config.mask_unit == (1, 1, 1)


def test_defaults_are_said_aloud_and_what_is_never_reached_is_named(golden):
    case = dataclasses.replace(golden.CASES["autoencoder"], size=(32, 32, 32), token=(16, 16, 16), hidden=85, width=48)
    old = {
        "patch_embedding.cls_token": np.zeros((1, 1, 48)),
        "blocks.0.cross_attn.to_q.weight": np.zeros((48, 48)),
    }
    network, source = convert(golden.make_state(case) | old)
    assert (network.config.heads, network.config.token, network.config.crop) == (12, (16, 16, 16), (32, 32, 32))
    assert network.config.in_channels == 2 and network.config.block.hidden == 85
    assert set(old) < set(source.ignored) and "conv3d_transpose.weight" in source.ignored
    settings = Settings()
    LAYOUTS[1].convert(Source(golden.make_state(case), ""), settings)
    assert [line.split(" = ")[0] for line in settings.said] == ["token", "crop", "heads"]


def test_what_does_not_fit_is_said_with_numbers(golden):
    case = golden.CASES["autoencoder"]
    state = golden.make_state(case)
    with pytest.raises(ConfigError, match="table of 32 positions is not that of a cube"):
        convert(state, heads=4, token=(4, 4, 16))
    with pytest.raises(CheckpointError, match=r"32 places, which is not what a crop of \(16, 16, 16\)"):
        convert(state, heads=4, token=(4, 4, 16), crop=16)
    with pytest.raises(CheckpointError, match=r"512 numbers, which tokens of \(16, 16, 16\)"):
        convert(state, heads=4, crop=case.size)
    with pytest.raises(ConfigError, match="heads cannot be told from the arrays"):
        convert(golden.make_state(dataclasses.replace(case, width=36)), crop=case.size, token=case.token)
    with pytest.raises(CheckpointError, match=r"1 arrays have no place here, among them \['head.weight'\]"):
        convert(state | {"head.weight": np.zeros(3)}, **settings_of(case))
    flat = golden.make_state(golden.CASES["classifier"])
    flat["patch_embedding.patch_embeddings.weight"] = np.zeros((48, 1, 8, 8))
    with pytest.raises(CheckpointError, match="images of 2 axes"):
        convert(flat, heads=4)
