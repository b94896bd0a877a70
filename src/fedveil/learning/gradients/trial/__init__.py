"""A trial of a model and a loss on made-up images, before anything is charged."""

__all__: list[str] = []
