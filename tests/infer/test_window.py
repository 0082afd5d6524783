"""The sliding window: what blending must leave unchanged, which windows are chosen, and MONAI's numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from jaxseg.errors import DeviceMemoryError
from jaxseg.infer import blend, sliding_window
from jaxseg.infer.window import gaussian_weights, window_starts


def scan(shape=(11, 9, 13), channels=2, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, channels)).astype(np.float32)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_identity_returns_the_image(overlap, batch):
    image = scan()
    result = sliding_window(lambda x: x, image, window=(6, 4, 5), overlap=overlap, batch=batch, num_classes=2)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, image, atol=1e-6, rtol=3e-6)  # 125 windows meet at overlap 0.8


@pytest.mark.parametrize("window", [(16, 4, 5), (16, 16, 16), (12, 10, 13)])
def test_a_volume_smaller_than_the_window_is_padded_and_restored(window):
    image = scan()
    np.testing.assert_allclose(sliding_window(lambda x: x, image, window=window, num_classes=2), image, atol=1e-6)


def test_padding_is_each_channel_s_minimum_or_what_is_asked_for():
    image = scan(shape=(3, 4, 4))
    seen = []
    collect = lambda x: (seen.append(x), x)[1]
    sliding_window(collect, image, window=(6, 4, 4), num_classes=2)
    sliding_window(collect, image, window=(6, 4, 4), num_classes=2, fill=[-7.0, 3.0])
    np.testing.assert_array_equal(seen[0][0, 0, 0, 0], image.min(axis=(0, 1, 2)))
    np.testing.assert_array_equal(seen[1][0, 5], np.broadcast_to([-7, 3], (4, 4, 2)))
    np.testing.assert_array_equal(seen[0][0, 1:4], image)


def test_a_constant_stays_constant_and_every_call_has_a_full_batch():
    shapes = set()

    def apply(x):
        shapes.add(x.shape)
        return jnp.full((*x.shape[:4], 3), 0.3)

    result = sliding_window(apply, scan(), window=(5, 5, 5), batch=4, num_classes=3)
    np.testing.assert_allclose(result, 0.3, rtol=1e-6)
    assert shapes == {(4, 5, 5, 5, 2)}


@pytest.mark.parametrize("size, width, overlap", list(itertools.product((8, 9, 17, 40), (4, 8), (0.0, 0.3, 0.5, 0.9))))
def test_windows_cover_evenly_from_border_to_border(size, width, overlap):
    starts = [start[0] for start in window_starts((size, 4, 4), (width, 4, 4), overlap)]
    steps = np.diff(starts)
    assert (starts[0], starts[-1]) == (0, size - width)
    assert (steps <= max(1, round(width * (1 - overlap)))).all()
    assert steps.size == 0 or steps.max() - steps.min() <= 1


def test_the_weight_is_symmetric_positive_and_greatest_in_the_middle():
    weight = gaussian_weights((5, 8, 4))
    assert weight.min() > 0 and weight[2, 3, 1] == weight.max()
    for axis in range(3):
        np.testing.assert_array_equal(weight, np.flip(weight, axis))
    # one sigma (an eighth of the window) from the centre: exp(-1/2)
    assert gaussian_weights((17, 1, 1))[10, 0, 0] == pytest.approx(np.exp(-0.5 * (2 / (17 / 8)) ** 2))


def test_windows_in_the_air_are_skipped():
    image, mask = scan((16, 8, 8)), np.zeros((16, 8, 8), bool)
    mask[:3] = True
    calls = []
    apply = lambda x: (calls.append(len(x)), x)[1]
    result = sliding_window(apply, image, window=(4, 4, 4), overlap=0, num_classes=2, mask=mask, outside=[1, 0])
    assert sum(calls) == 4  # of 16
    np.testing.assert_allclose(result[:4], image[:4], atol=1e-6)
    np.testing.assert_array_equal(result[4:], np.broadcast_to([1, 0], (12, 8, 8, 2)))


def test_nothing_but_air_calls_nothing():
    def never(x):
        raise AssertionError("called")

    result = sliding_window(never, scan(), window=(4, 4, 4), num_classes=2, mask=np.zeros((11, 9, 13), bool))
    np.testing.assert_array_equal(result, 0)


@pytest.mark.parametrize("batch", [1, 3, 50])
@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("seen", [slice(0, 6), slice(4, 5), slice(0, None, 22), slice(0, None)])
def test_blending_on_the_device_equals_blending_on_the_host(batch, overlap, seen):
    image, mask = scan((23, 9, 13)), np.zeros((23, 9, 13), bool)
    mask[seen, :5] = True  # with windows left out at either end, and for more planes than a window has
    settings = {"window": (6, 4, 5), "overlap": overlap, "batch": batch, "num_classes": 2, "mask": mask, "outside": [1, 0]}
    apply = jax.jit(lambda x: jnp.tanh(x) + x.mean((1, 2, 3), keepdims=True))
    host, device = (sliding_window(apply, image, **settings, on_device=where) for where in (False, True))
    np.testing.assert_allclose(device, host, atol=1e-6)
    assert device.shape == host.shape and device.flags.writeable


def test_a_scan_of_another_size_compiles_nothing():
    compiled = []

    @jax.jit
    def apply(x):
        compiled.append(x.shape)
        return x[..., :1]

    settings = {"window": (8, 8, 8), "batch": 2, "num_classes": 1, "on_device": True}
    sliding_window(apply, scan((15, 16, 14)), **settings)
    programs = blend._add_windows._cache_size(), blend._advance._cache_size()
    for shape in ((16, 13, 16), (13, 14, 15), (5, 14, 16)):
        sliding_window(apply, scan(shape), **settings | {"on_device": min(shape) > 8})
    assert compiled == [(2, 8, 8, 8, 2)]
    assert (blend._add_windows._cache_size(), blend._advance._cache_size()) == programs
    assert blend.bucket((13, 16, 17), (8, 8, 9)) == (16, 16, 20)


def test_the_device_never_holds_the_whole_result():
    def held():
        return sum(array.nbytes for array in jax.live_arrays())

    window, before = (4, 4, 4), held()
    blending = blend.DeviceBlend((400, 8, 8), gaussian_weights(window), 1, step=2)
    most = 0
    for first in range(0, 398, 2):
        blending.add([(first, 0, 0), (first, 4, 4)], jnp.ones((2, *window, 1)))
        most = max(most, held() - before)
    total = blending.total()
    assert most < total.nbytes / 10
    assert (total[:, 1, 1] > 0).all() and (total[:, 1, 6] == 0).all()


class Device:
    """A network on a device that holds so many windows at once: called, or (as on a GPU) when the result is waited for."""

    def __init__(self, holds: int, message: str = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68719476736 bytes.") -> None:
        self.holds, self.message, self.calls = holds, message, []

    def __call__(self, x):
        self.calls.append(len(x))
        if len(x) > self.holds:
            raise JaxRuntimeError(self.message)
        return x


@pytest.mark.parametrize("on_device", [False, True])
def test_out_of_memory_halves_the_batch_and_loses_nothing(on_device):
    image, device = scan(), Device(holds=2)
    with pytest.warns(RuntimeWarning, match="at a time") as warned:
        result = sliding_window(device, image, window=(6, 4, 5), batch=8, num_classes=2, on_device=on_device)
    np.testing.assert_allclose(result, image, atol=1e-6, rtol=3e-6)
    assert device.calls[:3] == [8, 4, 2] and set(device.calls[3:]) == {2} and len(warned) == 2


def test_memory_that_runs_out_later_keeps_what_is_done():
    image, calls = scan(), []

    def apply(x):
        calls.append(len(x))
        if len(calls) == 4:
            raise JaxRuntimeError("RESOURCE_EXHAUSTED: another program took it")
        return x

    with pytest.warns(RuntimeWarning, match="2 at a time"):
        result = sliding_window(apply, image, window=(6, 4, 5), overlap=0.0, batch=4, num_classes=2)
    np.testing.assert_allclose(result, image, atol=1e-6, rtol=3e-6)


def test_one_window_is_sent_alone_before_giving_up():
    pending = []

    class Result:
        def __init__(self, x):
            self.x = x

        shape = property(lambda self: self.x.shape)

        def block_until_ready(self):
            if len(pending) > 1:
                pending.clear()
                raise JaxRuntimeError("RESOURCE_EXHAUSTED: two windows at once")
            pending.remove(self)
            return self

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self.x, dtype)

    def apply(x):
        pending.append(Result(x))
        return pending[-1]

    image = scan()
    with pytest.warns(RuntimeWarning, match="only when the last has come back"):
        result = sliding_window(apply, image, window=(6, 4, 5), num_classes=2)
    np.testing.assert_allclose(result, image, atol=1e-6, rtol=3e-6)


@pytest.mark.filterwarnings("ignore:out of device memory")
def test_a_window_that_never_fits_is_said_with_its_size():
    device = Device(holds=0)
    with pytest.raises(DeviceMemoryError, match=r"\(6, 4, 5\).*2 channels.*RESOURCE_EXHAUSTED"):
        sliding_window(device, scan(), window=(6, 4, 5), batch=2, num_classes=2)
    assert device.calls == [2, 1, 1]


@pytest.mark.parametrize("message", ["INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS", "INVALID_ARGUMENT: out of memory, it is not"])
def test_other_errors_are_never_tried_again(message):
    device = Device(holds=0, message=message)
    with pytest.raises(JaxRuntimeError, match=message):
        sliding_window(device, scan(), window=(6, 4, 5), batch=4, num_classes=2)
    assert device.calls == [4]


def test_a_canvas_that_does_not_fit_is_blended_on_the_host(monkeypatch):
    def full(*_):
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr("jaxseg.infer.window.DeviceBlend", full)
    image = scan()
    with pytest.warns(RuntimeWarning, match="blending on the host"):
        result = sliding_window(lambda x: x, image, window=(6, 4, 5), num_classes=2, on_device=True)
    np.testing.assert_allclose(result, image, atol=1e-6, rtol=3e-6)


@pytest.mark.parametrize(
    "change",
    [{"window": (4, 4)}, {"window": (0, 4, 4)}, {"overlap": 1.0}, {"batch": 0}, {"num_classes": 5}, {"mask": np.ones((2, 2, 2), bool)}],
)
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError):
        sliding_window(lambda x: x, scan(), **({"window": (4, 4, 4), "num_classes": 2} | change))


@pytest.mark.parity
@pytest.mark.parametrize("shape, overlap", [((12, 8, 16), 0.5), ((8, 14, 20), 0.25), ((5, 8, 12), 0.5)])
def test_a_fixed_convolution_gives_monai_s_blend(shape, overlap):
    torch, inferers = pytest.importorskip("torch"), pytest.importorskip("monai.inferers")
    image = scan(shape)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 2, 3)).astype(np.float32) / 5
    window = (8, 8, 8)

    @jax.jit
    def ours(x):
        return jnp.tanh(jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")))

    def theirs(x):
        return torch.tanh(torch.nn.functional.conv3d(x, torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2).copy()), padding=1))

    expected = inferers.sliding_window_inference(
        torch.from_numpy(image.transpose(3, 0, 1, 2).copy())[None], window, 2, theirs, overlap=overlap, mode="gaussian", cval=0.25
    )
    result = sliding_window(ours, image, window=window, overlap=overlap, batch=3, num_classes=3, fill=0.25)
    np.testing.assert_allclose(result, expected[0].numpy().transpose(1, 2, 3, 0), atol=1e-5)
