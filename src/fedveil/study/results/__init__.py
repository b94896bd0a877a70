"""What a run leaves behind: its directory, its result and the trained model."""

__all__: list[str] = []
