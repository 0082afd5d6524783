"""CineMA's published layout in our network: one view's encoder, equal to its blocks restated in torch from the published sources.

The peer's package is not run: this holds our reading of it, not the package itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import CheckpointError, ConfigError, ShapeError
from jaxseg.models.cinema import CineMA, CineMAConfig
from jaxseg.zoo.convert.cinema import LAYOUTS
from jaxseg.zoo.convert.source import Settings, Source
from jaxseg.zoo.names import unflatten_params
from jaxseg.zoo.pretrained import convert_file
from tests.peers import import_peer

STEM, WIDTH, HEADS, DEPTH = (4, 6), 24, 2, 2
PATCH, SCALE, CROP = (2, 2, 1), (2, 2, 1), {"sax": (16, 16, 4), "lax_2c": (32, 32)}
SAX = {"heads": HEADS, "crop": CROP["sax"]}
LAX = {"heads": HEADS, "crop": (*CROP["lax_2c"], 1), "view": "lax_2c"}


def waves(index, width):
    """Sines, then cosines, of one axis' token numbers."""
    angles = index[..., None] * 10000.0 ** -(np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def table(crop):
    """The published fixed positions of a square grid: the second axis' waves, then the first's, then the third's."""
    index = np.indices([side // f // s**2 for side, f, s in zip(crop, PATCH, SCALE)])
    order = (1, 0, 2)[: len(index)]
    return np.concatenate([waves(index[axis], WIDTH // len(index)) for axis in order], axis=-1).reshape(1, -1, WIDTH)


def shapes(channels):
    """Names and shapes of a whole published file, short: a stack, a plane and a decoder."""
    linear, norms = {}, {}
    for view, crop in CROP.items():
        axes, down = len(crop), f"enc_down_dict.{view}"
        for level, (inputs, outputs) in enumerate(zip((channels, *STEM), STEM)):
            name = f"{down}.conv_blocks.{level}"
            linear[f"{name}.patch_embed.conv"] = (outputs, inputs, *(SCALE if level else PATCH)[:axes])
            norms[f"{name}.patch_embed.norm"] = outputs
            for i in range(2):
                norms |= {f"{name}.conv.{i}.norm{n}": outputs for n in (1, 2)}
                linear |= {f"{name}.conv.{i}.conv{n}": (outputs, outputs, *[1] * axes) for n in (1, 2)}
                linear[f"{name}.conv.{i}.dw_conv"] = (outputs, 1, *[5] * axes)
                linear[f"{name}.conv.{i}.mlp.fc1"] = (4 * outputs, outputs, *[1] * axes)
                linear[f"{name}.conv.{i}.mlp.fc2"] = (outputs, 4 * outputs, *[1] * axes)
            factors = [s ** (2 - level) for s in SCALE[:axes]]
            linear[f"enc_fusion_dict.{view}.down_convs.{level}"] = (WIDTH, outputs, *factors)
        linear[f"{down}.patch_embed.proj"] = (WIDTH, 4 * STEM[-1])
        linear |= {f"{down}.linear": (WIDTH, WIDTH), f"pred_head_dict.{view}": (64, 8)}
        norms[f"enc_fusion_dict.{view}.norm"] = WIDTH
    for name in [f"encoder.blocks.{i}" for i in range(DEPTH)] + ["decoder.blocks.0"]:
        norms |= {f"{name}.norm1": WIDTH, f"{name}.norm2": WIDTH}
        linear |= {f"{name}.attn.q": (WIDTH, WIDTH), f"{name}.attn.kv": (2 * WIDTH, WIDTH), f"{name}.attn.proj": (WIDTH, WIDTH)}
        linear |= {f"{name}.mlp.fc1": (4 * WIDTH, WIDTH), f"{name}.mlp.fc2": (WIDTH, 4 * WIDTH)}
    return linear | {"dec_linear": (8, WIDTH)}, norms | {"encoder.norm": WIDTH, "decoder.norm": WIDTH}


def make_state(seed=0, channels=1):
    """A file's arrays by seed."""
    draw = np.random.default_rng(seed).normal
    linear, norms = shapes(channels)
    state = {f"{name}.weight": draw(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in linear.items()}
    state |= {f"{name}.bias": 0.2 * draw(size=shape[0]) for name, shape in linear.items()}
    state |= {f"{name}.weight": 1 + 0.2 * draw(size=width) for name, width in norms.items()}
    state |= {f"{name}.bias": 0.2 * draw(size=width) for name, width in norms.items()}
    state |= {f"enc_down_dict.{view}.pos_embed": table(crop) for view, crop in CROP.items()}
    state |= {"encoder.cls_token": draw(size=(1, 1, WIDTH)), "dec_embed_dict.sax.mask_token": draw(size=(1, 1, 8))}
    return {name: np.asarray(array, np.float32) for name, array in state.items()}


def restated_maps(torch, state, view, image):
    """The blocks of the published sources, `(b, c, x, y[, z])` to the maps of the stem and the fused tokens `(b, n, w)`."""
    f = torch.nn.functional
    axes = image.ndim - 2
    convolve = {2: f.conv2d, 3: f.conv3d}[axes]
    w = {name: torch.from_numpy(array) for name, array in state.items()}

    def conv(name, x, **how):
        return convolve(x, w[f"{name}.weight"], w[f"{name}.bias"], **how)

    def lin(name, x):
        return f.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, x, epsilon=1e-5):
        return f.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], epsilon)

    def channel_norm(name, x):
        return norm(name, x.movedim(1, -1), 1e-6).movedim(-1, 1)

    x, maps, down = image, [], f"enc_down_dict.{view}"
    for level in range(len(STEM)):
        name = f"{down}.conv_blocks.{level}"
        x = conv(f"{name}.patch_embed.conv", x, stride=(SCALE if level else PATCH)[:axes])
        x = f.gelu(channel_norm(f"{name}.patch_embed.norm", x))
        for block in (f"{name}.conv.{i}" for i in range(2)):
            mixed = conv(f"{block}.conv1", channel_norm(f"{block}.norm1", x))
            x = x + conv(f"{block}.conv2", conv(f"{block}.dw_conv", mixed, padding=2, groups=x.shape[1]))
            x = x + conv(f"{block}.mlp.fc2", f.gelu(conv(f"{block}.mlp.fc1", channel_norm(f"{block}.norm2", x))))
        maps.append(x)

    grid = [side // s for side, s in zip(x.shape[2:], SCALE)]
    blocks = x.unfold(2, 2, 2).unfold(3, 2, 2)  # b c x y (z) p q; scale is 1 along z
    tokens = lin(f"{down}.linear", lin(f"{down}.patch_embed.proj", blocks.movedim(1, -1).flatten(-3).flatten(1, -2)))
    made = [side // p // s**2 for side, p, s in zip(CROP[view], PATCH, SCALE)]
    places = w[f"{down}.pos_embed"].reshape(1, *made, WIDTH)
    if grid != made:
        places = f.interpolate(places.movedim(-1, 1), size=grid, mode="trilinear").movedim(1, -1)
    x = torch.cat([w["encoder.cls_token"].expand(len(image), -1, -1), tokens + places.flatten(1, -2)], dim=1)
    for block in (f"encoder.blocks.{i}" for i in range(DEPTH)):
        y = norm(f"{block}.norm1", x)
        q, k, v = (
            a.unflatten(-1, (HEADS, -1)).transpose(1, 2) for a in (lin(f"{block}.attn.q", y), *lin(f"{block}.attn.kv", y).chunk(2, -1))
        )
        x = x + lin(f"{block}.attn.proj", f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + lin(f"{block}.mlp.fc2", f.gelu(lin(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
    x = norm("encoder.norm", x)[:, 1:]
    for level, each in enumerate(maps):
        name = f"enc_fusion_dict.{view}.down_convs.{level}"
        x = x + conv(name, each, stride=w[f"{name}.weight"].shape[2:]).flatten(2).transpose(1, 2)
    return [each.movedim(1, -1).numpy() for each in maps] + [norm(f"enc_fusion_dict.{view}.norm", x).numpy()]


def convert(state, **given):
    """The filled network, what became of the arrays, and the settings."""
    (layout,) = [layout for layout in LAYOUTS if layout.recognise({name: array.shape for name, array in state.items()})]
    source, settings = Source(state, layout.name), Settings(given)
    converted = layout.convert(source, settings)
    graph, params = nnx.split(nnx.eval_shape(lambda: CineMA(converted.config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, unflatten_params(params, converted.arrays)), source, settings


def maps_of(network, image):
    graph, params = nnx.split(network)
    return jax.jit(lambda params, x: nnx.merge(graph, params).features(x))(params, image)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("seed", "channels", "settings", "size"),
    [(0, 1, SAX, (16, 16, 4)), (1, 2, SAX, (24, 16, 6)), (2, 1, LAX, (32, 32, 1))],
)
def test_a_saved_file_gives_the_maps_of_the_restated_blocks(tmp_path, seed, channels, settings, size):
    torch, safetensors = import_peer("torch"), import_peer("safetensors.torch")
    torch.set_num_threads(1)
    state, view = make_state(seed, channels), settings.get("view", "sax")
    safetensors.save_file({name: torch.from_numpy(array) for name, array in state.items()}, tmp_path / "cinema.safetensors")
    model, report = convert_file(tmp_path / "cinema.safetensors", settings=settings)
    assert report.layout == "CineMA" and report.whole and any("never run" in note for note in report.notes)
    image = np.random.default_rng(seed).normal(size=(2, *size, channels)).astype(np.float32)
    theirs = np.moveaxis(image, -1, 1)
    with torch.no_grad():
        wanted = restated_maps(torch, state, view, torch.from_numpy(theirs if view == "sax" else theirs[..., 0].copy()))
    for found, each in zip(maps_of(model.network, image), wanted, strict=True):
        difference = np.abs(np.asarray(found).reshape(each.shape) - each).max() / np.ptp(each)
        assert difference <= 1e-5, (view, difference)


def test_views_and_positions_are_told_and_the_rest_is_named():
    state = make_state()
    network, source, _ = convert(state, **SAX)
    config = network.config
    assert (config.positions, config.kernel, config.token, config.stem_depth) == ("sincos", (5, 5, 5), (8, 8, 1), 2)
    assert source.unknown() == [] and "encoder.cls_token" in source.used
    reasons = {key.split(".")[0]: why for key, why in source.ignored.items()}
    assert "decoder" in reasons["decoder"] and "lax_2c" in reasons["enc_down_dict"] and "decoder" in reasons["pred_head_dict"]
    plane, _, _ = convert(state, **LAX)
    assert (plane.config.positions, plane.config.kernel, plane.config.transformer.grid) == ("learned", (5, 5, 1), (4, 4, 1))
    alone = {key: array for key, array in state.items() if ".lax_2c" not in key and not key.startswith("dec")}
    assert "classifies" in convert(alone, **SAX)[1].ignored["pred_head_dict.sax.weight"]


def test_what_shapes_cannot_tell_is_said_or_asked_for():
    state = make_state()
    _, _, settings = convert(state, **SAX)
    assert [line.split(" (")[0] for line in settings.said] == ["view = sax"]
    for given, error, words in (
        ({**SAX, "view": "lax_4c"}, ConfigError, "view is 'lax_4c'; this file holds lax_2c, sax"),
        ({"crop": CROP["sax"]}, ConfigError, "heads cannot be told"),
        ({"heads": HEADS}, ConfigError, "crop cannot be told"),
        ({**SAX, "crop": (16, 16, 5)}, CheckpointError, "16 places"),
    ):
        with pytest.raises(error, match=words):
            convert(state, **given)
    with pytest.raises(CheckpointError, match="1 arrays have no place"):
        convert(state | {"segmenter.weight": np.zeros(3)}, **SAX)
    del state["encoder.blocks.1.attn.kv.bias"]
    with pytest.raises(CheckpointError, match=r"encoder\.blocks\.1\.attn\.kv\.bias is missing"):
        convert(state, **SAX)


def test_the_published_size_and_what_does_not_fit_it():
    config = CineMAConfig.base()
    assert (config.token, config.transformer.grid) == ((16, 16, 1), (12, 12, 16))
    maps = nnx.eval_shape(lambda: CineMA(config, rngs=nnx.Rngs(0)).features(jnp.zeros((1, 64, 32, 3, 1))))
    assert [each.shape for each in maps] == [(1, 16, 8, 3, 64), (1, 8, 4, 3, 128), (1, 4, 2, 3, 768)]
    for changes, words in (
        ({"crop": (192, 100, 16)}, "multiple of the token"),
        ({"stem_widths": ()}, "one level"),
        ({"kernel": (5, 4, 5)}, "odd"),
    ):
        with pytest.raises(ConfigError, match=words):
            CineMAConfig.base(**changes)
    network = nnx.eval_shape(lambda: CineMA(config, rngs=nnx.Rngs(0)))
    for shape in ((1, 40, 32, 3, 1), (1, 64, 32, 3, 2), (64, 32, 3, 1)):
        with pytest.raises(ShapeError):
            network(jnp.zeros(shape))
