"""A training step of a masked autoencoder: MONAI's `MaskedAutoEncoderViT` and ours, of the same weights, and our own recipe for a crop."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import torch_side
from bench.case import OUR_RECIPE, SAME_MATHS, Case, Setting, Work

_BASE = {"hidden_size": 768, "mlp_dim": 3072, "num_layers": 12, "num_heads": 12}
_SMALL = {"hidden_size": 192, "mlp_dim": 768, "num_layers": 6, "num_heads": 3}
_DECODER = {"decoder_hidden_size": 384, "decoder_mlp_dim": 1536, "decoder_num_layers": 4, "decoder_num_heads": 6}
_NARROW = {"decoder_hidden_size": 96, "decoder_mlp_dim": 384, "decoder_num_layers": 2, "decoder_num_heads": 3}
_TOLERANCE = {"reconstruction": 1e-4, "loss": 1e-4, "grad_norm": 1e-3}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Cubic crops of `side` voxels, tokens of `token`; `network` are MONAI's arguments. With `predict` below 1 ours scores a part alone."""

    side: int
    token: int
    network: Mapping[str, int]
    batch: int = 1
    channels: int = 4
    predict: float = 1.0


_QUICK = Sizes(16, 8, {**_NARROW, "hidden_size": 48, "mlp_dim": 96, "num_layers": 2, "num_heads": 2}, batch=2, channels=1)


def _case(variant: str, sizes: Sizes) -> Case:
    kind = SAME_MATHS if sizes.predict == 1.0 else OUR_RECIPE
    quick = dataclasses.replace(_QUICK, predict=sizes.predict)
    return Case(
        variant,
        "MONAI MaskedAutoEncoderViT",
        kind,
        sizes,
        quick,
        lambda sizes: sizes.batch,
        "crops",
        _TOLERANCE,
        voxels=lambda sizes: sizes.batch * sizes.side**3,
    )


CASES = (
    _case("base_64_token16", Sizes(64, 16, _BASE | _DECODER)),
    _case("base_96_token16", Sizes(96, 16, _BASE | _DECODER)),
    _case("base_64_token8", Sizes(64, 8, _BASE | _DECODER)),
    _case("small_64_token8_batch4", Sizes(64, 8, _SMALL | _NARROW, batch=4)),
    _case("base_64_token8_quarter", Sizes(64, 8, _BASE | _DECODER, predict=0.25)),
)


def _image(sizes: Sizes) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((sizes.batch, *(sizes.side,) * 3, sizes.channels), np.float32)


def _visible(sizes: Sizes) -> np.ndarray:
    """The tokens that are seen where both sides must see the same: MONAI's int(0.25 n) of each image."""
    tokens = (sizes.side // sizes.token) ** 3
    return np.argsort(np.random.default_rng(1).random((sizes.batch, tokens)), axis=1)[:, : int(0.25 * tokens)]


def _patches(image: np.ndarray, token: int) -> np.ndarray:
    b, x, y, z, c = image.shape
    grid = image.reshape(b, x // token, token, y // token, token, z // token, token, c)
    return np.ascontiguousarray(grid.transpose(0, 1, 3, 5, 2, 4, 6, 7)).reshape(b, -1, token**3 * c)


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """MONAI's, of random weights, with the squared error of hidden tokens."""
    nets, torch = (torch_side.import_or_absent(setting, module) for module in ("monai.networks.nets", "torch"))
    net = nets.MaskedAutoEncoderViT(sizes.channels, sizes.side, sizes.token, **sizes.network)
    image = torch_side.tensor(_image(sizes), setting)
    target, visible = torch.from_numpy(_patches(_image(sizes), sizes.token)).to(image.device), torch.from_numpy(_visible(sizes))

    def error(predicted: Any, mask: Any) -> Any:
        return ((predicted.float() - target).square().mean(-1) * mask).sum() / mask.sum()

    if setting.dtype == "bfloat16":
        # MONAI writes the visible tokens into a float32 array, which autocast's bfloat16 ones do not fit.
        net.decoder_embed.register_forward_hook(lambda module, given, made: made.float())

    def check(net: Any, image: Any) -> dict[str, Any]:
        rows = torch.arange(sizes.batch)[:, None]

        def masking(x: Any, masking_ratio: Any = None) -> Any:
            mask = torch.ones(x.shape[:2], device=x.device)
            mask[rows, visible] = 0
            return x[rows, visible], visible, mask

        net._masking = masking
        predicted, mask = net(image)
        del net._masking
        return {"reconstruction": predicted, "loss": error(predicted, mask)}

    return torch_side.train_work(net, image, lambda net, image: error(*net(image)), check, setting, folder)


def _config(sizes: Sizes) -> Any:
    """Our config of MONAI's arguments."""
    from jaxseg.models import MAEConfig, ViTConfig

    network, width = sizes.network, sizes.network["hidden_size"]
    encoder = ViTConfig.classic(
        in_channels=sizes.channels,
        crop=(sizes.side,) * 3,
        token=(sizes.token,) * 3,
        width=width,
        depth=network["num_layers"],
        heads=network["num_heads"],
        mlp_ratio=network["mlp_dim"] / width,
        positions="sincos",
        class_token=True,
    )
    return MAEConfig(
        encoder,
        decoder_width=network["decoder_hidden_size"],
        decoder_depth=network["decoder_num_layers"],
        decoder_heads=network["decoder_num_heads"],
        decoder_mlp_ratio=network["decoder_mlp_dim"] / network["decoder_hidden_size"],
        decoder_positions="sincos",
        mask_unit=(1, 1, 1),
    )


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """Ours, of MONAI's weights; masks of single tokens, as MONAI's."""
    import jax.numpy as jnp

    from bench import jax_side

    settings = {"heads": sizes.network["num_heads"], "decoder_heads": sizes.network["decoder_num_heads"]}
    graph, params = jax_side.converted(folder, setting, settings, alone=lambda: _config(sizes), predict=sizes.predict)
    image, visible = _image(sizes), _visible(sizes)
    batch = {"image": image, "mask": np.ones(image.shape[:4], np.uint8), "present": np.ones((sizes.batch, sizes.channels), np.float32)}

    def loss(network: Any, batch: Any, keys: Any) -> Any:
        return network.loss(batch["image"], batch["mask"], batch["present"], None, keys)[0]

    def check(network: Any) -> Any:
        patches, grid = network.encoder.patchify(jnp.asarray(image)), network.encoder.grid_of(image)
        predicted = network.predict_all(patches, grid, None, jnp.asarray(visible))
        hidden = jnp.ones(patches.shape[:2]).at[jnp.arange(sizes.batch)[:, None], visible].set(0)
        error = jnp.square(predicted - patches).mean(-1)
        return {"reconstruction": predicted, "loss": jnp.sum(error * hidden) / jnp.sum(hidden)}

    return jax_side.train_work(graph, params, batch, loss, check, setting)
