"""A run's output: its directory, its result and the trained model."""

__all__: list[str] = []
