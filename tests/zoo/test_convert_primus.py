"""Files of Primus and EvaMAE: both token orders end in the peer's features, the naive load does not, and a real crop tells which one it was."""

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import CheckpointError, ConfigError, InputError
from jaxseg.models.eva_mae import EvaMAE
from jaxseg.models.positions import gather_tokens
from jaxseg.models.primus import Primus
from jaxseg.zoo.convert.eva_blocks import hidden_ratio, rotary_columns
from jaxseg.zoo.convert.nnssl_primus import LAYOUTS, convert_mae, convert_primus
from jaxseg.zoo.convert.source import Settings, Source
from jaxseg.zoo.names import unflatten_params
from tests.peers import import_peer


@pytest.fixture(scope="module")
def golden():
    """The module that makes weights by seed in the peer's keys."""
    path = Path(__file__).parents[1] / "golden" / "make_primus.py"
    spec = importlib.util.spec_from_file_location("make_primus_states", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def square_case(golden, **changes):
    """A Primus with equal first sides, as both orders need."""
    return golden.Case("v1", channels=1, classes=1, size=(12, 12, 8), token=(4, 4, 4), width=36, hidden=96, **changes)


def mae_state(golden):
    """A whole EvaMAE: the arrays of a Primus with one channel out, and a decoder of one block."""
    state = golden.make_state(square_case(golden))
    decoder = {f"decoder.{key.removeprefix('eva.')}": value[..., ::-1].copy() for key, value in state.items() if key.startswith("eva.")}
    return state | {key: value for key, value in decoder.items() if not key.startswith("decoder.blocks.1.")}


def network(kind, found):
    graph, params = nnx.split(nnx.eval_shape(lambda: kind(found.config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, unflatten_params(params, found.arrays))


def features(golden, order):
    found = convert_primus(
        Source(golden.make_state(square_case(golden)), "Primus"), Settings({"heads": 2, "crop": (12, 12, 8), "token_order": order})
    )
    assert any(("exchanged" if order == "hwd" else "our order") in note for note in found.notes)
    image = golden.make_image(square_case(golden))
    return np.asarray(nnx.jit(lambda net, x: net.features(x)[-1])(network(Primus, found), image))


def peers_features(golden, order):
    """The peer's tokens on their grid (b, w, h, d, c), flattened on their way through its Eva in either order."""
    torch, primus = import_peer("torch"), import_peer("dynamic_network_architectures.architectures.primus")
    case = square_case(golden)
    net = golden.make_peer(primus, case).eval()
    net.load_state_dict({key: torch.from_numpy(value) for key, value in golden.make_state(case).items()}, strict=True)
    with torch.no_grad():
        x = net.down_projection(torch.from_numpy(golden.make_image(case)).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        x = x if order == "whd" else x.transpose(1, 2)
        x = net.eva(x.flatten(1, 3))[0].reshape(x.shape)
        return (x if order == "whd" else x.transpose(1, 2)).numpy()


@pytest.mark.parity
def test_features_are_the_peers_in_both_orders_and_the_naive_load_is_wrong(golden):
    ours = {order: features(golden, order) for order in ("whd", "hwd")}
    for order, other in (("whd", "hwd"), ("hwd", "whd")):
        wanted = peers_features(golden, order)
        assert np.abs(ours[order] - wanted).max() <= 1e-5 * np.ptp(wanted)
        assert np.abs(ours[other] - wanted).max() > 0.05 * np.ptp(wanted)


@pytest.mark.parity
def test_table_and_angles_both_need_the_exchange(golden):
    wanted = peers_features(golden, "hwd")
    settings = {"heads": 2, "crop": (12, 12, 8)}
    state = golden.make_state(square_case(golden))
    exchanged, naive = (convert_primus(Source(state, "Primus"), Settings(settings | {"token_order": order})) for order in ("hwd", "whd"))
    table = "encoder.positions.table"
    naive.arrays[table] = exchanged.arrays[table]
    half = np.asarray(network(Primus, naive).features(golden.make_image(square_case(golden)))[-1])
    assert np.abs(half - wanted).max() > 0.01 * np.ptp(wanted)


@pytest.mark.parity
@pytest.mark.parametrize("order", ["whd", "hwd"])
def test_a_masked_autoencoder_predicts_what_nnssls_modules_do(golden, order):
    # nnssl is not packaged: its EvaMAE is put together here from the peer's parts, as its sources do.
    torch, primus = import_peer("torch"), import_peer("dynamic_network_architectures.architectures.primus")
    eva = import_peer("dynamic_network_architectures.building_blocks.eva")
    case, state = square_case(golden), mae_state(golden)
    net = golden.make_peer(primus, case).eval()
    net.decoder = eva.Eva(36, 1, 2, mlp_ratio=96 / 36, ref_feat_shape=(3, 3, 2), init_values=0.1, scale_attn_inner=True).eval()
    net.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=True)
    shuffled = np.random.default_rng(0).permutation(18)
    kept, hidden = shuffled[:5], shuffled[5:]  # in the peer's order
    net.eva.patch_drop = lambda tokens: (tokens[:, kept], torch.from_numpy(kept[None]))
    image = golden.make_image(case)[:1]
    with torch.no_grad():
        x = net.down_projection(torch.from_numpy(image).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        x = x if order == "whd" else x.transpose(1, 2)
        grid = x.shape
        restored = net.mask_token.repeat(1, 18, 1)
        restored[:, kept] = net.eva(x.flatten(1, 3))[0]
        x = net.decoder(restored)[0].reshape(grid)
        wanted = net.up_projection((x if order == "whd" else x.transpose(1, 2)).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).numpy()

    found = convert_mae(Source(state, "EvaMAE"), Settings({"heads": 2, "crop": (12, 12, 8), "token_order": order}))
    mae = network(EvaMAE, found)
    places = np.arange(18).reshape(3, 3, 2)
    ours = places.reshape(-1) if order == "whd" else places.transpose(1, 0, 2).reshape(-1)  # our index of the peer's i-th token
    visible, masked = ours[kept][None], ours[hidden][None]
    predicted = jax.jit(lambda x: mae.predict(mae.encoder.patchify(x), (3, 3, 2), None, visible, masked))(image)
    assert np.abs(predicted - gather_tokens(mae.encoder.patchify(wanted), masked)).max() <= 1e-5 * np.ptp(wanted)


def striped_state(golden):
    """An EvaMAE that has learned by heart which side of the first axis is bright: its branches are off, its table is read out."""
    state = mae_state(golden)
    for key, value in state.items():
        if "gamma" in key or key.startswith("up_projection") or key == "mask_token" or key.endswith("norm.bias"):
            state[key] = np.zeros_like(value)
    signs = np.array([1, 1, -1], np.float32)[None, :, None] * np.ones((3, 3, 2), np.float32)  # (h, w, d), as the file has it
    state["decoder.pos_embed"] = (signs[..., None] * np.where(np.arange(36) % 2, -1, 1)).reshape(1, 18, 36).astype(np.float32)
    state["decoder.norm.weight"] = np.ones(36, np.float32)
    state["up_projection.decode.0.0.weight"][0, 0] = 1
    state["up_projection.decode.0.1.weight"][:] = 1
    state["up_projection.decode.1.weight"][0] = 1
    return state


def test_the_order_is_that_which_reconstructs_a_crop(golden, tmp_path):
    sample = np.repeat(np.array([1.0, 1.0, -1.0]), 4)[:, None, None] * np.ones((12, 16, 8))
    np.save(tmp_path / "crop.npy", sample)
    np.save(tmp_path / "flat.npy", sample[0])
    settings = {"heads": 2, "crop": (12, 12, 8), "sample": str(tmp_path / "crop.npy")}
    source = Source(striped_state(golden), "EvaMAE")
    assert any("token_order = hwd, by the relative" in note for note in convert_mae(source, Settings(settings)).notes)
    turned = striped_state(golden)
    turned["decoder.pos_embed"] = turned["decoder.pos_embed"].reshape(3, 3, 2, 36).swapaxes(0, 1).reshape(1, 18, 36)
    assert any("token_order = whd, by the relative" in note for note in convert_mae(Source(turned, "EvaMAE"), Settings(settings)).notes)
    with pytest.raises(InputError, match=r"shape \(16, 8\); expected \(x, y, z, 1\) of at least \(12, 12, 8\)"):
        convert_mae(source, Settings(settings | {"sample": tmp_path / "flat.npy"}))


def test_columns_are_sorted_within_each_head():
    np.testing.assert_array_equal(rotary_columns(12, 1, "whd"), [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11])
    np.testing.assert_array_equal(rotary_columns(12, 2, "hwd"), [2, 0, 4, 3, 1, 5, 8, 6, 10, 9, 7, 11])
    assert hidden_ratio(864, 2304) == 8 / 3
    assert all(int(width * hidden_ratio(width, hidden)) == hidden for width in range(6, 400, 6) for hidden in (width - 1, 3 * width, 1000))


def test_what_shapes_cannot_tell_is_asked_for_or_said(golden):
    settings = Settings({"heads": 2})
    with pytest.raises(ConfigError, match=r"crop cannot be told from the arrays \(the position table has 18 places, which is no cube\)"):
        convert_primus(Source(golden.make_state(square_case(golden)), "Primus"), settings)
    for crop, said in [((12, 12, 12), "18 places, which is not what a crop"), ("big", "'big'; expected three whole numbers")]:
        with pytest.raises(ConfigError, match=said):
            convert_primus(Source(golden.make_state(square_case(golden)), "Primus"), Settings({"heads": 2, "crop": crop}))
    with pytest.raises(CheckpointError, match=r"order hwd on a grid of \(2, 3, 2\)"):
        convert_primus(
            Source(golden.make_state(golden.CASES["registers"]), "Primus"),
            Settings({**golden.CASES["registers"].settings(), "token_order": "hwd"}),
        )
    settings = Settings({"heads": 2, "crop": (12, 12, 8)})
    convert_mae(Source(mae_state(golden), "EvaMAE"), settings)
    assert any(line.startswith("token_order = hwd (nnssl's EvaMAE") for line in settings.said)
    convert_primus(Source(golden.make_state(square_case(golden)), "Primus"), settings)
    assert any(line.startswith("token_order = whd (dynamic-network-architectures since June 2025") for line in settings.said)


def test_layouts_are_told_apart_and_strangers_named(golden):
    state = golden.make_state(square_case(golden))
    for found, wanted in [(state, [True, False]), (mae_state(golden), [False, True]), ({"vit.norm.weight": np.zeros(3)}, [False, False])]:
        assert [layout.recognise({key: value.shape for key, value in found.items()}) for layout in LAYOUTS] == wanted
    settings = {"heads": 2, "crop": (12, 12, 8)}
    with pytest.raises(CheckpointError, match=r"1 arrays have no place here, among them \['eva.cls_token'\]"):
        convert_primus(Source(state | {"eva.cls_token": np.zeros(3)}, "Primus"), Settings(settings))
    with pytest.raises(CheckpointError, match=r"eva\.blocks\.1\.mlp\.fc2\.weight is missing"):
        convert_primus(
            Source({key: value for key, value in state.items() if key != "eva.blocks.1.mlp.fc2.weight"}, "Primus"), Settings(settings)
        )


def test_an_encoder_alone_is_said_to_be_one(golden):
    state = {key: value for key, value in golden.make_state(square_case(golden)).items() if not key.startswith("up_projection")}
    found = convert_primus(Source(state, "Primus"), Settings({"heads": 2, "crop": (12, 12, 8)}))
    assert list(found.missing) == ["decoder"] and all(name.startswith("encoder.") for name in found.arrays)
