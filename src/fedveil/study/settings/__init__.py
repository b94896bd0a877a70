"""The study file: its schema, its defaults, conflicts between settings, and how it is written."""

__all__: list[str] = []
