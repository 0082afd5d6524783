"""A training step of nnssl's EvaMAE: put together from dynamic-network-architectures' parts, as its sources do, and ours of the same weights.

nnssl itself is no package that can be installed beside this one.
"""

import dataclasses
from pathlib import Path
from typing import Any

from bench import torch_side
from bench.case import SAME_MATHS, Case, Setting, Work
from bench.masked_training import TOLERANCE, noise, our_work, visible_tokens


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Cubic crops of `side` voxels, tokens of `token`; width, depth and heads of the encoder. The decoder has two blocks of its width."""

    side: int
    token: int
    width: int
    depth: int
    heads: int
    batch: int = 1
    channels: int = 1


_DECODER_DEPTH = 2
_QUICK = Sizes(16, 4, 48, 2, 2, batch=2)


def _case(variant: str, sizes: Sizes, *, gpu_only: bool = False) -> Case:
    return Case(
        variant,
        "dynamic-network-architectures Eva, as nnssl's EvaMAE",
        SAME_MATHS,
        sizes,
        _QUICK,
        lambda sizes: sizes.batch,
        "crops",
        TOLERANCE,
        gpu_only=gpu_only,
        voxels=lambda sizes: sizes.batch * sizes.side**3,
    )


CASES = (
    _case("primus_s_64_batch2", Sizes(64, 8, 396, 12, 6, batch=2)),
    _case("primus_m_96", Sizes(96, 8, 864, 16, 12)),
    _case("primus_m_160_batch2", Sizes(160, 8, 864, 16, 12, batch=2), gpu_only=True),
)


def _network(sizes: Sizes, setting: Setting) -> Any:
    """The peer's network: an image (b, c, x, y, z) → (image, 1 for every token that was hidden (b, n)). Three quarters are hidden at random,
    or all but `seen` (b, n / 4)."""
    torch = torch_side.import_or_absent(setting, "torch")
    eva = torch_side.import_or_absent(setting, "dynamic_network_architectures.building_blocks.eva")
    parts = torch_side.import_or_absent(setting, "dynamic_network_architectures.building_blocks.patch_encode_decode")
    token, count = (sizes.token,) * 3, (sizes.side // sizes.token,) * 3
    options = {"num_heads": sizes.heads, "ref_feat_shape": count, "init_values": 0.1, "scale_attn_inner": True}

    class Encoder(eva.Eva):
        def _pos_embed(self, x: Any) -> tuple[Any, Any, Any]:
            x, rotation, kept = super()._pos_embed(x)
            # An axis for the heads: without it timm takes that of the crops for theirs.
            return x, rotation[:, None], kept

    class EvaMAE(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down_projection = parts.PatchEmbed(token, sizes.channels, sizes.width)
            self.eva = Encoder(sizes.width, sizes.depth, **options)
            # Its own argument asks for a module that timm no longer has.
            self.eva.patch_drop = self._drop
            self.seen: Any = None
            self.mask_token = torch.nn.Parameter(torch.zeros(1, 1, sizes.width))
            self.decoder = eva.Eva(sizes.width, _DECODER_DEPTH, **options)
            self.up_projection = parts.PatchDecode(token, sizes.width, sizes.channels, norm=parts.LayerNormNd, activation=torch.nn.GELU)

        def _drop(self, tokens: Any) -> tuple[Any, Any]:
            b, n, width = tokens.shape
            kept = torch.rand(b, n, device=tokens.device).argsort(1)[:, : n // 4] if self.seen is None else self.seen
            return tokens.gather(1, kept[..., None].expand(-1, -1, width)), kept

        def forward(self, image: Any) -> tuple[Any, Any]:
            tokens = self.down_projection(image).flatten(2).transpose(1, 2)
            seen, kept = self.eva(tokens)
            hidden = torch.ones(tokens.shape[:2], device=tokens.device).scatter(1, kept, 0.0)
            # In one operation; in nnssl sample after sample.
            filled = self.mask_token.to(seen.dtype).expand(tokens.shape).scatter(1, kept[..., None].expand(seen.shape), seen)
            decoded = self.decoder(filled)[0].transpose(1, 2).unflatten(2, count)
            return self.up_projection(decoded), hidden

    return EvaMAE()


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """The peer's, of random weights, with the squared error of hidden tokens; no drop path on either side."""
    torch = torch_side.import_or_absent(setting, "torch")
    net = _network(sizes, setting)
    image = torch_side.tensor(noise(sizes), setting)
    visible = torch.from_numpy(visible_tokens(sizes)).to(image.device)

    def patches(image: Any) -> Any:
        """(b, n, voxels and channels of a token), tokens in the order (x, y, z)."""
        b, c, *_ = image.shape
        n, t = sizes.side // sizes.token, sizes.token
        return image.reshape(b, c, n, t, n, t, n, t).permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, n**3, t**3 * c)

    def error(predicted: Any, hidden: Any) -> Any:
        return (patches(predicted.float() - image).square().mean(-1) * hidden).sum() / hidden.sum()

    def check(net: Any, image: Any) -> dict[str, Any]:
        net.seen = visible
        predicted, hidden = net(image)
        net.seen = None
        return {"reconstruction": patches(predicted), "loss": error(predicted, hidden)}

    return torch_side.train_work(net, image, lambda net, image: error(*net(image)), check, setting, folder)


def _config(sizes: Sizes) -> Any:
    """The same network in our config."""
    from jaxseg.models.eva import EvaConfig
    from jaxseg.models.eva_mae import EvaMAEConfig

    side, token = sizes.side, sizes.token
    encoder = EvaConfig(sizes.channels, (side, side, side), (token, token, token), sizes.width, sizes.depth, sizes.heads)
    return EvaMAEConfig(encoder, decoder_depth=_DECODER_DEPTH, decoder_heads=sizes.heads)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """Ours, of the peer's weights; masks of single tokens on both sides."""
    from bench import jax_side

    settings = {"heads": sizes.heads, "crop": (sizes.side,) * 3, "token_order": "whd"}
    graph, params = jax_side.converted(folder, setting, settings, alone=lambda: _config(sizes))
    return our_work(graph, params, sizes, setting)
