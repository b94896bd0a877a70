"""What a coordinator reconstructs of one patient's image, with and without privacy: docs/figures/reconstruction.svg.

    python benchmarks/reconstruction.py [--figure docs/figures/reconstruction.svg]

Chest X-rays, one hospital of 40 patients with one image each, one of whom is attacked. Everything up to the answer is
the product's own: task, learner, agreement, site, noise. The attacker subtracts what the other 39 contribute.
"""

import argparse
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch.func import functional_call

from fedveil.audit.reconstruction import from_linear_gradient, invert_gradient, rank_of, ssim
from fedveil.data import Dataset
from fedveil.federation import Policy, Request, Site
from fedveil.learning.encoders import feature_extractor, scattering
from fedveil.privacy import Budget, Ledger
from fedveil.study import Study
from fedveil.study.calibrate import make_agreement
from fedveil.study.pipeline import NetworkTask, Task, make_task
from fedveil.study.progress import Silent

matplotlib.use("svg")
SIDE, PATIENTS, ATTACKED, ROUNDS = 64, 40, 5, 20
STUDY = """
[study]
name = "reconstruction"
[data]
source = "none"
classes = ["normal", "pneumonia"]
channels = 1
image_size = {side}
[model]
{model}
[training]
rounds = {rounds}
[privacy]
{privacy}
unit = "patient"
evaluation_share = 0.0
[federation]
max_units = 2000
"""
MODELS = {
    "linear head on pixels": 'features = "pixels"\nwhitened = false',
    "linear head on scattering": 'features = "scattering"\nwhitened = false',
    "small network": 'network = "cnn"',
}
LEVELS = {
    "no privacy": 'trust = "none"',
    "epsilon 8": 'trust = "site"\nepsilon = 8.0\ndelta = 1e-3',
    "epsilon 1": 'trust = "site"\nepsilon = 1.0\ndelta = 1e-3',
}


@dataclass(frozen=True)
class Attempt:
    """One reconstruction."""

    image: np.ndarray
    similarity: float
    rank: int


def chest_images() -> tuple[np.ndarray, np.ndarray]:
    """Images (n, side, side) of 0 to 255, and class codes; one image per patient."""
    with np.load(Path(os.environ["FEDVEIL_DATA"]) / "kermany_cxr" / "kermany_cxr_64.npz") as file:
        _, first = np.unique(file["patient"], return_index=True)
        chosen = np.random.default_rng(3).permutation(first)[: 10 * PATIENTS]
        return file["images"][chosen], (file["labels"][chosen] > 0).astype(np.int64)


def observed(task: Task, parameters: np.ndarray) -> np.ndarray:
    """The attacked patient's contribution as the coordinator sees it: averaged over all rounds, others subtracted."""
    agreement = make_agreement(task.study, sites=("north",), model=task.model)
    private = agreement.trust != "none"
    learner = task.learner(np.arange(PATIENTS))
    (release,) = [one for one in agreement.releases if one.name == "training"]
    others = np.array([unit for unit in range(PATIENTS) if unit != ATTACKED])
    known = learner.contribution(parameters, clip_norm=release.mechanism.clip_norm, units=others)
    with tempfile.TemporaryDirectory() as folder:
        budget = Budget(100.0 if private else np.inf, 1e-3)
        with Ledger(Path(folder) / "ledger.jsonl", budget) as ledger:
            trusts = frozenset({agreement.trust})
            site = Site("north", learner, Policy(trusts=trusts), ledger)
            site.admit(agreement)
            seen = [
                site.handle(
                    Request(
                        study=agreement.digest,
                        release="training",
                        round=number,
                        attempt=number,
                        participants=("north",),
                        parameters=parameters,
                    )
                ).vector
                for number in range(1, (ROUNDS if private else 1) + 1)
            ]
    return np.mean(seen, axis=0) - known


def attack(task: Task, images: np.ndarray, mean: np.ndarray, label: int) -> Attempt:
    """Reconstruct the attacked patient's image; a linear head's at the size at which it sees images."""
    model = task.model
    parameters = model.join(None, model.initial())
    seen = observed(task, parameters)
    if isinstance(task, NetworkTask):
        body = task.network.body
        names = [name for name, one in body.named_parameters() if one.requires_grad]
        values = {name: one.detach() for name, one in body.named_parameters()}

        def gradient_of(image: torch.Tensor) -> torch.Tensor:
            trained = {name: values[name].clone().requires_grad_() for name in names}
            logits = functional_call(body, values | trained, (image[None],))
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor([label]))
            found = torch.autograd.grad(loss, list(trained.values()), create_graph=True)
            return torch.cat([one.reshape(-1) for one in found])

        image = invert_gradient(gradient_of, seen, mean[None])[0]
    elif study_features(task) == "pixels":
        images, mean = smaller(images), smaller(mean[None])[0]
        image = from_linear_gradient(seen, mean)
    else:
        image = invert_features(task, seen, mean)
    return Attempt(image, ssim(image, images[ATTACKED]), rank_of(ATTACKED, image - mean, images - mean))


def study_features(task: Task) -> str:
    """Name of the encoder."""
    return task.study.model.features


def invert_features(task: Task, seen: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """An image whose features have the direction of a linear head's gradient, block by block of unit length."""
    for cached in (scattering._wavelets, scattering._averaging):
        cached.cache_clear()  # made where no derivative was needed
    transform, blocks = task.extractor._transform, list(task.extractor.blocks)

    def features_of(image: torch.Tensor) -> torch.Tensor:
        found = transform(image[None])[0].split(blocks)
        return torch.cat([one / one.norm() for one in found])

    with torch.no_grad():
        along = features_of(torch.tensor(mean[None], dtype=torch.float32)).numpy() @ seen
    return invert_gradient(features_of, np.sign(along) * seen, mean[None])[0]


def smaller(images: np.ndarray) -> np.ndarray:
    """Images (n, side, side) at the size of the features "pixels"."""
    extractor = feature_extractor("pixels", image_size=SIDE, channels=1, whitened=False)
    features = extractor(images[:, None].astype(np.float32))
    side = math.isqrt(features.shape[1])
    return features.reshape(-1, side, side).astype(np.float64) + 0.5


def draw(rows: dict[str, dict[str, Attempt]], truth: np.ndarray, path: Path) -> None:
    """The true image, and beside it the reconstructions."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(rows), 1 + len(LEVELS), figsize=(7, 1.9 * len(rows) + 0.3), squeeze=False
    )
    for line, (model, attempts) in zip(axes, rows.items(), strict=True):
        show = partial(_show, model=model)
        show(line[0], truth, "the image")
        for axis, (level, attempt) in zip(line[1:], attempts.items(), strict=True):
            show(axis, attempt.image, f"{level}\nSSIM {attempt.similarity:.2f}, rank {attempt.rank}")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _show(axis, image, title, *, model):
    axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    if title == "the image":
        axis.set_ylabel(model, fontsize=8)


def main() -> None:
    """Print the table, and draw the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pixels, labels = chest_images()
    images = pixels / 255.0
    mean = images[PATIENTS:].mean(axis=0)  # of other patients: public for this purpose
    data = Dataset.from_arrays(
        pixels[:PATIENTS],
        labels[:PATIENTS],
        patients=[f"p{number:02}" for number in range(PATIENTS)],
        classes=("normal", "pneumonia"),
    )
    rows: dict[str, dict[str, Attempt]] = {}
    sys.stdout.write("| model | privacy | SSIM | rank of the true image among 400 |\n|---|---|---|---|\n")
    for name in options.only:
        rows[name] = {}
        for level, privacy in LEVELS.items():
            study = Study.parse(STUDY.format(side=SIDE, model=MODELS[name], privacy=privacy, rounds=ROUNDS))
            found = attack(make_task(study, data, Silent()), images, mean, int(labels[ATTACKED]))
            rows[name][level] = found
            sys.stdout.write(f"| {name} | {level} | {found.similarity:.2f} | {found.rank} |\n")
            sys.stdout.flush()
    if options.figure is not None:
        draw(rows, images[ATTACKED], options.figure)


if __name__ == "__main__":
    main()
