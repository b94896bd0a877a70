"""The same images twice: as one file that names hospitals, for a study in one process, and as each hospital's own."""

import json
from pathlib import Path

import numpy as np

from fedveil.data import hospitals, load

POSITIVE = ["bacteria", "virus"]
LUNGS = """
[study]
name = "{name}"
[data]
source = "{source}"
positive = {positive}
[training]
rounds = {rounds}
[privacy]
epsilon = {epsilon}
trust = "{trust}"
[federation]
min_sites = {min_sites}
[report]
examples = 0
""".replace("{positive}", json.dumps(POSITIVE))


def deal_lungs(source: Path, folder: Path, names: tuple[str, ...], patients: int | None = None) -> None:
    """Chest X-rays: each hospital's file, the coordinator's test.npz, and whole.npz; some patients only, if told so."""
    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files if name != "patient_names"}
    dataset = load(str(source), image_size=64, positive=POSITIVE)
    dealt = dict(zip(names, hospitals(dataset, len(names), "dirichlet", 0.5, seed=0), strict=True))
    dealt["test"] = dataset.test
    if patients is not None:
        for name, rows in dealt.items():
            chosen = np.random.default_rng(0).permutation(np.unique(dataset.patients[rows]))[:patients]
            dealt[name] = rows[np.isin(dataset.patients[rows], chosen)]
    for name, rows in dealt.items():
        own = {key: arrays[key][rows] for key in ("images", "labels", "patient", "files")}
        np.savez(folder / f"{name}.npz", classes=arrays["classes"], **own)
    join(folder, names)


def join(folder: Path, names: tuple[str, ...]) -> Path:
    """whole.npz from each hospital's NAME.npz, which is for training, and test.npz."""
    parts = {name: dict(np.load(folder / f"{name}.npz")) for name in (*names, "test")}
    sizes = [len(part["labels"]) for part in parts.values()]
    patients, first = [], 0
    for part in parts.values():
        patients.append(part["patient"] + first)
        first += int(part["patient"].max()) + 1
    np.savez(
        folder / "whole.npz",
        images=np.concatenate([part["images"] for part in parts.values()]),
        labels=np.concatenate([part["labels"] for part in parts.values()]),
        patient=np.concatenate(patients),
        site=np.repeat([*range(len(names)), 0], sizes),
        site_names=np.array(names),
        split=np.repeat([0] * len(names) + [1], sizes),
        classes=parts["test"]["classes"],
    )
    return folder / "whole.npz"
