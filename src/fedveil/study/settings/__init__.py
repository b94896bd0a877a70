"""The study file: its schema, its defaults, which settings conflict, and how it is written."""

__all__: list[str] = []
