"""How much of the body PET by itself calls air, by either rule, beside the CT of the same patient. Run: python -m bench.pet_body FOLDER

FOLDER holds a folder a patient with PET, CT and optionally a contour (`*tumour*`) in one world frame. Prints one line of JSON: for `own_foreground`
(the rule of every other channel) and `tracer_foreground`, the share of the CT's body called air (mean and most), the share of the CT's air called body
(mean) and the share of the contour called air (most).
"""

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from jaxseg.data.intensity import body_mask, own_foreground, tracer_foreground


def compare(folder: Path) -> dict[str, tuple[float, float, float]]:
    """Rule → (body called air, air called body, contour called air) of one patient."""
    pet, ct = (nib.load(folder / f"{name}.nii.gz") for name in ("PET", "CT"))
    body = body_mask([resample_from_to(ct, pet, order=1, cval=-1000).get_fdata() > -500])
    contours = [np.asarray(resample_from_to(nib.load(path), pet, order=0).dataobj) > 0 for path in folder.glob("*tumour*")]
    plane = pet.get_fdata(dtype=np.float32)
    masks = {"own_foreground": body_mask([own_foreground(plane, "zscore")]), "tracer_foreground": body_mask([tracer_foreground(plane)])}
    return {
        name: (
            float((~mask)[body].mean()),
            float(mask[~body].mean()),
            max((float((~mask)[drawn].mean()) for drawn in contours), default=0.0),
        )
        for name, mask in masks.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    found = [
        compare(path.parent) for path in sorted(parser.parse_args().folder.glob("*/CT.nii.gz")) if (path.parent / "PET.nii.gz").exists()
    ]
    if not found:
        raise SystemExit("no folder with PET.nii.gz and CT.nii.gz was found")
    result: dict[str, object] = {"patients": len(found)}
    for name in found[0]:
        lost, kept, contour = np.array([one[name] for one in found]).T
        result[name] = {
            "body_called_air_mean": round(float(lost.mean()), 4),
            "body_called_air_most": round(float(lost.max()), 4),
            "air_called_body_mean": round(float(kept.mean()), 4),
            "contour_called_air_most": round(float(contour.max()), 4),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
