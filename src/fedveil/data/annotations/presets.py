"""The tables of well-known public sets: their columns, findings and folders, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How the table of one set is read.

    Attributes:
        columns: the table's column by meaning; ``label`` may be several, one per finding.
        attributes: the table's column by attribute; those that a version of the table lacks are left out.
        task: meaning of the labels.
        classes: findings or classes, in order; empty if the columns of ``label`` are the findings.
        separator: of findings within a label.
        folders: where a path may start, relative to the table; the first that holds the file counts.
        suffix: what follows the identifier in the name of a file.
        patient_in_path: regular expression of the patient within a path, if no column names the patient.
        accept: problems that this table has by design.
    """

    columns: Mapping[str, str | tuple[str, ...]]
    attributes: Mapping[str, str] = field(default_factory=dict)
    task: str = "classes"
    classes: tuple[str, ...] = ()
    separator: str = ""
    folders: tuple[str, ...] = ("",)
    suffix: str = ""
    patient_in_path: str = ""
    accept: tuple[str, ...] = ()


NIH = (
    *(
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
    ),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
CHEXPERT = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
    *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
VINBIG = (
    *(
        "Aortic enlargement",
        "Atelectasis",
        "Calcification",
        "Cardiomegaly",
        "Clavicle fracture",
        "Consolidation",
    ),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *(
        "Pulmonary fibrosis",
        "Rib fracture",
        "Other lesion",
        "COPD",
        "Lung tumor",
        "Pneumonia",
        "Tuberculosis",
    ),
)

PRESETS: Mapping[str, Preset] = {
    "nih-cxr14": Preset(
        columns={"path": "Image Index", "label": "Finding Labels", "patient": "Patient ID"},
        attributes={"age": "Patient Age", "sex": "Patient Gender", "view": "View Position"},
        task="findings",
        classes=NIH,
        separator="|",
        folders=("", "images", *(f"images_{number:03d}/images" for number in range(1, 13))),
    ),
    "chexpert": Preset(
        columns={"path": "Path", "label": CHEXPERT},
        attributes={"age": "Age", "sex": "Sex", "view": "Frontal/Lateral"},
        task="findings",
        folders=("", ".."),
        patient_in_path=r"patient\d+",
    ),
    "vinbig": Preset(
        columns={"path": "image_id", "label": VINBIG},
        task="findings",
        folders=("", "train", "test", "../train", "../test"),
        suffix=".dicom",
        accept=("repeated-rows",),
    ),
    "isic": Preset(
        columns={"path": "image_name", "label": "benign_malignant", "patient": "patient_id"},
        attributes={"age": "age_approx", "sex": "sex", "location": "anatom_site_general_challenge"},
        classes=("benign", "malignant"),
        folders=("", "train", "jpeg/train"),
        suffix=".jpg",
    ),
    "ham10000": Preset(
        columns={"path": "image_id", "label": "dx"},
        attributes={"age": "age", "sex": "sex", "location": "localization"},
        classes=("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"),
        folders=("", "images", "HAM10000_images_part_1", "HAM10000_images_part_2"),
        suffix=".jpg",
    ),
    "rsna": Preset(
        columns={"path": "patientId", "label": "Target", "patient": "patientId"},
        classes=("0", "1"),
        folders=("", "stage_2_train_images"),
        suffix=".dcm",
        accept=("repeated-rows",),
    ),
}
"""NIH ChestX-ray14 (``Data_Entry_2017.csv``), CheXpert (``train.csv``), VinDr-CXR (``image_labels_*.csv``), ISIC 2020
(``train.csv``), HAM10000 (``HAM10000_metadata.csv``), RSNA pneumonia (``stage_2_train_labels.csv``)."""
