"""The two-dimensional MedMNIST sets by name, downloaded once and checked against the official MD5.

Yang et al., "MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image
classification", Scientific Data 10:41, 2023. File names, sums and classes are those of MedMNIST 3.0.2, at
Zenodo record 10519652. The sets name no patients, so each image counts as one.
"""

from dataclasses import dataclass
from pathlib import Path

from fedveil.data.annotations.records import Records
from fedveil.data.cache import cache_folder
from fedveil.data.formats.npz import read_npz
from fedveil.data.options import Options
from fedveil.errors import DataError, InvalidValue
from fedveil.lazy import later

__all__ = ["MEDMNIST", "MedMNIST", "class_names", "fetch", "read_medmnist"]

pooch = later("pooch")

RECORD = "https://zenodo.org/records/10519652/files"
SIZES = (28, 64, 128, 224)


@dataclass(frozen=True, slots=True)
class MedMNIST:
    """The classes of one set, and the MD5 of its file at 28, 64, 128 and 224 pixels."""

    classes: tuple[str, ...]
    md5: tuple[str, str, str, str]
    licence: str = "CC BY 4.0"


ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)

MEDMNIST = {
    "pathmnist": MedMNIST(
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        (
            "a8b06965200029087d5bd730944a56c1",
            "55aa9c1e0525abe5a6b9d8343a507616",
            "ac42d08fb904d92c244187169d1fd1d9",
            "2c51a510bcdc9cf8ddb2af93af1eadec",
        ),
    ),
    "chestmnist": MedMNIST(
        (
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
        (
            "02c8a6516a18b556561a56cbdd36c4a8",
            "9de6cd0b934ebb5b7426cfba5efbae16",
            "db107e5590b27930b62dbaf558aebee3",
            "45bd33e6f06c3e8cdb481c74a89152aa",
        ),
    ),
    "dermamnist": MedMNIST(
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        (
            "0744692d530f8e62ec473284d019b0c7",
            "b70a2f5635c6199aeaa28c31d7202e1f",
            "2defd784463fa5243564e855ed717de1",
            "8974907d8e169bef5f5b96bc506ae45d",
        ),
        "CC BY-NC 4.0",
    ),
    "octmnist": MedMNIST(
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        (
            "c68d92d5b585d8d81f7112f81e2d0842",
            "e229e9440236b774d9f0dfef9d07bdaf",
            "0a97e76651ace45c5d943ee3f65b63ae",
            "abc493b6d529d5de7569faaef2773ba3",
        ),
    ),
    "pneumoniamnist": MedMNIST(
        ("normal", "pneumonia"),
        (
            "28209eda62fecd6e6a2d98b1501bb15f",
            "8f4eceb4ccffa70c672198ea285246c6",
            "05b46931834c231683c68f40c47b2971",
            "d6a3c71de1b945ea11211b03746c1fe1",
        ),
    ),
    "retinamnist": MedMNIST(
        ("0", "1", "2", "3", "4"),
        (
            "bd4c0672f1bba3e3a89f0e4e876791e4",
            "afda852cc34dcda56f86ad2b2457dbcc",
            "e48e916a24454daf90583d4e6efb1a18",
            "eae7e3b6f3fcbda4ae613ebdcbe35348",
        ),
    ),
    "breastmnist": MedMNIST(
        ("malignant", "normal, benign"),
        (
            "750601b1f35ba3300ea97c75c52ff8f6",
            "742edef2a1fd1524b2efff4bd7ba9364",
            "363e4b3f8d712e9b5de15470a2aaadf1",
            "b56378a6eefa9fed602bb16d192d4c8b",
        ),
    ),
    "bloodmnist": MedMNIST(
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        (
            "7053d0359d879ad8a5505303e11de1dc",
            "2b94928a2ae4916078ca51e05b6b800b",
            "adace1e0ed228fccda1f39692059dd4c",
            "b718ff6835fcbdb22ba9eacccd7b2601",
        ),
    ),
    "tissuemnist": MedMNIST(
        (
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
        (
            "ebe78ee8b05294063de985d821c1c34b",
            "123ece2eba09d0aa5d698fda57103344",
            "61b955355d7425a89687b06cca3ce0c2",
            "b077128c4a949f0a4eb01517f9037b9c",
        ),
    ),
    "organamnist": MedMNIST(
        ORGANS,
        (
            "68e3f8846a6bd62f0c9bf841c0d9eacc",
            "2dcccc29b88e6da5a01161ef20cda288",
            "eeae80d0a227a8d099027e1b3cfd3b60",
            "50747347e05c87dd3aaf92c49f9f3170",
        ),
    ),
    "organcmnist": MedMNIST(
        ORGANS,
        (
            "b9ceb9546e10131b32923c5bbeaea2b1",
            "3ce34a8724ea6f548e6db4744d03b6a9",
            "773c1f009daa3fe5d9a2a201b2a7ed94",
            "050f5e875dc056f6768abf94ec9995d1",
        ),
    ),
    "organsmnist": MedMNIST(
        ORGANS,
        (
            "9ab87b696fb54e2a387ebe992d6ed5f1",
            "53a6d115339d874c25e309a994ff46d3",
            "ded0c5fa01a95dc4978b956f613e9b8e",
            "b354719e553fbbb2513d5533f52a4cb1",
        ),
    ),
}
"""Every set by its name; an image of chestmnist can have several of its classes at once."""


def class_names(stem: str) -> tuple[str, ...] | None:
    """The classes of the set whose official file is called ``stem``, if there is one.

    >>> class_names("breastmnist_224")
    ('malignant', 'normal, benign')
    """
    known = MEDMNIST.get(stem.lower().partition("_")[0])
    return None if known is None else known.classes


def read_medmnist(name: str, options: Options) -> Records:
    """The set ``name`` at its smallest sufficient size for ``image_size``; ``name_64`` selects a size."""
    path = fetch(name, options.image_size)
    return read_npz(path, options, class_names(path.stem))


def fetch(name: str, image_size: int = 28) -> Path:
    """The set's official file, downloaded unless it is in the cache; its MD5 is always checked."""
    title, size = _parse(name, image_size)
    file = f"{title}.npz" if size == 28 else f"{title}_{size}.npz"
    folder, url = cache_folder() / "medmnist", f"{RECORD}/{file}?download=1"
    md5 = MEDMNIST[title].md5[SIZES.index(size)]
    try:
        downloader = pooch.HTTPDownloader(timeout=15)
        return Path(pooch.retrieve(url, f"md5:{md5}", file, folder, downloader=downloader))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160] if isinstance(error, ValueError) else type(error).__name__
        raise DataError(
            f"{title} at {size} pixels is missing or incomplete at {folder / file}; download failed ({reason})",
            f"it must be the official file with the MD5 {md5}",
            f"download {url} on a machine with a network, and copy it there",
        ) from None


def _parse(name: str, image_size: int) -> tuple[str, int]:
    title, _, suffix = name.lower().partition("_")
    sizes = {str(size): size for size in SIZES}
    if title not in MEDMNIST or (suffix and suffix not in sizes):
        raise InvalidValue(
            f"the MedMNIST set {name} is unknown",
            f"the sets are {', '.join(MEDMNIST)}, and their sizes {', '.join(sizes)}",
            "write medmnist:NAME or medmnist:NAME_SIZE",
        )
    if suffix:
        return title, sizes[suffix]
    return title, next((size for size in SIZES if size >= image_size), SIZES[-1])
