"""What is trained: the model and learner protocols, and the models that implement them."""

__all__: list[str] = []
