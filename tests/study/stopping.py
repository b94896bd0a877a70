"""A run that is stopped after some of its rounds, as if its process had ended."""

__all__ = ["Stop", "StopAfter"]


class Stop(Exception):
    """The process ends, as it were."""


class StopAfter:
    """Progress that ends the process after so many rounds of training."""

    def __init__(self, rounds: int) -> None:
        self.left, self.training = rounds, False

    def stage(self, name: str, total: int, done: int = 0) -> None:
        self.training = name == "training"

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= self.training
        if self.left == 0:
            raise Stop
