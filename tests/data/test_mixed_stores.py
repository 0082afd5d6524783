"""Further stores of a run: their cases, weights and splits, what a card says of them; and that reading crops keeps no page of a map."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxseg.data.catalog import open_store
from jaxseg.data.loader import CropLoader
from jaxseg.data.mixed_stores import content_drawn, names_drawn, open_others
from jaxseg.data.mixture import Source
from jaxseg.errors import ConfigError, InputError
from jaxseg.prepare import prepare_folder
from tests.tiny_store import write_scans


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of other scans, and one that holds the first one's again."""
    root = tmp_path_factory.mktemp("mixed")
    for name, count, seed in (("first", 3, 0), ("second", 2, 1), ("again", 2, 0)):
        prepare_folder(write_scans(root / f"{name}_scans", count, seed=seed), root / name, processes=1)
    return root


def test_weights_and_splits_reach_the_batches(stores, tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"few": ["case_1"]}))
    second, again = str(stores / "second"), str(stores / "again")
    others = open_others({second: 2.0, again: 1.0}, {second: f"{tmp_path / 'split.json'}:few"}, labelled=True)
    assert [(source.names, source.weight) for source in others] == [(("case_1",), 2.0), (("case_0", "case_1"), 1.0)]
    assert names_drawn(others) == {"also_names": {"0": ["case_1"], "1": ["case_0", "case_1"]}} and names_drawn(()) == {}
    first = open_store(stores / "first")
    loader = CropLoader((Source(first, first.names), *others), crop=(8, 8, 8), batch=4, seed=3, threads=0)
    drawn = [loader.provenance(int(id)) for _ in range(64) for id in next(loader)["id"]]
    loader.close()
    count = {name: sum(place.store == str(stores / name) for place in drawn) for name in ("first", "second", "again")}
    assert count == {"first": 64, "second": 128, "again": 64}
    assert {place.case for place in drawn if place.store == second} == {"case_1"}


def test_what_cannot_be_meant_is_refused(stores):
    with pytest.raises(
        ConfigError, match=r"also_split names elsewhere, which also does not: give that store a weight with --also elsewhere"
    ):
        open_others({str(stores / "second"): 1.0}, {"elsewhere": "split.json:few"}, labelled=False)
    with pytest.raises(InputError, match="no store here"):
        open_others({str(stores / "second_scans"): 1.0}, {}, labelled=False)
    first = open_store(stores / "first")
    with pytest.raises(ConfigError, match=r"its weight is 0\.0; expected a positive number"):
        others = open_others({str(stores / "second"): 0.0}, {}, labelled=False)
        CropLoader((Source(first, first.names), *others), crop=(8, 8, 8), batch=4, seed=0)


def test_a_card_lists_every_case_once(stores):
    first, second, again = (open_store(stores / name) for name in ("first", "second", "again"))
    alone = content_drawn([Source(first, first.names)])
    assert alone == {"data": first.hashes(first.names), "scans": first.contents(first.names)}
    every = content_drawn([Source(store, store.names) for store in (first, second, again)])
    assert len(every["scans"]) == 5 and len(every["data"]) == 5
    assert {tuple(content["sha256"]) for content in second.contents(second.names)} < {
        tuple(content["sha256"]) for content in every["scans"]
    }


def mapped_kib(folder: Path) -> int:
    """What this process has resident of the mapped images of a store."""
    text = Path("/proc/self/smaps").read_text()
    return sum(int(size) for size in re.findall(rf"{re.escape(str(folder))}\S*image\.npy\n(?:.*\n)*?Rss: +(\d+) kB", text))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux what is mapped")
def test_crops_leave_no_page_of_the_maps_behind_and_are_what_the_store_holds(stores):
    store = open_store(stores / "first")
    for name in store.names:
        np.asarray(store.arrays(name).image).sum()
    assert mapped_kib(store.cache) > 0
    loader = CropLoader(store, store.names, crop=(8, 8, 8), batch=4, seed=0, threads=0)
    batches = [next(loader) for _ in range(8)]
    assert mapped_kib(store.cache) == 0
    for id, crop in zip(batches[-1]["id"], batches[-1]["image"], strict=True):
        place = loader.provenance(int(id))
        whole = store.arrays(place.case).image
        box = tuple(slice(start, start + 8) for start in place.origin)
        np.testing.assert_array_equal(crop, whole[box])
    loader.close()
