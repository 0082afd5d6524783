"""What a network's outputs mean: exclusive classes through softmax, or overlapping regions through sigmoid. Used by the loss, the monitor and the card."""

from dataclasses import dataclass

from jaxseg.data.recipe import Recipe
from jaxseg.errors import ConfigError


@dataclass(frozen=True)
class Classes:
    """Outputs of a network.

    Attributes:
        names: of the labels or regions, without the background.
        regions: for overlapping regions the label values of each; None for exclusive classes, whose prepared labels are 1 … n.
    """

    names: tuple[str, ...]
    regions: tuple[tuple[int, ...], ...] | None

    @classmethod
    def of(cls, recipe: Recipe) -> "Classes":
        """The classes of a store. ConfigError if it has no labels."""
        if not recipe.values:
            raise ConfigError("this store has no labels: prepare a folder of scans with labels for fine-tuning")
        if recipe.regions:
            return cls(tuple(recipe.classes), tuple(recipe.classes.values()))
        return cls(tuple(sorted(recipe.classes, key=lambda name: recipe.classes[name])), None)

    @property
    def outputs(self) -> int:
        """Channels of the logits: one a region, or one a class and one for the background."""
        return len(self.names) + (self.regions is None)
