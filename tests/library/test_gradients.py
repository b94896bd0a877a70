"""Private steps in one's own loop: what is sampled, noised and charged is what the mechanism says."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import fedveil as fv
from fedveil.learning.models.network import ROUNDING
from fedveil.library import gradients
from fedveil.privacy import verify_ledger

LOSS = partial(functional.cross_entropy, reduction="none")


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def images(count=60):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 4, 4, generator=generator), torch.arange(count) % 2


@pytest.fixture
def ledger(tmp_path):
    with fv.Ledger(tmp_path / "ledger.jsonl", fv.Budget(8.0, 1e-4)) as one:
        yield one


def mechanism(steps=4, rate=0.5, noise=2.0, unit="patient"):
    return fv.Mechanism(noise, 1.0, steps, rate, unit)


PATIENTS = np.arange(60) // 3


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_steps_of_a_loop_are_charged_as_they_are_executed(ledger):
    """A step that was begun is charged before its images are read, and one that was not is not."""
    read = []

    class Watched(TensorDataset):
        def __getitem__(self, index):
            read.append(len(ledger.state.charges))
            return super().__getitem__(index)

    model = tiny()
    sums = fv.PrivateGradients(model, LOSS, clip_norm=1.0)
    steps = fv.private_steps(
        sums, Watched(*images()), mechanism(), ledger, units=20, patients=PATIENTS, study="cnn"
    )
    read.clear()  # the shape of one image is looked at first
    assert not ledger.state.charges
    assert [step.number for _, step in zip(range(2), steps, strict=False)] == [1, 2]
    charges = verify_ledger(ledger.path).charges
    assert [(one.study, one.round, one.mechanism.steps, one.trust) for one in charges] == [
        ("cnn", 1, 1, "site"),
        ("cnn", 2, 1, "site"),
    ]
    assert set(read) == {1, 2}
    assert ledger.spent() == pytest.approx(fv.epsilon([mechanism(steps=2)], 1e-4, adaptive=True))


def test_steps_of_a_loop_sample_patients_as_accounted(ledger, monkeypatch):
    """Each patient comes with all images or none, by itself, at the mechanism's rate, whatever the batch."""
    seen, summed = [], fv.PrivateGradients.sum

    def watched(self, images, labels, units, weights=None):
        if weights is not None:  # the trial before the first step has none
            seen.append(
                [unit for unit, weight in zip(units.tolist(), weights.tolist(), strict=True) if weight]
            )
        return summed(self, images, labels, units, weights)

    monkeypatch.setattr(fv.PrivateGradients, "sum", watched)
    sums = fv.PrivateGradients(tiny(), LOSS, clip_norm=1.0)
    steps = 400
    chosen = mechanism(steps=steps, rate=0.1, noise=40.0)
    for _ in fv.private_steps(sums, images(), chosen, ledger, units=20, patients=PATIENTS):
        pass
    assert all(sample.count(unit) == 3 for sample in seen for unit in set(sample))
    sizes = np.array([len(set(sample)) for sample in seen] + [0] * (steps - len(seen)))
    assert abs(sizes.mean() - 2.0) < 5 * np.sqrt(20 * 0.1 * 0.9 / steps)
    assert abs(sizes.var() - 1.8) < 0.9  # binomial; shuffled batches of one size have none
    drawn = np.bincount([unit for sample in seen for unit in set(sample)], minlength=20)
    assert (abs(drawn - 0.1 * steps) < 5 * np.sqrt(0.09 * steps)).all()


def test_without_noise_the_gradient_is_the_engines_over_the_public_number(tmp_path):
    model = tiny()
    sums = fv.PrivateGradients(model, LOSS, clip_norm=1.0)
    exact = sums.sum(*images(), torch.from_numpy(PATIENTS)).vector
    with fv.Ledger(tmp_path / "open.jsonl", fv.Budget(float("inf"), 1e-4)) as ledger:
        quiet = mechanism(steps=1, rate=1.0, noise=1e-9)
        next(iter(fv.private_steps(sums, images(), quiet, ledger, units=25, patients=PATIENTS)))
    assert torch.allclose(gradient_of(model), exact / 25, atol=1e-6)


def test_noise_has_the_mechanisms_size_and_is_not_reproducible(tmp_path):
    """In all coordinates, a little larger by what rounding may lose; torch's seed does not repeat it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 500))
    sums = fv.PrivateGradients(model, LOSS, clip_norm=1.0)
    exact = sums.sum(*images(), torch.from_numpy(PATIENTS)).vector.double()
    noise = []
    loud = mechanism(steps=2, rate=1.0, noise=3.0)
    for name in ("first", "second"):
        torch.manual_seed(0)
        np.random.seed(0)
        with fv.Ledger(tmp_path / f"{name}.jsonl", fv.Budget(8.0, 1e-4)) as ledger:
            for _ in fv.private_steps(sums, images(), loud, ledger, units=20, patients=PATIENTS):
                noise.append(gradient_of(model).double() * 20 - exact)
    for one in noise:
        assert float(one.std()) == pytest.approx(3.0 * (1 + ROUNDING), rel=0.05)
        assert abs(float(one.mean())) < 5 * 3.0 / np.sqrt(len(one))
    correlated = torch.corrcoef(torch.stack(noise)) - torch.eye(len(noise))
    assert float(correlated.abs().max()) < 0.06


def test_a_patients_bound_is_that_of_the_mechanism(tmp_path, monkeypatch):
    """Noise apart, a patient with huge images moves the gradient by no more than the clip norm over the number."""
    monkeypatch.setattr(gradients, "release", lambda total, std, generator: total)
    model, found = tiny(), []
    x, y = images()
    x[PATIENTS == 0] *= 1e4
    sums = fv.PrivateGradients(model, LOSS, clip_norm=1.0)
    with fv.Ledger(tmp_path / "open.jsonl", fv.Budget(8.0, 1e-4)) as ledger:
        for rows in (slice(0, 60), slice(3, 60)):
            whole = mechanism(steps=1, rate=1.0)
            data = (x[rows], y[rows])
            next(iter(fv.private_steps(sums, data, whole, ledger, units=20, patients=PATIENTS[rows])))
            found.append(gradient_of(model) * 20)
    assert 0.9 < float((found[0] - found[1]).norm()) <= 1 + ROUNDING


@pytest.mark.parametrize("micro_batch", [32, None])
def test_rounding_does_not_grow_with_the_cohort(tmp_path, monkeypatch, micro_batch):
    """One of many units is left out of a sum of equal gradients, the worst case: each sum rounds to its own size."""
    monkeypatch.setattr(gradients, "release", lambda total, std, generator: found.append(total) or total)
    batches: list[set[bytes]] = []
    summed = fv.PrivateGradients.sum

    def watched(self, images, *rest):
        assert len(images) <= 256
        batches[-1].add(images.numpy().tobytes())
        return summed(self, images, *rest)

    monkeypatch.setattr(fv.PrivateGradients, "sum", watched)
    found: list[np.ndarray] = []
    count, model = 20_000, tiny()
    generator = torch.Generator().manual_seed(0)
    x, y = 0.9 + 0.2 * torch.rand(count, 1, 4, 4, generator=generator), torch.zeros(count, dtype=torch.int64)
    sums = fv.PrivateGradients(model, LOSS, clip_norm=1e-3, micro_batch=micro_batch)
    with fv.Ledger(tmp_path / "open.jsonl", fv.Budget(8.0, 1e-6, "image")) as ledger:
        for rows in (slice(0, count), slice(1, count), slice(0, 1)):
            batches.append(set())
            whole = fv.Mechanism(2.0, 1e-3, 1, 1.0, "image")
            next(iter(fv.private_steps(sums, (x[rows], y[rows]), whole, ledger, units=count)))
    everyone, less, one = found
    assert np.linalg.norm(everyone - less - one) / 1e-3 <= ROUNDING / 10
    assert len(batches[0] - batches[1]) <= len(batches[0]) / 10, "batches of other runs changed"


def test_an_empty_sample_is_noise_alone(ledger):
    model = tiny()
    sums = fv.PrivateGradients(model, LOSS, clip_norm=1.0)
    rare = mechanism(steps=3, rate=1e-9)
    for _ in fv.private_steps(sums, images(), rare, ledger, units=20, patients=PATIENTS):
        assert gradient_of(model).norm() > 0


def test_a_budget_that_does_not_cover_all_steps_covers_none(ledger):
    sums = fv.PrivateGradients(tiny(), LOSS, clip_norm=1.0)
    with pytest.raises(fv.BudgetExceeded):
        fv.private_steps(sums, images(), mechanism(steps=5000, rate=1.0), ledger, units=20, patients=PATIENTS)
    assert not ledger.state.charges


def test_images_may_be_the_unit(ledger):
    sums = fv.PrivateGradients(tiny(), LOSS, clip_norm=1.0)
    with fv.Ledger(ledger.path.with_name("images.jsonl"), fv.Budget(8.0, 1e-4, "image")) as own:
        chosen = mechanism(steps=1, unit="image")
        assert len(list(fv.private_steps(sums, images(), chosen, own, units=60))) == 1


class Mixes(nn.Module):
    """Subtracts the batch's mean: one patient's gradient depends on the others'."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 2)

    def forward(self, x):
        x = x.flatten(1)
        return self.layer(x - x.mean(dim=0))


class MixesMany(Mixes):
    """Mixes only batches that divide by 32."""

    def forward(self, x):
        return super().forward(x) if len(x) % 32 == 0 else self.layer(x.flatten(1))


def relative(outputs, labels):
    """A loss that weighs each image by the batch's largest."""
    losses = LOSS(outputs, labels)
    return losses * losses.max().detach()


def balanced(outputs, labels):
    """A loss that weighs each image by how rare its class is in the batch."""
    found = labels.numpy()
    classes = np.unique(found)
    weights = torch.ones(2)
    weights[classes] = torch.from_numpy(compute_class_weight("balanced", classes=classes, y=found)).float()
    return functional.cross_entropy(outputs, labels, weights, reduction="none")


def ranked(outputs, labels):
    """A surrogate of the area under the ROC curve: each image against all of the other class."""
    scores, signs = outputs[:, 1] - outputs[:, 0], 2 * labels - 1
    other = (signs[:, None] != signs).float()
    pairs = functional.softplus(-signs[:, None] * (scores[:, None] - scores)) * other
    return pairs.sum(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patients": None}, "patients were not given"),
        ({"patients": PATIENTS[1:]}, "60 images"),
        ({"units": 0}, "units is 0"),
        ({"units": 10**6}, "delta is 0.0001 for 1000000 units"),
        ({"mechanism": fv.Mechanism(2.0, 0.5, 1, 0.5)}, "clip norm is 0.5"),
        ({"mechanism": fv.Mechanism(2.0, 1.0, 1, 0.5, "site")}, "protects a whole site"),
        ({"data": (images()[0], images()[1][1:])}, "60 images and 59 labels"),
        ({"data": 3}, "data is a int"),
        ({"data": (images(0)[0], images(0)[1]), "patients": PATIENTS[:0]}, "there are no images"),
        ({"sums": fv.PrivateGradients(Mixes(), LOSS, clip_norm=1.0)}, "other patients are in the batch"),
        ({"sums": fv.PrivateGradients(MixesMany(), LOSS, clip_norm=1.0)}, "other patients are in the batch"),
        ({"sums": fv.PrivateGradients(tiny(), relative, clip_norm=1.0)}, "other images in the batch"),
        ({"sums": fv.PrivateGradients(tiny(), balanced, clip_norm=1.0)}, "other images in the batch"),
        ({"sums": fv.PrivateGradients(tiny(), ranked, clip_norm=1.0)}, "other images in the batch"),
        (
            {"sums": fv.PrivateGradients(tiny(), functional.cross_entropy, clip_norm=1.0)},
            "one loss per image",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_charged(ledger, change, words):
    given = {
        "sums": fv.PrivateGradients(tiny(), LOSS, clip_norm=1.0),
        "data": images(),
        "mechanism": mechanism(),
        "ledger": ledger,
        "units": 20,
        "patients": PATIENTS,
    } | change
    with pytest.raises(fv.InvalidValue, match=words):
        fv.private_steps(**given)
    assert not ledger.state.charges


def test_no_image_is_read_for_the_trial_of_a_loss(ledger):
    """Only its shape and type: a loss sees no private pixel or label before it is charged."""
    seen = []

    def watched(outputs, labels):
        seen.append((len(ledger.state.charges), set(labels.tolist())))
        return LOSS(outputs, labels - 5 * (labels >= 5))

    x, y = images()
    sums = fv.PrivateGradients(tiny(), watched, clip_norm=1.0)
    steps = fv.private_steps(sums, (x, y + 5), mechanism(rate=1.0), ledger, units=20, patients=PATIENTS)
    assert seen
    assert set().union(*(labels for _, labels in seen)) <= {0, 1}
    seen.clear()
    next(steps)
    assert {charges for charges, _ in seen} == {1}
    assert {5, 6} <= set().union(*(labels for _, labels in seen))
