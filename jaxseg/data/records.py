"""The dataset of prepared cases: TFDS with ArrayRecord files, written and read without TensorFlow. Called by `store`.

It is the versioned truth that the memory-mapped cache is built from: `FOLDER/jaxseg_cases/VERSION/`, readable by any
`tfds.builder_from_directory(...).as_data_source()`. Arrays are zlib-compressed; text comes back from it as bytes, here as str again.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.errors import InputError
from jaxseg.files import make_folder, sha256_of, storage_errors

NAME = "jaxseg_cases"
SPLIT = "cases"
TEXT = ("name", "patient", "inputs", "info")


def version_folder(folder: Path, version: str) -> Path:
    """Where one version of the dataset lies."""
    return folder / NAME / version


def write_records(folder: Path, version: str, records: Callable[[], Iterator[dict[str, Any]]], channels: int) -> dict[str, str]:
    """Write `records()` (see `staging.to_arrays`) as one version of the dataset; SHA-256 of each of its files by name.

    One record is in memory at a time besides TFDS' own sorting buffer (at most 1 GB of compressed records, then it goes to disk).
    """
    make_folder(folder)
    with storage_errors(folder):
        # What a killed run left behind.
        for left in [version_folder(folder, version), *(folder / NAME).glob("incomplete.*")]:
            shutil.rmtree(left, ignore_errors=True)
        builder = _builder(folder, version, records, channels)
        try:
            builder.download_and_prepare(download_dir=folder / ".downloads", download_config=_nothing_from_the_network())
        except RuntimeError as error:
            # ArrayRecord's writer is C++ and knows no OSError.
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        shutil.rmtree(folder / ".downloads", ignore_errors=True)
    return {path.name: sha256_of(path) for path in sorted(version_folder(folder, version).iterdir())}


def read_records(folder: Path, version: str) -> "Records":
    """Open one version of the dataset; InputError if it is missing or cannot be read."""
    return Records(version_folder(folder, version))


def damaged(folder: Path, version: str, files: dict[str, str]) -> list[str]:
    """Names of the dataset's files that are missing or whose hash is not the one in `files`."""
    base = version_folder(folder, version)
    return [name for name, digest in files.items() if not (base / name).is_file() or sha256_of(base / name) != digest]


class Records:
    """Random access to the records of one dataset folder."""

    def __init__(self, folder: Path) -> None:
        import tensorflow_datasets as tfds  # a third of a second, which training never pays

        self.folder = folder
        try:
            builder: Any = tfds.builder_from_directory(folder)  # its decorated methods confuse type checkers
            self._source = builder.as_data_source(split=SPLIT)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder}: the dataset cannot be read ({error}); run `jaxseg prepare` again") from error

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = dict(self._source[index])
        return record | {key: record[key].decode() for key in TEXT} | {"labelled": bool(record["labelled"])}


def _nothing_from_the_network() -> Any:
    import tensorflow_datasets as tfds

    return tfds.download.DownloadConfig(try_download_gcs=False)


def _builder(folder: Path, version: str, records: Callable[[], Iterator[dict[str, Any]]], channels: int) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    tfds.disable_progress_bar()

    def _array(shape: tuple[int | None, ...], dtype: Any) -> Any:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="zlib")

    class LocalInfo(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """TFDS would look for these cases in its public bucket, and leave an empty folder among the temporary files."""

    # Defined anew at every call, with the version in it: the global register of builders would refuse the second one.
    with registered.skip_registration():

        class JaxsegCases(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(version)
            pkg_dir_path = tfds.core.Path(__file__).parent

            def _info(self) -> Any:
                text = {key: tfds.features.Text() for key in TEXT}
                arrays = {
                    "image": _array((None, None, None, channels), np.float16),
                    "label": _array((None, None, None), np.uint8),
                    "mask": _array((None, None, None), np.uint8),
                    "affine": tfds.features.Tensor(shape=(4, 4), dtype=np.float64),
                    "spacing": tfds.features.Tensor(shape=(3,), dtype=np.float64),
                    "present": tfds.features.Tensor(shape=(channels,), dtype=np.bool_),
                    "labelled": np.bool_,
                }
                return LocalInfo(
                    builder=self,
                    description="Scans prepared by jaxseg: one record a case, (x, y, z, channel) in RAS+ voxel order.",
                    features=tfds.features.FeaturesDict({**text, **arrays}),
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                del dl_manager  # nothing is downloaded
                return {SPLIT: self._generate_examples()}

            def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
                for record in records():
                    yield record["name"], record

            def _log_download_bytes(self) -> None:
                """TFDS would print here that it downloads something."""

            def _log_download_done(self) -> None:
                """As above."""

    return JaxsegCases(data_dir=str(folder), file_format="array_record")
