"""Losses of linear heads that are not a cross-entropy over classes, with the public numbers they need."""

__all__: list[str] = []
