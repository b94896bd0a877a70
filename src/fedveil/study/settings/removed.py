"""Keys that study files had in earlier versions, and why they were removed."""

from collections.abc import Mapping
from typing import Any

from fedveil.errors import StudyError

__all__ = ["without_removed"]

REMOVED: Mapping[tuple[str, str], tuple[object, str]] = {
    ("privacy", "spending"): (1.0, "uneven spending over rounds did not change accuracy"),
    ("privacy", "progress_share"): (0.0, "checks of progress cost up to 0.002 of AUROC and gained nothing"),
    ("training", "second_order"): (False, "second moments gained nothing over more rounds"),
}
"""For each removed key, the value that matches current behaviour, and the reason."""


def without_removed(values: Any, where: str) -> Any:
    """The tables of a study file without removed keys whose value matches current behaviour.

    Versions that had these keys wrote all of them into the study file of every run.

    Raises:
        StudyError: a removed key has a value that is no longer supported.
    """
    kept = dict(values)
    for (table, key), (harmless, why) in REMOVED.items():
        keys = kept.get(table)
        if not isinstance(keys, Mapping) or key not in keys:
            continue
        if isinstance(keys[key], str) or keys[key] != harmless:
            raise StudyError(
                f"{where}: {table}.{key} is {keys[key]!r}"[:200],
                f"this setting was removed: as measured, {why}",
                "remove the key from the study file",
            )
        kept[table] = {name: value for name, value in keys.items() if name != key}
    return kept
