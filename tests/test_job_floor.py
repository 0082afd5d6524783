"""The position-only floor of a main job: read from label files, whatever their orientation and size, of what is scored."""

import numpy as np
import pytest

from jaxseg.data.cases import Case
from jaxseg.data.io import save_volume
from jaxseg.data.recipe import Recipe
from jaxseg.data.volume import Volume, reorient_like
from jaxseg.job_floor import floor_of


def recipe(**changes):
    return Recipe(**{"channels": ("T1",), "spacing": (1.0, 1.0, 1.0), "intensity": ("zscore",), "labels": {"tumour": 1}, **changes})


@pytest.fixture
def case(tmp_path):
    def write(name, array, turned=False):
        volume = Volume(array.astype(np.uint8)[..., None], np.eye(4), ("label",))
        flipped = np.diag([-1.0, -1.0, 1.0, 1.0])
        path = save_volume(reorient_like(volume, flipped) if turned else volume, tmp_path / f"{name}.nii.gz")
        return Case(name, {"T1": path}, path)

    return write


def corner(side=16, value=1):
    array = np.zeros((side,) * 3)
    array[: side // 2, : side // 2, : side // 2] = value
    return array


def test_equal_labels_are_found_by_their_place_in_whatever_orientation_and_size(case):
    floor = floor_of(
        [case("a", corner())], [case("turned", corner(), turned=True), case("large", corner(200)), case("other", corner()[::-1])], recipe()
    )
    assert floor["per_case"]["turned"] > 0.95 and floor["per_case"]["large"] > 0.9 and floor["per_case"]["other"] < 0.1
    assert floor["dice"] == pytest.approx(np.mean(list(floor["per_case"].values())))


def test_the_same_name_among_training_and_test_cases_is_no_mistake(case):
    away = corner()[::-1]
    assert floor_of([case("case_1", corner())], [Case("case_1", {}, case("b", away).label)], recipe())["dice"] < 0.1


def test_regions_and_what_is_to_be_ignored(case):
    rim = corner()
    rim[:4, :4, :4] = 2
    labels = recipe(labels={"whole": [1, 2], "core": [2]}, regions=True)
    assert floor_of([case("a", rim)], [case("b", rim)], labels)["dice"] > 0.9
    half = corner()
    half[4:8] = 7  # nobody said what is there
    assert floor_of([case("c", corner())], [case("d", half)], recipe(labels={"tumour": 1, "ignore": 7}))["dice"] > 0.9


def test_without_labels_to_test_on_there_is_none(case):
    assert floor_of([case("a", corner())], [Case("b", {}, None)], recipe()) is None
