"""The loader: which sample is drawn depends on (seed, id) alone, crops hold what the volume holds, and a position can be saved."""

import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from jaxseg.data.cache import CaseArrays, write_cache
from jaxseg.data.catalog import Entry, Store, manifest
from jaxseg.data.loader import CropLoader, choose_origin, cut
from jaxseg.data.mixture import Mixture, Source
from jaxseg.data.recipe import Recipe
from jaxseg.errors import CheckpointError, ConfigError, InputError

RECIPE = Recipe(channels=("A", "B"), spacing=(1.0, 1.0, 2.0), intensity=("zscore", "ct"), labels={"one": 1, "two": 2})
SHAPES = {"a": (20, 18, 16), "b": (24, 20, 14), "c": (17, 25, 15), "small": (6, 20, 5), "d": (20, 20, 20)}


def make_record(name: str, labelled: bool = True) -> dict:
    """Channel A holds each voxel's place in its slice, channel B its slice, so that a crop can be traced back."""
    shape = SHAPES[name]
    image = np.zeros((*shape, 2), np.float16)
    image[..., 0] = np.arange(shape[1] * shape[2]).reshape(shape[1:])
    image[..., 1] = np.arange(shape[0])[:, None, None]
    label = np.zeros(shape, np.uint8)
    label[2:4, 3:6, 1:3] = 1
    label[-2:, -3:, -2:] = 2
    mask = np.zeros(shape, np.uint8)
    mask[1:, 1:, 1:] = 1
    return {"name": name, "image": image, "label": label, "mask": mask, "labelled": labelled}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    out = tmp_path_factory.mktemp("store")
    entries = []
    for k, name in enumerate(sorted(SHAPES)):
        labelled = name != "d"
        files = write_cache(out / "cache", name, make_record(name, labelled))
        counts = {0: 1, 1: 1} if labelled else None
        present = (True, name != "b")
        entries.append(Entry(name, name, SHAPES[name], (1.0, 1.0, 2.0), np.eye(4), present, (-1.0, -2.0), name, counts, "", k, {}, files))
    return Store(out, manifest(asdict(RECIPE), {"version": "1.0.0", "files": {}}, entries, []))


def loader(store, names=("a", "b", "c", "small"), **changes) -> CropLoader:
    return CropLoader(store, names, **{"crop": (8, 8, 8), "batch": 4, "seed": 7, "foreground": 0.5, "labelled": True, **changes})


def take(source: CropLoader, n: int) -> list[dict[str, np.ndarray]]:
    batches = list(itertools.islice(source, n))
    source.close()
    return batches


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_have_the_promised_arrays(store):
    (batch,) = take(loader(store), 1)
    kinds = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert kinds == {
        "image": ("float16", (4, 8, 8, 8, 2)),
        "label": ("uint8", (4, 8, 8, 8)),
        "mask": ("uint8", (4, 8, 8, 8)),
        "present": ("float32", (4, 2)),
        "spacing": ("float32", (4, 3)),
        "air": ("float32", (4, 2)),
        "id": ("int32", (4,)),
    }
    np.testing.assert_array_equal(batch["spacing"], [[1, 1, 2]] * 4)
    assert "label" not in take(loader(store, labelled=False, foreground=0.0), 1)[0]


def test_ids_count_up_and_every_epoch_visits_each_case_once(store):
    batches = take(loader(store), 6)
    np.testing.assert_array_equal(np.concatenate([batch["id"] for batch in batches]), np.arange(24))
    # Case b alone lacks channel B.
    lacking = np.concatenate([batch["present"][:, 1] == 0 for batch in batches]).reshape(6, 4)
    assert (lacking.sum(1) == 1).all() and len(set(lacking.argmax(1))) > 1


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_draw_what_one_draws(store, count):
    alone = take(loader(store), 5)
    parts = [take(loader(store, process=(p, count)), 5) for p in range(count)]
    together = [{name: np.concatenate([part[k][name] for part in parts]) for name in alone[k]} for k in range(5)]
    assert_same(alone, together)


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_change_nothing(store, threads):
    assert_same(take(loader(store), 5), take(loader(store, threads=threads), 5))


def test_seeds_differ(store):
    first, second = take(loader(store), 1)[0], take(loader(store, seed=8), 1)[0]
    assert (first["image"] != second["image"]).any()


@pytest.mark.parametrize("used", [0, 1, 4])
def test_a_saved_position_goes_on_with_the_next_batch(store, used):
    whole = take(loader(store), 9)
    first = loader(store)
    for _ in range(used):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    again = loader(store, threads=1)
    next(again)
    again.set_state(state)
    assert_same(take(again, 9 - used), whole[used:])


def test_a_position_saved_with_two_processes_serves_one(store):
    part = loader(store, process=(1, 2))
    next(part)
    whole = loader(store)
    whole.set_state(part.get_state())
    part.close()
    np.testing.assert_array_equal(take(whole, 1)[0]["id"], [4, 5, 6, 7])


def test_a_position_of_other_settings_is_refused(store):
    first, other = loader(store), loader(store, seed=8, names=("a", "b"))
    with pytest.raises(CheckpointError, match=r"seed: 7 there, 8 here; cases"):
        other.set_state(first.get_state())
    first.close()
    other.close()


def test_crops_hold_what_the_volume_holds(store):
    for batch in take(loader(store, names=("a",), batch=2), 10):
        record = make_record("a")
        for k in range(2):
            code, x = batch["image"][k, 0, 0, 0].astype(int)
            y, z = divmod(code, SHAPES["a"][2])
            box = (slice(x, x + 8), slice(y, y + 8), slice(z, z + 8))
            for name in ("image", "label", "mask"):
                np.testing.assert_array_equal(batch[name][k], record[name][box])


def test_a_small_volume_is_centred_and_padded(store):
    batch = take(loader(store, names=("small",), batch=1, foreground=0.0), 1)[0]
    record = make_record("small")
    inside = (slice(1, 7), slice(None), slice(2, 7))
    outside = np.ones((8, 8, 8), bool)
    outside[inside] = False
    np.testing.assert_array_equal(batch["image"][0][outside], [[-1, -2]] * outside.sum())
    assert (batch["mask"][0][outside] == 0).all() and (batch["label"][0][outside] == 255).all()
    start = [y for y in range(13) if (record["image"][:, y : y + 8] == batch["image"][0][inside]).all()]
    assert len(start) == 1
    np.testing.assert_array_equal(batch["label"][0][inside], record["label"][:, start[0] : start[0] + 8])


def arrays_of(shape, mask, foreground) -> CaseArrays:
    return CaseArrays(np.zeros((*shape, 1), np.float16), None, mask, foreground, np.argwhere(mask).astype(np.int32))


def test_the_share_of_foreground_crops_is_as_asked_and_labels_are_balanced():
    shape = (60, 60, 60)
    foreground = {1: np.array([[5, 5, 5]] * 100, np.int32), 2: np.array([[50, 50, 50]], np.int32)}
    mask = np.zeros(shape, np.uint8)
    mask[25:35, 25:35, 25:35] = 1
    rng = np.random.default_rng(0)
    origins = np.array([choose_origin(arrays_of(shape, mask, foreground), (6, 6, 6), 0.4, rng) for _ in range(1500)])
    first, second = (origins < 10).all(1), (origins > 40).all(1)
    assert abs((first | second).mean() - 0.4) < 0.04 and abs(first.mean() - 0.2) < 0.035
    rest = origins[~(first | second)] + 3
    assert (rest >= 25).all() and (rest < 35).all()


def test_the_foreground_voxel_lies_anywhere_in_the_crop():
    voxel = np.array([30, 30, 30])
    arrays = arrays_of((60, 60, 60), np.ones((60, 60, 60), np.uint8), {1: voxel[None].astype(np.int32)})
    rng = np.random.default_rng(1)
    place = voxel - np.array([choose_origin(arrays, (8, 12, 10), 1.0, rng) for _ in range(2000)])
    for axis, size in enumerate((8, 12, 10)):
        share = np.bincount(place[:, axis], minlength=size) / len(place)
        assert len(share) == size and np.abs(share - 1 / size).max() < 0.03


def test_crops_stay_inside_and_keep_their_voxel():
    shape, crop = np.array([20, 9, 30]), (8, 8, 8)
    rng = np.random.default_rng(2)
    for _ in range(300):
        voxel = rng.integers(shape)
        origin = choose_origin(arrays_of(shape, np.ones(shape, np.uint8), {1: voxel[None].astype(np.int32)}), crop, 1.0, rng)
        assert (origin >= 0).all() and (origin + crop <= shape).all()
        assert (voxel >= origin).all() and (voxel < origin + crop).all()


def test_a_volume_without_body_still_gives_crops():
    origin = choose_origin(arrays_of((20, 20, 20), np.zeros((20, 20, 20), np.uint8), {}), (8, 8, 30), 0.0, np.random.default_rng(3))
    assert (origin[:2] >= 0).all() and (origin[:2] <= 12).all() and origin[2] == -5


def test_cut_copies_only_the_box_and_fills_the_rest():
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    np.testing.assert_array_equal(cut(array, np.array([1, 2, 3]), (2, 2, 2), -1), array[1:3, 2:4, 3:5])
    padded = np.pad(array, 3, constant_values=-1)
    np.testing.assert_array_equal(cut(array, np.array([-2, 3, 4]), (7, 4, 5), -1), padded[1:8, 6:10, 7:12])
    assert cut(array, np.array([0, 0, 0]), (4, 5, 6), 0).base is None


def test_an_error_in_a_reading_thread_names_the_case_and_the_file(store, tmp_path):
    import shutil

    shutil.copytree(store.cache, tmp_path / "cache")
    broken = Store(tmp_path, manifest(asdict(RECIPE), store.dataset, [store.entry(name) for name in store.names], []))
    (tmp_path / "cache" / "c.image.npy").unlink()
    source = loader(broken)
    with pytest.raises(InputError, match=r"c\.image\.npy.*case c") as caught:
        take(source, 3)
    source.close()
    assert any(note.endswith("from case c") for note in caught.value.__notes__)
    assert any(frame.name == "_crop" for frame in caught.traceback)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"names": ()}, InputError, "no case"),
        ({"names": ("a", "nobody")}, InputError, "no case 'nobody'"),
        ({"names": ("a", "d")}, InputError, "1 of 2 cases have no label, among them d"),
        ({"labelled": False}, ConfigError, "foreground needs labels"),
        ({"foreground": 1.5}, ConfigError, "between 0 and 1"),
        ({"process": (0, 3)}, ConfigError, "4 cannot be shared evenly by 3"),
        ({"process": (2, 2)}, ConfigError, "number 2"),
        ({"crop": (8, 0, 8)}, ConfigError, "at least 1"),
        ({"seed": -1}, ConfigError, "seed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(store, changes, error, words):
    with pytest.raises(error, match=words):
        loader(store, **changes)


def test_every_crop_can_be_traced_to_its_case_and_box(store):
    source = loader(store)
    for batch in [next(source) for _ in range(3)]:
        for k, id in enumerate(batch["id"]):
            found = source.provenance(id)
            image = make_record(found.case)["image"]
            box = cut(image, np.array(found.origin), found.crop, np.array((-1, -2), np.float16))
            np.testing.assert_array_equal(batch["image"][k], box)
            assert found.crop == (8, 8, 8) and found.store == str(store.path)
    source.close()


def test_a_place_is_where_the_crop_lies_in_its_scan(store):
    source = loader(store, places=True)
    batch = next(source)
    for k, id in enumerate(batch["id"]):
        found = source.provenance(id)
        half = np.array(make_record(found.case)["image"].shape[:3]) / 2
        corner, size = batch["place"][k] / batch["spacing"][k]
        np.testing.assert_allclose(corner, np.array(found.origin) - half, atol=1e-5)
        np.testing.assert_allclose(size, half, atol=1e-5)
    source.close()
    assert "place" not in next(loader(store))


def mixed(store, weights, names=(("a", "b"), ("c",), ("small",)), **changes) -> CropLoader:
    sources = [Source(store, case, weight) for case, weight in zip(names, weights, strict=False)]
    return CropLoader(sources, **{"crop": (4, 4, 4), "batch": 4, "seed": 7, "foreground": 0.5, "labelled": True, **changes})


def test_stores_are_mixed_by_weight_and_each_keeps_its_epochs(store):
    mixture = Mixture([Source(store, ("a", "b"), 3.0), Source(store, ("c",), 1.0), Source(store, ("small",), 0.02)], 5)
    cases = [mixture.case(id) for id in range(4000)]
    share = np.bincount([number for number, _ in cases]) / 4000
    np.testing.assert_allclose(share, np.array([3, 1, 0.02]) / 4.02, atol=2e-3)
    first = [name for number, name in cases if number == 0]
    assert all(set(pair) == {"a", "b"} for pair in zip(first[::2], first[1::2]))
    assert [mixture.locate(id)[1] for id in range(4000) if cases[id][0] == 1] == list(range(sum(number == 1 for number, _ in cases)))


def test_a_mixture_is_sharded_and_resumed_like_one_store(store):
    whole = take(mixed(store, (2, 1, 1)), 6)
    parts = [take(mixed(store, (2, 1, 1), process=(p, 2)), 6) for p in range(2)]
    assert_same(whole, [{name: np.concatenate([part[k][name] for part in parts]) for name in whole[k]} for k in range(6)])
    first = mixed(store, (2, 1, 1))
    next(first)
    again, other = mixed(store, (2, 1, 1)), mixed(store, (3, 1, 1))
    again.set_state(first.get_state())
    assert_same(take(again, 5), whole[1:])
    with pytest.raises(CheckpointError, match="cases"):
        other.set_state(first.get_state())
    first.close()
    other.close()


def test_balanced_draws_labels_evenly_though_few_cases_hold_one(store, tmp_path):
    names = [f"n{k}" for k in range(6)]
    entries = []
    for k, name in enumerate(names):
        record = {**make_record("a"), "name": name}
        if k:
            record["label"][record["label"] == 2] = 0
        values = {0: 1, 1: 24, **({2: 12} if k == 0 else {})}
        files = write_cache(tmp_path / "cache", name, record)
        entries.append(Entry(name, name, SHAPES["a"], (1.0, 1.0, 2.0), np.eye(4), (True, True), (0.0, 0.0), name, values, "", k, {}, files))
    rare = Store(tmp_path, manifest(asdict(RECIPE), {"version": "1.0.0", "files": {}}, entries, []))

    def share(**changes) -> float:
        batches = take(loader(rare, names=names, crop=(4, 4, 4), batch=50, foreground=1.0, **changes), 8)
        return float(np.mean([(batch["label"] == 2).any((1, 2, 3)) for batch in batches]))

    assert share() < 0.2 and abs(share(balanced=True) - 0.5) < 0.08


def test_stores_that_cannot_be_mixed_are_refused(store):
    other = Store(store.path, manifest(asdict(replace(RECIPE, channels=("A", "C"))), store.dataset, [store.entry("a")], []))
    with pytest.raises(ConfigError, match="channels A, C.*has A, B.*--like"):
        CropLoader([Source(store, ("a",)), Source(other, ("a",))], crop=(4, 4, 4), batch=1, seed=0)
    with pytest.raises(ConfigError, match="weight is 0"):
        mixed(store, (0, 1))
    with pytest.raises(ConfigError, match="balanced"):
        loader(store, foreground=0.0, balanced=True)
