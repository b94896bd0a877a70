"""A made-up but realistic run directory, written file by file as a run writes it."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedveil.privacy import Mechanism, epsilon
from fedveil.report.figures import curves

Change = Callable[[dict[str, Any]], None]


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _probabilities(rng: np.random.Generator, labels: np.ndarray, classes: int, skill: float) -> np.ndarray:
    logits = rng.normal(size=(len(labels), classes)) * 1.3
    logits[np.arange(len(labels)), labels] += skill
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _metrics(
    labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, classes: list[str]
) -> dict[str, Any]:
    confusion = curves.confusion(labels, predicted, len(classes))
    per_class, aurocs = [], []
    for k, name in enumerate(classes):
        curve = curves.roc(labels == k, probabilities[:, k])
        auroc = float(np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)) if curve else None
        aurocs.append(auroc)
        hit, of, wrong = confusion[k, k], confusion[k].sum(), confusion[:, k].sum() - confusion[k, k]
        per_class.append(
            {
                "name": name,
                "sensitivity": float(hit / max(of, 1)),
                "specificity": float(1 - wrong / max(len(labels) - of, 1)),
                "auroc": auroc,
                "n": int(of),
            }
        )
    balanced = float(np.mean([entry["sensitivity"] for entry in per_class]))
    auroc = float(np.mean([value for value in aurocs if value is not None]))
    onehot = np.eye(len(classes))[labels]
    return {
        "auroc": auroc,
        "auroc_interval": [auroc - 0.017, min(auroc + 0.015, 1.0)],
        "balanced_accuracy": balanced,
        "balanced_accuracy_interval": [balanced - 0.03, min(balanced + 0.03, 1.0)],
        "accuracy": float(np.mean(labels == predicted)),
        "brier": float(np.mean(((probabilities - onehot) ** 2).sum(axis=1)) / 2),
        "n": len(labels),
        "confusion": confusion.tolist(),
        "per_class": per_class,
        "threshold": 0.5 if len(classes) == 2 else None,
        "majority": {
            "accuracy": float(np.bincount(labels).max() / len(labels)),
            "balanced_accuracy": 1 / len(classes),
        },
    }


def write_run(
    path: Path,
    *,
    trust: str = "secure-aggregation",
    classes: tuple[str, ...] = ("normal", "pneumonia"),
    sites: int = 5,
    rounds: int = 60,
    images: int = 624,
    unit: str = "patient",
    change: Change = lambda result: None,
) -> Path:
    """Write a run directory; `change` edits result.json before it is written."""
    rng = np.random.default_rng(7)
    path.mkdir(parents=True)
    (path / "ledgers").mkdir()
    (path / "study.toml").write_text('[study]\nname = "made-up"\n', encoding="utf-8")
    names = list(classes)
    labels = rng.choice(len(names), size=images, p=rng.dirichlet(np.full(len(names), 20.0)))
    probabilities = _probabilities(rng, labels, len(names), 2.7)
    predicted = probabilities.argmax(axis=1)
    _write_predictions(path, names, labels, predicted, probabilities)
    result = _result(
        names, labels, predicted, probabilities, trust=trust, sites=sites, rounds=rounds, unit=unit, rng=rng
    )
    _write_rounds(path, rounds, sites, trust, result["metrics"]["test"], rng)
    change(result)
    _dump(path / "result.json", result)
    for site in range(1, sites + 1):
        _write_ledger(path / "ledgers" / f"site-{site}.jsonl", rounds)
    _dump(
        path / "provenance.json",
        {
            "fedveil": "0.1.0",
            "python": "3.11.7",
            "platform": "Linux x86_64",
            "packages": {
                "torch": "2.9.1",
                "numpy": "2.3.5",
                "scipy": "1.16.3",
                "dp-accounting": "0.6.0",
                "opacus": "1.5.4",
            },
            "data_digest": hashlib.sha256(b"data").hexdigest(),
            "device": "cpu, 2 threads",
            "started": "2026-11-23T20:14:03+00:00",
            "finished": "2026-11-23T20:14:17+00:00",
            "study_digest": hashlib.sha256(b"study").hexdigest(),
        },
    )
    _write_examples(path, names, labels, predicted, probabilities, rng)
    return path


def _write_predictions(path: Path, names: list[str], labels: Any, predicted: Any, probabilities: Any) -> None:
    import csv

    with (path / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "label", "predicted", *(f"prob:{name}" for name in names)])
        for index, (label, guess, row) in enumerate(zip(labels, predicted, probabilities, strict=True)):
            writer.writerow(
                [f"test/{index:04d}.jpeg", f"person{index // 2}", names[label], names[guess], *row.tolist()]
            )


def _result(
    names: list[str],
    labels: Any,
    predicted: Any,
    probabilities: Any,
    *,
    trust: str,
    sites: int,
    rounds: int,
    unit: str,
    rng: Any,
) -> dict[str, Any]:
    private = trust != "none"
    noise = 29.3
    counts = Mechanism(noise_multiplier=180.0, clip_norm=1.0, steps=1, unit=unit)
    training = Mechanism(noise_multiplier=noise, clip_norm=1.0, steps=rounds, unit=unit)
    honest = math.ceil(2 * sites / 3)
    spent = epsilon([counts, training], 1e-5)
    share = 1 / math.sqrt(honest) if trust == "secure-aggregation" else 1.0
    alone = [
        Mechanism(noise_multiplier=m.noise_multiplier * share, clip_norm=1.0, steps=m.steps, unit=unit)
        for m in (counts, training)
    ]
    test = _metrics(labels, predicted, probabilities, names)
    better = {
        **test,
        "auroc": test["auroc"] + 0.009,
        "auroc_interval": [test["auroc"] - 0.006, test["auroc"] + 0.02],
        "balanced_accuracy": test["balanced_accuracy"] + 0.02,
        "brier": test["brier"] - 0.01,
    }
    sizes = rng.dirichlet(np.full(len(names), 0.7), size=sites)
    return {
        "study": "pneumonia at five hospitals",
        "description": "Normal against pneumonia on paediatric chest X-rays, at five simulated hospitals.",
        "guarantee": {
            "epsilon": spent if private else None,
            "delta": 1e-5,
            "unit": unit,
            "adjacency": "add-or-remove-one",
            "trust": trust,
        },
        "mechanism": training.to_dict() if private else None,
        "releases": [
            {"what": "class counts", "mechanism": counts.to_dict()},
            {"what": "training", "mechanism": training.to_dict()},
        ]
        if private
        else [],
        "secure_aggregation": {"masks": "simulated", "min_honest": honest, "participants": sites}
        if trust == "secure-aggregation"
        else None,
        "sites": [
            {
                "name": f"site-{site + 1}",
                "patients": int(sizes[site].sum() * 300 + 40 * site),
                "images": int(sizes[site].sum() * 560 + 71 * site),
                "class_counts": {
                    name: int(share * (560 + 71 * site))
                    for name, share in zip(names, sizes[site], strict=True)
                },
                "epsilon_spent": spent if private else None,
                "epsilon_alone": epsilon(alone, 1e-5) if trust in ("site", "secure-aggregation") else None,
            }
            for site in range(sites)
        ],
        "metrics": {"test": test},
        "baselines": {"no_privacy": better},
        "data": {
            "name": "kermany_cxr_64",
            "synthetic": False,
            "patients_known": True,
            "images_train": 5216,
            "images_test": len(labels),
            "patients_train": 2846,
            "patients_test": 427,
            "classes": names,
            "description": "5,840 paediatric chest X-rays, resized to 64 pixels.",
        },
        "notes": ["Features: efficientnet-lite0, frozen, trained on public images."],
        "seconds": {"data": 0.41, "features": 13.0, "training": 0.62, "evaluation": 0.13, "total": 14.2},
    }


def _write_rounds(path: Path, rounds: int, sites: int, trust: str, test: dict[str, Any], rng: Any) -> None:
    names = [f"site-{site + 1}" for site in range(sites)]
    with (path / "rounds.jsonl").open("w", encoding="utf-8") as file:
        for number in range(1, rounds + 1):
            rise = 1 - math.exp(-number / 9)
            dropped = (
                [{"site": names[3], "reason": "no answer within 30 s"}]
                if number in (17, 41) and sites > 3
                else []
            )
            spent = epsilon([Mechanism(180.0, 1.0, steps=1), Mechanism(29.3, 1.0, steps=number)], 1e-5)
            record = {
                "round": number,
                "sites": [name for name in names if not any(drop["site"] == name for drop in dropped)],
                "dropped": dropped,
                "epsilon_spent": spent if trust != "none" else None,
                "seconds": 0.011,
                "update_norm": 0.8,
                "test": {
                    "auroc": 0.5 + (test["auroc"] - 0.5) * rise + float(rng.normal()) * 0.006 * (1.2 - rise),
                    "balanced_accuracy": 0.5
                    + (test["balanced_accuracy"] - 0.5) * rise**1.6
                    + float(rng.normal()) * 0.008,
                },
            }
            file.write(json.dumps(record) + "\n")


def _write_ledger(path: Path, entries: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for seq in range(entries + 2):
            file.write(
                json.dumps({"seq": seq, "hash": hashlib.sha256(f"{path.stem}{seq}".encode()).hexdigest()})
                + "\n"
            )


def _write_examples(
    path: Path, names: list[str], labels: Any, predicted: Any, probabilities: Any, rng: Any, count: int = 8
) -> None:
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    images = []
    for _ in range(count):
        lungs = sum(np.exp(-(((x - side) / 0.3) ** 2 + (y / 0.62) ** 2) * 2) for side in (-0.42, 0.42))
        body = np.clip(1.15 - x**2, 0, 1) * 0.75
        spots = 0.25 * np.exp(
            -(((x - rng.uniform(-0.5, 0.5)) / 0.18) ** 2 + ((y - rng.uniform(-0.4, 0.4)) / 0.2) ** 2)
        )
        picture = body - 0.55 * lungs + spots + rng.normal(size=x.shape) * 0.02
        images.append((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    wrong, right = np.flatnonzero(labels != predicted)[:2], np.flatnonzero(labels == predicted)[: count - 2]
    shown = np.concatenate([right, wrong])
    np.savez(
        path / "examples.npz",
        images=np.stack(images)[: len(shown)],
        names=np.array([f"test/{index:04d}.jpeg" for index in shown]),
        labels=np.array([names[k] for k in labels[shown]]),
        predicted=np.array([names[k] for k in predicted[shown]]),
        probability=probabilities[shown].max(axis=1),
    )


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a new run directory of the given shape and returns its path."""
    return lambda **knobs: write_run(tmp_path_factory.mktemp("study") / "run", **knobs)
