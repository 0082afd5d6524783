"""Pictures of a case: which label a value is drawn as."""

from jaxseg.case_picture import values_of


def test_a_value_is_named_after_its_label_or_the_smallest_region_that_holds_it():
    assert values_of({"whole": [1, 2, 4], "core": [1, 4], "enhancing": 4}) == {1: "core", 2: "whole", 4: "enhancing"}
    assert values_of({"lesion": 1, "ignore": 3}) == {1: "lesion"}
