"""What is exported loads into MONAI's own modules strictly and gives our logits there; converted back it is the same to the bit."""

from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from jaxseg.cli import main
from jaxseg.errors import ConfigError
from jaxseg.models.swin import SwinConfig
from jaxseg.models.swin_unetr import SwinUNETR, SwinUNETRConfig
from jaxseg.models.unetr import UNETR, UNETRConfig
from jaxseg.models.vit import ViT, ViTConfig
from jaxseg.zoo.convert.monai_swin import LAYOUTS as swin_layouts
from jaxseg.zoo.convert.monai_unetr import LAYOUTS as unetr_layouts
from jaxseg.zoo.convert.source import Settings, Source
from jaxseg.zoo.export.monai import export_monai, monai_arguments, monai_versions
from jaxseg.zoo.folder import save_model
from jaxseg.zoo.names import flatten_params, param_shapes, unflatten_params
from tests.peers import import_peer

SWIN = SwinUNETRConfig(
    SwinConfig(
        2, 12, heads=(2, 4, 8, 8), depths=(2, 1, 1, 1), window=(4, 3, 5), mlp_ratio=2.5, qkv_bias=False, patch_norm=True, use_v2=True
    ),
    3,
)
VIT = ViTConfig.classic(in_channels=2, crop=(32, 16, 48), width=24, heads=2, mlp_ratio=2.5, qkv_bias=True)
CASES = {
    "swin_unetr": (SwinUNETR, SWIN),
    "swin_unetr v2 order, not normalised": (
        SwinUNETR,
        SwinUNETRConfig(SwinConfig(1, 12, depths=(1, 1, 1, 1), window=(3, 3, 3), downsample="mergingv2", normalize=False), 2),
    ),
    "unetr": (UNETR, UNETRConfig(VIT, num_classes=3, feature=4)),
}


@cache
def random_network(kind, config):
    """A network with numpy's numbers: nothing to compile, and built once for all tests."""
    graph, params = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    draw = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) for name, shape in param_shapes(params).items()}
    return nnx.merge(graph, unflatten_params(params, draw))


def convert_back(state, config):
    """Config and arrays from an exported state; what shapes cannot tell is given."""
    layouts = swin_layouts if isinstance(config, SwinUNETRConfig) else unetr_layouts
    (layout,) = [each for each in layouts if each.recognise({key: value.shape for key, value in state.items()})]
    encoder = config.encoder
    swin = isinstance(encoder, SwinConfig)
    given = {"normalize": encoder.normalize, "downsample": encoder.downsample} if swin else {"heads": encoder.heads, "crop": encoder.crop}
    source = Source(state, layout.name)
    converted = layout.convert(source, Settings(given))
    assert not source.unknown() and not converted.missing
    return converted


@pytest.mark.parametrize("name", CASES)
def test_converted_back_it_is_the_same_network_to_the_bit(name):
    kind, config = CASES[name]
    network = random_network(kind, config)
    state = export_monai(network)
    assert all(array.flags.c_contiguous and array.dtype in (np.float32, np.int64) for array in state.values())
    converted = convert_back(state, config)
    assert converted.config == config
    before = flatten_params(network)
    assert converted.arrays.keys() == before.keys()
    assert all(np.array_equal(converted.arrays[key], before[key]) for key in before)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_peer_takes_it_strictly_and_gives_our_logits(name):
    torch = import_peer("torch")
    torch.set_num_threads(1)
    kind, config = CASES[name]
    network = random_network(kind, config)
    peer = getattr(import_peer("monai.networks.nets"), kind.__name__)(**monai_arguments(network)).eval()
    peer.load_state_dict({key: torch.from_numpy(value) for key, value in export_monai(network).items()}, strict=True)
    size = (64, 32, 32) if isinstance(config, SwinUNETRConfig) else config.encoder.crop
    image = np.random.default_rng(1).normal(size=(1, *size, config.in_channels)).astype(np.float32)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(image).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).numpy()
    graph, params = nnx.split(network)
    ours = np.asarray(jax.jit(lambda params, x: nnx.merge(graph, params)(x))(params, image))
    assert np.abs(ours - theirs).max() <= 1e-5 * np.ptp(theirs)


def test_what_monai_has_not_is_refused_with_the_reason():
    def refuse(kind, config, **how):
        export_monai(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))), **how)

    with pytest.raises(ConfigError, match=r"token is \(8, 8, 8\) where MONAI has \(16, 16, 16\); .*positions is 'rope_mm'.*stride is 2"):
        refuse(UNETR, UNETRConfig(ViTConfig(width=24, heads=2, depth=12, token=(8, 8, 8)), feature=4, stride=2))
    with pytest.raises(ConfigError, match=r"patch is \(2, 2, 1\)"):
        refuse(SwinUNETR, SwinUNETRConfig(SwinConfig(feature=12, patch=(2, 2, 1))))
    with pytest.raises(ConfigError, match="multiples of 12"):
        refuse(SwinUNETR, SwinUNETRConfig(SwinConfig(feature=8, heads=(1, 2, 4, 8))))
    with pytest.raises(ConfigError, match="a ViT has no counterpart"):
        refuse(ViT, ViTConfig(width=24, heads=2, depth=1))


def test_the_merging_of_old_versions_is_written_for_them_alone():
    config = SwinUNETRConfig(SwinConfig(feature=12, depths=(1, 1, 1, 1), downsample="merging_repeated"))
    network = random_network(SwinUNETR, config)
    with pytest.raises(ConfigError, match="merging_repeated.*old_merging=True"):
        export_monai(network)
    assert convert_back(export_monai(network, old_merging=True), config).config == config
    arguments = monai_arguments(network)
    assert "downsample" not in arguments and "img_size" in arguments and "window_size" not in arguments
    assert monai_versions(network) == "0.9 to 1.4" and monai_versions(random_network(*CASES["swin_unetr"])) is None


def test_the_command_says_for_which_versions_the_old_merging_is(tmp_path, capsys):
    config = SwinUNETRConfig(SwinConfig(feature=12, depths=(1, 1, 1, 1), downsample="merging_repeated"))
    save_model(tmp_path / "model", random_network(SwinUNETR, config), {"channels": ["CT"]})
    out = tmp_path / "old.safetensors"
    assert main(["export-torch", str(tmp_path / "model"), "--out", str(out), "--old-merging"]) == 0
    assert ") of MONAI 0.9 to 1.4, not of later ones" in capsys.readouterr().out
    assert b"versions" in out.read_bytes()[:100_000]
