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

    def outlines(self, count: int) -> tuple[int | None, ...]:
        """Which of `count` outlines, each inside the one before, every output starts from where a network that draws such outlines is taken.

        Regions in order of their number of values, the largest from the first; every exclusive class from the first, the background from none.
        """
        if self.regions is None:
            return (None, *(0 for _ in self.names))
        order = sorted(range(len(self.regions)), key=lambda index: -len(self.regions[index]))  # type: ignore[index]
        return tuple(min(order.index(index), count - 1) for index in range(len(self.regions)))

    @property
    def outputs(self) -> int:
        """Channels of the logits: one a region, or one a class and one for the background."""
        return len(self.names) + (self.regions is None)
