"""Labels that no training case holds are named, regions by what they are made of."""

import dataclasses

from jaxseg.data.catalog import Entry
from jaxseg.data.recipe import Recipe
from jaxseg.data.untaught import sentence, untaught


class Held:
    """A store of entries that differ in what is labelled alone."""

    def __init__(self, labels, counts):
        self.recipe = Recipe(
            channels=("T1",),
            spacing=(1.0, 1.0, 1.0),
            intensity=("zscore",),
            labels=labels,
            regions=any(isinstance(each, tuple) for each in labels.values()),
        )
        self.counts = counts

    def entry(self, name):
        fields = {field.name: None for field in dataclasses.fields(Entry)}
        return Entry(**fields | {"name": name, "label_counts": self.counts[name]})


def test_a_label_is_taught_by_one_voxel_in_one_case():
    store = Held({"core": 1, "rim": 4}, {"a": {0: 50, 1: 3, 2: 0}, "b": {0: 50, 2: 1}, "c": None})
    assert untaught(store, ("a",)) == ("rim",) and untaught(store, ("b",)) == ("core",) and untaught(store, ("a", "b")) == ()
    assert untaught(store, ("c",)) == ("core", "rim")
    assert sentence(("rim",), 1).startswith("none of the 1 training case holds rim: that cannot be learnt")


def test_a_region_is_taught_by_any_of_its_values():
    store = Held({"whole": (1, 2), "core": (2,), "ignore": 9}, {"a": {0: 9, 1: 5}, "b": {2: 5}})
    assert untaught(store, ("a",)) == ("core",) and untaught(store, ("b",)) == ()
