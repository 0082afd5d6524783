"""SimpleITK's part: a known bias field is removed, a known displacement is found, and without the package its extra is named."""

import sys

import numpy as np
import pytest
from scipy import ndimage

from jaxseg.data.itk import correct_bias, register
from jaxseg.data.volume import Volume, to_grid
from jaxseg.errors import ConfigError

SHAPE = (36, 40, 32)


def anatomy(seed=0) -> tuple[np.ndarray, np.ndarray]:
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"), -1)
    body = np.linalg.norm(places / (0.8, 0.75, 0.7), axis=-1) < 1
    tissue = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2.5)
    return np.where(body, np.where(tissue > 0.02, 200.0, 120.0), 0).astype(np.float32), body


def test_n4_removes_a_smooth_field_and_keeps_the_mean():
    pytest.importorskip("SimpleITK", reason="needs the itk extra")
    plane, body = anatomy()
    field = np.exp(0.5 * np.linspace(-1, 1, SHAPE[0]))[:, None, None] * np.exp(0.3 * np.linspace(-1, 1, SHAPE[1]))[None, :, None]
    biased = (plane * field).astype(np.float32)
    found = correct_bias(biased, body, (2.0, 2.0, 2.0))

    def spread(array):
        return float(array[plane == 200].std() / array[plane == 200].mean())

    assert spread(found) < 0.35 * spread(biased)
    assert found[body].mean() == pytest.approx(biased[body].mean(), rel=1e-3)
    np.testing.assert_array_equal(found, correct_bias(biased, body, (2.0, 2.0, 2.0)))
    np.testing.assert_array_equal(correct_bias(np.ones_like(plane), body, (2.0, 2.0, 2.0)), 1)


def test_a_displaced_channel_of_another_contrast_is_laid_back():
    pytest.importorskip("SimpleITK", reason="needs the itk extra")
    plane, _ = anatomy()
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    affine[:3, 3] = (-30, 12, 5)
    fixed = Volume(plane[..., None], affine, ("T1",))
    wrong = np.eye(4)
    angle = np.deg2rad(5)
    wrong[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    wrong[:3, 3] = (3.0, -4.0, 2.5)
    inverted = np.where(plane > 0, 320 - plane, 0)
    moving = Volume(inverted[..., None].astype(np.float32), wrong @ affine, ("T2",))
    found = register(moving, fixed, "rigid")
    before, after = (np.abs(v.grid.corners() - fixed.grid.corners()).max() for v in (moving, found))
    assert before > 5 and after < 1.0
    assert np.linalg.det((found.affine @ np.linalg.inv(moving.affine))[:3, :3]) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(found.array, moving.array)
    assert to_grid(found, fixed.grid).shape == fixed.shape


def test_without_simpleitk_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    plane, body = anatomy()
    with pytest.raises(ConfigError, match=r"jaxseg\[itk\]"):
        correct_bias(plane, body, (2.0, 2.0, 2.0))
