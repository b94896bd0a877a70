"""The figures of a report, drawn from a run's record."""

__all__: list[str] = []
