"""The built-in synthetic patients."""

__all__: list[str] = []
