"""A model card of a finished run: what is known of the model, and what a hospital still has to write.

The head is the metadata block of the Hugging Face hub. The sections are those that the FDA's draft guidance on
AI-enabled device software (January 2025, appendix E) asks of a model card. Every statement is taken from the run
directory; what it does not hold is marked and not guessed.
"""

import html
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fedveil.io import write_atomic
from fedveil.report import formatting, tables, wording
from fedveil.report.exports import check_targets
from fedveil.report.records import RunRecord
from fedveil.study import TrainedModel
from fedveil.study.results.schema import ModelMetrics

__all__ = ["UNKNOWN", "model_card", "write_card"]

UNKNOWN = "to be written by the hospital"
_MARKUP = str.maketrans({one: f"\\{one}" for one in "\\`*_{}[]#|~"})


def write_card(record: RunRecord, model: TrainedModel, path: Path) -> Path:
    """Write the card as Markdown; `StudyError` if the file exists."""
    check_targets(path)
    text = model_card(record, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: file.write(text.encode()))
    return path


def model_card(record: RunRecord, model: TrainedModel) -> str:
    """The card as Markdown, with its metadata as YAML between two lines of dashes."""
    template = files("fedveil.report").joinpath("templates", "card.md").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters["plain"] = plain
    stated = dict(record.governance)
    guarantee = record.guarantee
    return environment.from_string(template).render(
        metadata=_metadata(record, model),
        record=record,
        model=model,
        unknown=UNKNOWN,
        stated=lambda label: plain(stated[label]) if label in stated else UNKNOWN,
        guarantee=guarantee and wording.guarantee_line(guarantee, record.secure_aggregation),
        unprotected=[f"{one.title}: {one.text}" for one in wording.not_protected(record)]
        if guarantee
        else (),
        cohort=_cohort(record),
        metrics=_measured(record),
        released=model.frequencies_released,
        by_class=_table(tables.class_table(record)),
        by_group=_table(tables.subgroup_table(record)),
        window=model.window
        if isinstance(model.window, str)
        else f"{model.window[0]:g} wide {model.window[1]:g}",
    )


def plain(text: object) -> str:
    """Text from a study or a data set in Markdown: one line that marks up nothing.

    >>> plain("a|b <i>")
    'a\\\\|b &lt;i&gt;'
    """
    return html.escape(" ".join(str(text).split()), quote=False).translate(_MARKUP)


def _metadata(record: RunRecord, model: TrainedModel) -> str:
    """The hub's metadata block. JSON is YAML, so every value is written as JSON."""
    found = _judged(record)
    values: dict[str, Any] = {
        "library_name": "fedveil",
        "pipeline_tag": "image-classification",
        "tags": ["medical", "federated-learning", "differential-privacy"],
        "license": "other",
        "license_name": UNKNOWN,
        "metrics": ["roc_auc", "accuracy"],
    }
    if found is not None and not math.isnan(found[1].auroc):
        metric = {"type": "roc_auc", "value": round(found[1].auroc, 4), "name": f"AUROC on {found[0]}"}
        dataset = {"name": record.data.name if record.data else "the hospitals' own", "type": "private"}
        task = {"type": "image-classification", "name": f"classification: {', '.join(model.classes)}"}
        values["model-index"] = [
            {"name": record.study, "results": [{"task": task, "dataset": dataset, "metrics": [metric]}]}
        ]
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())


def _judged(record: RunRecord) -> tuple[str, ModelMetrics] | None:
    if record.test is not None:
        return "test images", record.test
    if record.released is not None:
        return "the hospitals' held-out patients, with noise", record.released
    return None


def _cohort(record: RunRecord) -> list[tuple[str, str]]:
    """What is public of the images that the model was trained and tested on."""
    data = record.data
    if data is None:
        return []
    counts = {
        "training images": data.images_train,
        "training patients": data.patients_train,
        "test images": data.images_test,
        "test patients": data.patients_test,
    }
    known = [(words, formatting.count(count)) for words, count in counts.items() if count is not None]
    return [("data", plain(data.name)), *known]


def _measured(record: RunRecord) -> list[tuple[str, str]]:
    found = _judged(record)
    if found is None:
        return []
    where, metrics = found
    pairs = (
        ("AUROC", formatting.score(metrics.auroc), formatting.interval(metrics.auroc_interval)),
        (
            "balanced accuracy",
            formatting.percent(metrics.balanced_accuracy),
            formatting.interval(metrics.balanced_accuracy_interval, as_percent=True),
        ),
    )
    return [
        (f"{name} on {where}", f"{value} ({bounds})" if bounds else value) for name, value, bounds in pairs
    ]


def _table(table: tables.Table | None) -> str:
    if table is None or not table.rows:
        return ""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join(
        f"| {' | '.join(plain(cell) for cell in line)} |".replace("\\---", "---") for line in lines
    )
