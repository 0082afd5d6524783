"""Which labels a choice of training cases cannot teach, since none of them holds a voxel. Called by the main job and by fine-tuning."""

from collections.abc import Sequence

from jaxseg.data.catalog import Store


def untaught(store: Store, names: Sequence[str]) -> tuple[str, ...]:
    """The labels and regions of the store's recipe of which none of these cases has a voxel, in the recipe's order."""
    counts = [store.entry(name).label_counts or {} for name in names]
    held = {value for each in counts for value, voxels in each.items() if voxels}
    return tuple(name for name, values in store.recipe.classes.items() if values and not held & set(values))


def sentence(labels: Sequence[str], cases: int) -> str:
    """What to say of them."""
    return (
        f"none of the {cases} training case{'s' * (cases != 1)} holds {', '.join(labels)}: that cannot be learnt, and counts as missed wherever a "
        "test case has it"
    )
