"""NIfTI pairs (.hdr + .img) in: what nibabel writes is read as it was, whichever half is named; a missing or short half is refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from jaxseg.data.io import find_scans, load_volume, read_grid
from jaxseg.errors import InputError

AFFINE = np.array([[-1.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1.0]])


@pytest.fixture
def pair(tmp_path):
    image = nib.Nifti1Pair(np.random.default_rng(0).integers(0, 100, (6, 5, 4)).astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "scan.hdr")
    return tmp_path


@pytest.mark.parametrize("zipped", [False, True])
def test_either_half_names_the_scan(pair, zipped):
    expected = nib.load(pair / "scan.img").get_fdata()
    names = ["scan.hdr", "scan.img"]
    if zipped:
        for name in names:
            (pair / f"{name}.gz").write_bytes(gzip.compress((pair / name).read_bytes()))
            (pair / name).unlink()
        names = [f"{name}.gz" for name in names]
    for name in names:
        volume = load_volume(pair / name, reorient=False)
        np.testing.assert_allclose(volume.array[..., 0], expected, rtol=1e-6)
        np.testing.assert_allclose(volume.affine, AFFINE)
        assert read_grid(pair / name).same_as(volume.grid, 1e-6)
    assert [(ref.path.name, ref.format, len(ref.files)) for ref in find_scans(pair)] == [(names[0], "NIfTI", 2)]


def test_a_missing_or_short_half_and_an_analyze_file_are_refused(pair):
    data = (pair / "scan.img").read_bytes()
    (pair / "scan.img").write_bytes(data[:100])
    with pytest.raises(InputError, match=r"scan\.hdr: truncated: 100 bytes of voxels, expected 240"):
        load_volume(pair / "scan.hdr")
    (pair / "scan.img").unlink()
    with pytest.raises(InputError, match=r"scan\.img is missing"):
        load_volume(pair / "scan.hdr")
    nib.save(nib.AnalyzeImage(np.zeros((6, 5, 4), np.int16), None), pair / "old.hdr")
    with pytest.raises(InputError, match="Analyze 7.5"):
        load_volume(pair / "old.hdr")
