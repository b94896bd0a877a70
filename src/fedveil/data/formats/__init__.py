"""Readers, one module per format; each yields records that `fedveil.data` checks."""

__all__: list[str] = []
