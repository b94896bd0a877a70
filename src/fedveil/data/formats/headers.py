"""Which column of a table means what; a table of other people's is answered with the lines that would read it."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedveil.data.annotations.presets import PRESETS
from fedveil.data.formats.tables import Sheet, names_of
from fedveil.data.options import COLUMNS, Options
from fedveil.errors import DataError

__all__ = ["Header", "read_header"]

OPTIONAL = COLUMNS[2:]
USUAL = {
    "path": ("image index", "image", "file", "image id", "name", "dicom", "dcm", "jpg", "png"),
    "label": ("finding labels", "labels", "finding", "diagnosis", "dx", "class", "target"),
    "patient": ("patient id", "patientid", "patient", "subject"),
    "site": ("hospital", "centre", "center", "institution"),
    "split": (),
}
"""Common names, or beginnings of names, of a column in other tables."""
USUAL_ATTRIBUTES = {"age": ("patient age", "age"), "sex": ("patient gender", "patient sex", "sex", "gender")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Positions of the columns that are used; ``marks`` are those of ``findings``, one 0/1 column each.

    ``in_path`` finds the patient in the path where no column names one.
    """

    path: int
    label: int | None = None
    findings: tuple[str, ...] = ()
    marks: tuple[int, ...] = ()
    patient: int | None = None
    site: int | None = None
    split: int | None = None
    attributes: Mapping[str, int]
    in_path: re.Pattern[str] | None = None

    @property
    def filled(self) -> dict[str, int]:
        """Columns that need a value in every row."""
        columns = {"path": self.path, "patient": self.patient, "site": self.site, "split": self.split}
        return {name: position for name, position in columns.items() if position is not None}

    @property
    def names_patients(self) -> bool:
        """Whether rows name patients, in a column or in the path."""
        return self.patient is not None or self.in_path is not None


def read_header(sheet: Sheet, options: Options, notes: list[str], *, only_paths: bool = False) -> Header:
    """The columns by their names in ``options``, or else by the default names; unused ones are noted."""
    wanted = COLUMNS[:1] if only_paths else COLUMNS
    findings = () if only_paths else options.label_columns
    asked = {
        name: str(options.columns.get(name) or name) for name in wanted if not (name == "label" and findings)
    }
    attributes = {} if only_paths else _attributes(sheet, options)
    names = names_of(sheet.header[1])
    place = sheet.place(sheet.header[0])
    for called in (*asked.values(), *findings, *attributes.values()):
        if names.count(names_of([called])[0]) > 1:
            raise DataError(
                f"{place}: the column {called.lower()} occurs twice", "column names must differ", "rename one"
            )
    _check_mapped(place, names, [*asked.items(), *(("label", one) for one in findings), *attributes.items()])
    missing = [name for name in COLUMNS[:2] if name in asked and names_of([asked[name]])[0] not in names]
    if missing:
        guess = guessed_columns(sheet.header[1], wanted)
        raise DataError(
            f"{place}: the columns are {', '.join(names) or 'none'}",
            f"a manifest needs {' and '.join(missing)}",
            guess
            or "name them in the first line: path,label and optionally patient,site,split; findings in columns of "
            'their own are listed: [data.columns] label = ["Mass", "Effusion"]',
        )
    used = {names_of([called])[0] for called in (*asked.values(), *findings, *attributes.values())}
    extra = [name for name in names if name and name not in used]
    _check_misspelt(place, sheet.header[1], extra, {name: names_of([asked[name]])[0] for name in asked})
    notes += [f"the column {name} is not used" for name in extra]
    at = {
        name: names.index(names_of([called])[0])
        for name, called in asked.items()
        if names_of([called])[0] in names
    }
    pattern = options.table.patient_in_path
    return Header(
        path=at["path"],
        label=at.get("label"),
        findings=findings,
        marks=tuple(names.index(names_of([one])[0]) for one in findings),
        patient=at.get("patient"),
        site=at.get("site"),
        split=at.get("split"),
        attributes={name: names.index(names_of([called])[0]) for name, called in attributes.items()},
        in_path=re.compile(pattern) if pattern and not only_paths and "patient" not in at else None,
    )


def _attributes(sheet: Sheet, options: Options) -> dict[str, str]:
    """The columns to carry along; those of a preset only if this version of the table has them."""
    names = names_of(sheet.header[1])
    own = options.table.attributes
    return {
        name: called
        for name, called in options.attributes.items()
        if own.get(name) != called or names_of([called])[0] in names
    }


def _check_mapped(place: str, names: Sequence[str], asked: Iterable[tuple[str, str]]) -> None:
    for name, called in asked:
        if called != name and names_of([called])[0] not in names:
            raise DataError(
                f"{place}: there is no column {called}, which data.columns names as {name}",
                f"the columns are {', '.join(names) or 'none'}",
                "correct data.columns",
            )


def _check_misspelt(
    place: str, header: Sequence[str], extra: Sequence[str], wanted: Mapping[str, str]
) -> None:
    """A misspelt patient column would silently make every image a patient, and weaken the guarantee."""
    names = names_of(header)
    for name in extra:
        meant = [
            column
            for column in OPTIONAL
            if column in wanted and wanted[column] not in names and _resembles(name, column)
        ]
        if meant:
            raise DataError(
                f"{place}: the column {name} is unknown",
                f"it looks like {meant[0]}, which would then count as missing",
                f'set {meant[0]} = "{header[names.index(name)]}" in [data.columns], or rename it otherwise',
            )


def _resembles(name: str, column: str) -> bool:
    return column in name or bool(difflib.get_close_matches(name, [column], cutoff=0.75))


def guessed_columns(header: Sequence[str], wanted: Sequence[str] = COLUMNS) -> str:
    """The lines that would read a foreign table, if its names are known; paths and labels are needed.

    >>> guessed_columns(["image", "Diagnosis", "Patient Number", "Age"])
    'map its columns: [data.columns] path = "image", label = "Diagnosis", patient = "Patient Number", \
attributes = { age = "Age" }'
    >>> guessed_columns(["Image Index", "Finding Labels", "Patient ID"])
    'set data.preset = "nih-cxr14", or map its columns: [data.columns] path = "Image Index", label = "Finding Labels", \
patient = "Patient ID"'
    """
    plain = {name: _plain(name) for name in header}
    found: dict[str, str] = {}
    for meaning in wanted:
        alike = _first(plain, (meaning,), found, exact=True) or _first(plain, USUAL[meaning], found)
        if alike:
            found[meaning] = alike
    preset = _preset(header) if "label" in wanted else None
    several = [name for name, text in plain.items() if text in FINDINGS and name not in found.values()]
    lines = [f'{meaning} = "{name}"' for meaning, name in found.items() if meaning != name]
    if "label" in wanted and "label" not in found and len(several) > 1:
        named = ", ".join(f'"{name}"' for name in several)
        lines.append(f"label = [{named}]")
    elif not {"path", "label"} & set(wanted) <= found.keys():
        return f'set data.preset = "{preset}"' if preset else ""
    people = {name: _first(plain, usual, found) for name, usual in USUAL_ATTRIBUTES.items()}
    carried = ", ".join(f'{name} = "{called}"' for name, called in people.items() if called)
    if "label" in wanted and carried:
        lines.append(f"attributes = {{ {carried} }}")
    mapped = f"map its columns: [data.columns] {', '.join(lines)}" if "path" in found else ""
    if preset:
        return f'set data.preset = "{preset}"' + (f", or {mapped}" if mapped else "")
    return mapped


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).casefold().replace("filename", "file")


FINDINGS = {
    _plain(one)
    for preset in PRESETS.values()
    if preset.task == "findings"
    for one in (preset.classes or preset.columns["label"])
}
"""Names of findings in well-known sets."""


def _first(
    plain: Mapping[str, str], usual: Sequence[str], taken: Mapping[str, str], *, exact: bool = False
) -> str | None:
    for start in usual:
        for name, text in plain.items():
            fits = text == start if exact else text.startswith(start)
            if fits and name not in taken.values():
                return name
    return None


def _preset(header: Sequence[str]) -> str | None:
    """The preset all of whose columns the table has."""
    names = set(names_of(header))
    for name, preset in PRESETS.items():
        columns = [
            one for named in preset.columns.values() for one in ([named] if isinstance(named, str) else named)
        ]
        if set(names_of(columns)) <= names:
            return name
    return None
