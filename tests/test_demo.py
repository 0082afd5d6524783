"""What the demo promises about its archive, and that its task is not a toy."""

from jaxseg.data.phantom.archive import plan_archive
from jaxseg.data.phantom.contrast import CHANNELS
from jaxseg.demo import BROKEN, GLIOMA, LABELLED, TRAINED_ON, UNLABELLED
from pretrain.implants import PARTS


def test_the_archive_is_as_large_as_promised_and_some_of_it_is_broken():
    plans = plan_archive(unlabelled=UNLABELLED, labelled=LABELLED, broken=BROKEN, seed=0)
    assert sum(plan.folder == "unlabelled" for plan in plans) >= 48
    assert sum(plan.folder == "labelled" for plan in plans) >= 24
    assert {plan.fault for plan in plans if plan.fault} == {"truncated", "not finite", "qform and sform conflict", "web page"}
    assert TRAINED_ON == 4


def test_another_seed_is_another_archive_and_the_same_seed_the_same():
    first, again, other = (plan_archive(unlabelled=8, labelled=4, broken=2, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_what_is_said_of_gliomas_is_said_of_every_channel():
    assert set(GLIOMA) == set(CHANNELS)
    assert all(len(parts) == len(PARTS) for parts in GLIOMA.values())
