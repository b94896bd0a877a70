"""The lengths of a model's vectors, without the model: no weight is read, downloaded or held in memory.

A hospital derives the agreement of every offered study before anybody there has read the offer. A network is built
on PyTorch's meta device, where parameters have shapes and no storage; a linear head's sizes are arithmetic.
"""

from contextlib import nullcontext
from dataclasses import dataclass

from fedveil.learning.models.network_labels import NetworkLabels, OfLabels

__all__ = ["NetworkSizes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSizes(OfLabels):
    """The sizes of a network; implements `fedveil.learning.Sizes`, as `NetworkModel` does.

    Attributes:
        labels: what labels mean.
        centre: number of centred features, 0 if there are none.
        trained: number of trained parameters.
    """

    labels: NetworkLabels
    centre: int
    trained: int

    @classmethod
    def of(
        cls,
        name: str,
        *,
        classes: int,
        channels: int,
        image_size: int,
        trained_blocks: int = 1,
        trained: str = "all",
        findings: bool = False,
        grades: bool = False,
    ) -> "NetworkSizes":
        """The sizes of a network that a study file names; see `fedveil.learning.NetworkModel`.

        Raises:
            InvalidValue: there is no such network, or its package is not installed.
        """
        import torch  # here, since only offers of networks need it

        from fedveil.learning.gradients import dimension
        from fedveil.learning.networks import Centred, is_own, layers_of, split_frozen

        # One's own network is built as it is: its code need not know PyTorch's meta device, and no offer names it.
        with nullcontext() if is_own(name) else torch.device("meta"):
            layers = layers_of(
                name, classes, channels, image_size, 0, trained_blocks, trained=trained, weights=False
            )
        _, body = split_frozen(layers)
        centred = next((layer for layer in body if isinstance(layer, Centred)), None)
        return cls(
            labels=NetworkLabels.of(classes, findings=findings, grades=grades),
            centre=sum(centred.blocks) if centred else 0,
            trained=dimension(body),
        )

    @property
    def classes(self) -> int:
        """Number of classes or findings."""
        return self.labels.classes

    @property
    def parameters(self) -> int:
        """One offset of the logits per class, the centre, and the trained part."""
        return self.classes + self.centre + self.trained

    @property
    def statistics_size(self) -> int:
        """Counts, and what is released of the features that are centred."""
        return self.labels.statistics_size(self.centre)
