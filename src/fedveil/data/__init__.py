"""Images and who they show: readers that yield a checked data set grouped by patient; simulated hospitals.

Manifests, image folders, DICOM, `.npz` files, the MedMNIST sets and the built-in synthetic phantom all become
one :class:`Dataset`; one hospital's part of it is a :class:`Cohort`. Preprocessing uses public constants
only. Nothing in here knows about privacy budgets, networks or rounds.
"""

from fedveil.data.cohort import TEST, TRAIN, VALIDATION, Cohort, Dataset, PatientImages
from fedveil.data.load import load
from fedveil.data.partition import Scheme, hospitals, named_hospitals
from fedveil.data.stack import ArrayImages, ImageStack, in_memory

__all__ = [
    "TEST",
    "TRAIN",
    "VALIDATION",
    "ArrayImages",
    "Cohort",
    "Dataset",
    "ImageStack",
    "PatientImages",
    "Scheme",
    "hospitals",
    "in_memory",
    "load",
    "named_hospitals",
]
