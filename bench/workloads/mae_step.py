"""A training step of a masked autoencoder: MONAI's `MaskedAutoEncoderViT` and ours, of the same weights, and our own recipe for a crop."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import torch_side
from bench.case import OUR_RECIPE, SAME_MATHS, Case, Setting, Work
from bench.masked_training import TOLERANCE, noise, our_work, patches_of, visible_tokens

_BASE = {"hidden_size": 768, "mlp_dim": 3072, "num_layers": 12, "num_heads": 12}
_SMALL = {"hidden_size": 192, "mlp_dim": 768, "num_layers": 6, "num_heads": 3}
_DECODER = {"decoder_hidden_size": 384, "decoder_mlp_dim": 1536, "decoder_num_layers": 4, "decoder_num_heads": 6}
_NARROW = {"decoder_hidden_size": 96, "decoder_mlp_dim": 384, "decoder_num_layers": 2, "decoder_num_heads": 3}


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
        TOLERANCE,
        voxels=lambda sizes: sizes.batch * sizes.side**3,
    )


CASES = (
    _case("base_64_token16", Sizes(64, 16, _BASE | _DECODER)),
    _case("base_96_token16", Sizes(96, 16, _BASE | _DECODER)),
    _case("base_64_token8", Sizes(64, 8, _BASE | _DECODER)),
    _case("small_64_token8_batch4", Sizes(64, 8, _SMALL | _NARROW, batch=4)),
    _case("base_64_token8_quarter", Sizes(64, 8, _BASE | _DECODER, predict=0.25)),
)


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """MONAI's, of random weights, with the squared error of hidden tokens."""
    nets, torch = (torch_side.import_or_absent(setting, module) for module in ("monai.networks.nets", "torch"))
    net = nets.MaskedAutoEncoderViT(sizes.channels, sizes.side, sizes.token, **sizes.network)
    image, visible = torch_side.tensor(noise(sizes), setting), torch.from_numpy(visible_tokens(sizes))
    target = torch.from_numpy(patches_of(noise(sizes), sizes.token)).to(image.device)

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
    from bench import jax_side

    settings = {"heads": sizes.network["num_heads"], "decoder_heads": sizes.network["decoder_num_heads"]}
    graph, params = jax_side.converted(folder, setting, settings, alone=lambda: _config(sizes), predict=sizes.predict)
    return our_work(graph, params, sizes, setting)
