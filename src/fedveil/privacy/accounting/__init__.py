"""The cost of a composition of mechanisms: exact Gaussian, subsampled and integer accounting."""

__all__: list[str] = []
