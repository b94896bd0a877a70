"""The small set of images of the studies' tests."""

from tests.study.conftest import cache, study

__all__ = ["cache", "study"]
