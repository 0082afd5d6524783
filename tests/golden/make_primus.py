"""Makes `primus.npz`: logits of dynamic-network-architectures' own Primus for weights and images that follow from a seed.

Run: python tests/golden/make_primus.py. Needs the parity extra. Only the peer's outputs are stored; the tests make the same weights again.
"""

import dataclasses
import sys
import zlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("primus.npz")


@dataclasses.dataclass(frozen=True)
class Case:
    """One Primus: generation, channels in, classes out, crop and token (voxels), and what of an Eva is optional."""

    generation: str
    channels: int
    classes: int
    size: tuple[int, int, int]
    token: tuple[int, int, int] = (8, 8, 8)
    width: int = 72
    depth: int = 2
    heads: int = 2
    hidden: int = 192
    registers: int = 0
    table: bool = True
    inner: bool = True
    widths: tuple[int, ...] = ()

    def settings(self) -> dict[str, object]:
        """What the arrays do not tell a converter."""
        return {"heads": self.heads, "crop": self.size}


CASES = {
    "registers": Case("v1", channels=2, classes=3, size=(16, 24, 8), token=(8, 8, 4), registers=3),
    "bare": Case("v1", channels=1, classes=2, size=(8, 8, 12), token=(4, 4, 4), width=36, table=False, inner=False, hidden=96),
    "v2": Case("v2", channels=1, classes=4, size=(16, 8, 24), width=36, hidden=96, widths=(32, 32, 64, 128)),
    "v3": Case("v3", channels=3, classes=2, size=(16, 24, 16), widths=(8, 16, 24, 40)),
}


def make_state(case: Case) -> dict[str, np.ndarray]:
    """A `state_dict` in the peer's keys and shapes with float32 values that depend on the key alone."""
    return {key: _values(key, shape) for key, shape in _shapes(case).items()}


def make_image(case: Case) -> np.ndarray:
    """Two images (2, x, y, z, c), float32, of mean 0 and deviation 1."""
    return _uniform("image", (2, *case.size, case.channels)).astype(np.float32)


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    # Plain uniform doubles: of all of numpy's streams the one that has never changed between versions.
    return (np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 0.5) * 12**0.5


def _values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    # `all_modules` names the same arrays again.
    key = key.replace(".all_modules.0.", ".conv.").replace(".all_modules.1.", ".norm.")
    values = _uniform(key, shape)
    if "scale_proj" in key:
        values = 0.5 + 0.1 * values
    elif "pos_embed" in key or "register" in key or "mask_token" in key:
        values = 0.5 * values
    elif len(shape) == 1:
        values = 0.1 * values + (key.endswith("weight") or "gamma" in key)
    else:
        values = values / np.sqrt(shape[0] if "decode" in key else np.prod(shape[1:]))
        # Attention that looks at something: uniform weights would hide a wrong angle.
        values = values * (1.5 if "q_proj" in key or "k_proj" in key else 1)
    return np.asarray(values, np.float32)


def _shapes(case: Case) -> dict[str, tuple[int, ...]]:
    width = case.width
    places = int(np.prod(case.size)) // int(np.prod(case.token)) + case.registers
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, 1, width)}
    shapes |= {"register_tokens": (1, case.registers, width)} if case.registers else {}
    shapes |= {"eva.pos_embed": (1, places, width)} if case.table else {}
    for i in range(case.depth):
        shapes |= _block(case, f"eva.blocks.{i}")
    shapes |= _norm("eva.norm", width)
    if case.widths:
        shapes |= _stem(case)
    else:
        shapes |= _conv("down_projection.proj", case.channels, width, case.token)
    return shapes | _decode(case)


def _block(case: Case, name: str) -> dict[str, tuple[int, ...]]:
    width, hidden = case.width, case.hidden
    shapes = _norm(f"{name}.norm1", width) | _norm(f"{name}.norm2", width) | _norm(f"{name}.mlp.norm", hidden)
    if case.inner:
        shapes |= _norm(f"{name}.attn.norm", width) | {f"{name}.gamma_{i}": (width,) for i in (1, 2)}
    for part in ("q_proj", "v_proj", "proj"):
        shapes |= {f"{name}.attn.{part}.weight": (width, width), f"{name}.attn.{part}.bias": (width,)}
    shapes[f"{name}.attn.k_proj.weight"] = (width, width)
    for part in ("fc1_g", "fc1_x"):
        shapes |= {f"{name}.mlp.{part}.weight": (hidden, width), f"{name}.mlp.{part}.bias": (hidden,)}
    return shapes | {f"{name}.mlp.fc2.weight": (width, hidden), f"{name}.mlp.fc2.bias": (width,)}


def _stem(case: Case) -> dict[str, tuple[int, ...]]:
    down, widths = "down_projection", case.widths
    shapes = _residual(f"{down}.stem.blocks.0", case.channels, widths[0], "skip.0", bias=True)
    for i in range(3):
        shapes |= _residual(f"{down}.stages.{i}.blocks.0", widths[i], widths[i + 1], "skip.1", bias=False)
    shapes |= _conv(f"{down}.final_proj", widths[-1], case.width, (1, 1, 1))
    for i in range(3 if case.generation == "v3" else 0):
        shapes |= _conv(f"{down}.proj_to_tokens.{i}", widths[i], case.width, (2 ** (3 - i),) * 3)
        shapes[f"{down}.scale_proj_to_tokens.{i}"] = ()
    return shapes


def _residual(name: str, inputs: int, outputs: int, skip: str, *, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    parts = [("conv1", inputs, 3, bias), ("conv2", outputs, 3, bias)] + ([(skip, inputs, 1, False)] if inputs != outputs else [])
    for part, channels, size, biased in parts:
        for conv, norm in (("conv", "norm"), ("all_modules.0", "all_modules.1")):
            found = _conv(f"{name}.{part}.{conv}", channels, outputs, (size,) * 3) | _norm(f"{name}.{part}.{norm}", outputs)
            shapes |= found if biased else {key: shape for key, shape in found.items() if key != f"{name}.{part}.{conv}.bias"}
    return shapes


def _decode(case: Case) -> dict[str, tuple[int, ...]]:
    steps = max(case.token).bit_length() - 1
    ratio = (case.width / (2 * case.classes)) ** (1 / steps)
    widths = [case.width, *(max(8, 8 * round(case.width / ratio ** (i + 1) / 8)) for i in range(steps - 1)), case.classes]
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(steps):
        name = f"up_projection.decode.{i}" + ("" if i == steps - 1 else ".0")
        factors = tuple(2 if side >> (steps - 1 - i) > 1 else 1 for side in case.token)
        shapes |= {f"{name}.weight": (widths[i], widths[i + 1], *factors), f"{name}.bias": (widths[i + 1],)}
        shapes |= _norm(f"up_projection.decode.{i}.1", widths[i + 1]) if i < steps - 1 else {}
    return shapes


def _conv(name: str, inputs: int, outputs: int, size: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, *size), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def main() -> None:
    """Run the peer in float64 and store every second voxel of its logits."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from importlib.metadata import version

    from peers import import_peer

    torch = import_peer("torch")
    primus = import_peer("dynamic_network_architectures.architectures.primus")
    logits = {}
    for name, case in CASES.items():
        peer = make_peer(primus, case)
        peer.load_state_dict({key: torch.from_numpy(value) for key, value in make_state(case).items()}, strict=True)
        with torch.no_grad():
            out = peer.double().eval()(torch.from_numpy(make_image(case)).permute(0, 4, 1, 2, 3).double()).permute(0, 2, 3, 4, 1).numpy()
        logits[name] = out[:, ::2, ::2, ::2].astype(np.float32)
        print(f"{name}: logits {out.min():.2f} to {out.max():.2f}")
    versions = [f"{package} {version(package)}" for package in ("dynamic-network-architectures", "timm", "torch")]
    np.savez_compressed(FILE, versions=np.array(versions), **logits)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


def make_peer(primus, case: Case):
    """The peer's module of a case; `primus` is its module `architectures.primus`."""
    others = {"ch_per_level": case.widths} if case.generation == "v3" else {}
    return {"v1": primus.Primus, "v2": primus.PrimusV2, "v3": primus.PrimusV3}[case.generation](
        case.channels,
        case.width,
        case.token,
        case.classes,
        case.depth,
        case.heads,
        case.size,
        num_register_tokens=case.registers,
        use_abs_pos_embed=case.table,
        mlp_ratio=case.hidden / case.width,
        init_values=0.1 if case.inner else None,
        scale_attn_inner=case.inner,
        **others,
    )


if __name__ == "__main__":
    main()
