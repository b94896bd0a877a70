"""What a composition of mechanisms costs: exact Gaussian, subsampled and integer accounting."""

__all__: list[str] = []
