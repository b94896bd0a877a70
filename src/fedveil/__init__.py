"""Federated learning of medical image classifiers under a patient-level privacy budget."""

from importlib.metadata import version

__version__ = version("fedveil")
