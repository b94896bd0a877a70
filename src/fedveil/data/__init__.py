"""Images and their patients: readers that yield a checked data set grouped by patient; simulated hospitals.

Manifests, image folders, DICOM, `.npz` files, the MedMNIST sets and the built-in synthetic phantom all become
one :class:`Dataset`; one hospital's part of it is a :class:`Cohort`. Preprocessing uses public constants
only. Nothing in here knows about privacy budgets, networks or rounds.
"""

from fedveil.data.annotations.records import Problem
from fedveil.data.annotations.usable import load_usable
from fedveil.data.cache import FeatureCache, cache_folder
from fedveil.data.check import CheckReport, check
from fedveil.data.dataset import TEST, TRAIN, VALIDATION, Cohort, Dataset, PatientImages
from fedveil.data.embeddings import Embeddings
from fedveil.data.formats.medmnist import MEDMNIST, fetch
from fedveil.data.formats.unlabelled import Unlabelled, read_unlabelled
from fedveil.data.image_store import ArrayImages, ImageStack
from fedveil.data.load import MEMORY, is_path, load
from fedveil.data.options import Options, Reading, Settings
from fedveil.data.partition import Scheme, held_out_patients, hospitals, named_hospitals
from fedveil.data.windows import Window, check_window
from fedveil.data.write import write_split

__all__ = [
    "MEDMNIST",
    "MEMORY",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "ArrayImages",
    "CheckReport",
    "Cohort",
    "Dataset",
    "Embeddings",
    "FeatureCache",
    "ImageStack",
    "Options",
    "PatientImages",
    "Problem",
    "Reading",
    "Scheme",
    "Settings",
    "Unlabelled",
    "Window",
    "cache_folder",
    "check",
    "check_window",
    "fetch",
    "held_out_patients",
    "hospitals",
    "is_path",
    "load",
    "load_usable",
    "named_hospitals",
    "read_unlabelled",
    "write_split",
]
