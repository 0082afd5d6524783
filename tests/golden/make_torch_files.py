"""Makes `torch_zip.pt` and `torch_legacy.pt`: the same small object saved by PyTorch in both of its forms. Run: python tests/golden/make_torch_files.py

Needs the parity extra (torch). The numbers follow from a formula, which `tests/zoo/test_torch_file.py` computes again without PyTorch.
"""

from pathlib import Path

import ml_dtypes
import numpy as np

FILES = {"zip": Path(__file__).with_name("torch_zip.pt"), "legacy": Path(__file__).with_name("torch_legacy.pt")}
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64")


def ramp(dtype: str) -> np.ndarray:
    """(3, 4): 0, 1, … 11 (for booleans: odd ones true)."""
    numbers = np.arange(12).reshape(3, 4)
    return numbers % 2 == 1 if dtype == "bool" else numbers.astype(getattr(ml_dtypes, dtype, dtype))


def expected() -> dict[str, np.ndarray]:
    """The arrays under `state_dict`, by name."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {
        "base": base,
        "every.second": base[1:, ::2],
        "transposed": base.T,
        "row": base[2],
        "expanded": np.broadcast_to(np.float32(7), (5,)),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    return views | {f"type.{dtype}": ramp(dtype) for dtype in DTYPES}


def _tensor(array: np.ndarray):
    import torch

    dtype = array.dtype.name
    return torch.from_numpy(array.astype(np.float32)).bfloat16() if dtype == "bfloat16" else torch.from_numpy(np.array(array))


def main() -> None:
    """Save the object twice."""
    import torch
    from torch.nn import Parameter

    arrays = expected()
    base = _tensor(arrays["base"])
    views = {
        "base": base,
        "every.second": base[1:, ::2],
        "transposed": base.T,
        "row": Parameter(base[2]),
        "expanded": torch.full((1,), 7.0).expand(5),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
    }
    state = torch.nn.ParameterDict().state_dict()  # an OrderedDict with torch's `_metadata` on it
    state.update(views | {name: _tensor(array) for name, array in arrays.items() if name.startswith("type.")})
    content = {"epoch": 3, "state_dict": state, "score": np.float64(0.25), "curve": np.arange(3.0), "device": torch.device("cpu")}
    torch.save(content, FILES["zip"])
    torch.save(content, FILES["legacy"], _use_new_zipfile_serialization=False)
    print({form: path.stat().st_size for form, path in FILES.items()}, "torch", torch.__version__)


if __name__ == "__main__":
    main()
