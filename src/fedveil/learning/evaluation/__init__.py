"""Evaluation of a model: metrics on public test sets, and noisy histograms of held-out patients."""

__all__: list[str] = []
