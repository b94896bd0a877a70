"""Images and who they show: readers that yield a checked data set grouped by patient; simulated hospitals.

Manifests, image folders, DICOM, `.npz` files, the MedMNIST sets and the built-in synthetic phantom all become
one :class:`Dataset`; one hospital's part of it is a :class:`Cohort`. Preprocessing uses public constants
only. Nothing in here knows about privacy budgets, networks or rounds.
"""

from fedveil.data.cache import FeatureCache, cache_folder
from fedveil.data.check import CheckReport, check
from fedveil.data.cohort import TEST, TRAIN, VALIDATION, Cohort, Dataset, PatientImages
from fedveil.data.load import is_path, load
from fedveil.data.medmnist import MEDMNIST, fetch
from fedveil.data.partition import Scheme, held_out_patients, hospitals, named_hospitals
from fedveil.data.records import Options, Problem
from fedveil.data.stack import ArrayImages, ImageStack, in_memory
from fedveil.data.unlabelled import Unlabelled, read_unlabelled
from fedveil.data.usable import load_usable
from fedveil.data.write import write_split

__all__ = [
    "MEDMNIST",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "ArrayImages",
    "CheckReport",
    "Cohort",
    "Dataset",
    "FeatureCache",
    "ImageStack",
    "Options",
    "PatientImages",
    "Problem",
    "Scheme",
    "cache_folder",
    "Unlabelled",
    "check",
    "fetch",
    "held_out_patients",
    "hospitals",
    "in_memory",
    "is_path",
    "load",
    "load_usable",
    "named_hospitals",
    "read_unlabelled",
    "write_split",
]
