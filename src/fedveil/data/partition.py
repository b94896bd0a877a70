"""Simulated hospitals: splits the training patients of one data set among sites, never one patient's images.

Label skew by a Dirichlet distribution follows Hsu, Qi and Brown, "Measuring the effects of non-identical data
distribution" (arXiv 1909.06335), here over sites for each class, as is usual, and with patients instead of images.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fedveil.data.dataset import Dataset
from fedveil.data.split import PARTITION_STREAM, TEST_STREAM, patient_labels
from fedveil.errors import DataError, InvalidValue

__all__ = ["Scheme", "held_out_patients", "hospitals", "named_hospitals"]

Scheme = Literal["iid", "dirichlet", "quantity"]
Codes = npt.NDArray[np.int64]


def hospitals(
    dataset: Dataset, count: int, scheme: Scheme = "dirichlet", alpha: float = 0.5, seed: int = 0
) -> list[Codes]:
    """Training images of each of ``count`` simulated hospitals, as ascending indices into ``dataset``.

    ``iid`` splits patients evenly. ``dirichlet`` splits each class by shares from Dirichlet(alpha), so that with a
    small alpha a hospital has few classes. ``quantity`` only draws the hospitals' sizes from it. A patient is
    assigned to one hospital with all their training images, and no hospital is empty.
    """
    train = dataset.train
    present, local = np.unique(dataset.patients[train], return_inverse=True)
    _check(count, len(present), scheme, alpha)
    generator = np.random.default_rng([seed, PARTITION_STREAM])
    order = generator.permutation(len(present))
    if scheme == "dirichlet":
        label = patient_labels(local.astype(np.int64), dataset.labels[train])
        groups = [order[label[order] == code] for code in np.unique(label)]
        shares = [generator.dirichlet(np.full(count, alpha)) for _ in groups]
    elif scheme == "quantity":
        groups, shares = [order], [generator.dirichlet(np.full(count, alpha))]
    else:
        groups, shares = [order], [np.full(count, 1 / count)]
    site = np.empty(len(present), np.int64)
    for members, share in zip(groups, shares, strict=True):
        site[members] = _deal(len(members), share)
    _fill_empty(site, count)
    return [train[site[local] == code] for code in range(count)]


def named_hospitals(dataset: Dataset) -> dict[str, Codes]:
    """Training images of each hospital that the source itself names: ascending indices into ``dataset``."""
    if dataset.sites is None:
        raise DataError(
            f"{dataset.name} names no hospitals",
            "a real federation needs the hospital of each image",
            "add a site column, or simulate hospitals with [data.sites]",
        )
    train = dataset.train
    return {name: train[dataset.sites[train] == code] for code, name in enumerate(dataset.site_names)}


def held_out_patients(dataset: Dataset, names: tuple[str, ...], seed: int = 0) -> dict[str, Codes]:
    """Test images of each hospital, as ascending indices into ``dataset``: its own, or an even split of patients.

    If the source names no hospitals, the test patients are assigned to hospitals in turn, in an order drawn with the
    seed.
    """
    test = dataset.test
    if dataset.sites is not None:
        codes = {name: dataset.site_names.index(name) for name in names}
        return {name: test[dataset.sites[test] == code] for name, code in codes.items()}
    present, local = np.unique(dataset.patients[test], return_inverse=True)
    order = np.random.default_rng([seed, TEST_STREAM]).permutation(len(present))
    site = np.empty(len(present), np.int64)
    site[order] = np.arange(len(present)) % len(names)
    return {name: test[site[local] == code] for code, name in enumerate(names)}


def _deal(total: int, share: npt.NDArray[np.float64]) -> Codes:
    """Sites 0 .. count - 1 in blocks whose sizes are ``total * share``, rounded so that they add up."""
    ends = np.rint(np.cumsum(share) * total).astype(np.int64)
    ends[-1] = total
    return np.repeat(np.arange(len(share)), np.diff(ends, prepend=0))


def _fill_empty(site: Codes, count: int) -> None:
    """Moves one patient from the largest hospital to each empty one."""
    for code in range(count):
        sizes = np.bincount(site, minlength=count)
        if sizes[code] == 0:
            site[np.flatnonzero(site == sizes.argmax())[0]] = code


def _check(count: int, patients: int, scheme: str, alpha: float) -> None:
    if scheme not in get_args(Scheme):
        raise InvalidValue(
            f"scheme is {scheme}", f"it must be one of {', '.join(get_args(Scheme))}", "choose one"
        )
    if not 1 <= count <= patients:
        raise InvalidValue(
            f"count is {count}",
            f"there are {patients} training patients, and every hospital needs one",
            f"simulate between 1 and {patients} hospitals",
        )
    if not (np.isfinite(alpha) and alpha > 0):
        raise InvalidValue(
            f"alpha is {alpha}", "it must be a positive number", "0.5 skews clearly, 100 hardly"
        )
