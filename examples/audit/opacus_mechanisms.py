"""Opacus' training loop, as a mechanism: a list of labelled rows to the trained weights."""

import logging
import warnings

import numpy as np
import torch
from opacus import PrivacyEngine
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
torch.set_num_threads(1)
WIDTH, OTHERS, BATCH = 4, 5, 3  # two steps with samples at rate 1/2, of five rows and of six


def _trained(rows, reduction, stated=None):
    rows = np.asarray(rows, dtype=np.float32)
    data = TensorDataset(torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, -1:]))
    model = torch.nn.Linear(WIDTH, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    engine = PrivacyEngine(accountant="rdp")
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(data, batch_size=BATCH),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=True,
        loss_reduction=reduction,
    )
    loss = torch.nn.MSELoss(reduction=reduction)
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()
    if stated is not None:
        stated.append(engine.get_epsilon(1e-5))
    return next(model.parameters()).detach().numpy().copy()


def trained(rows):
    """One epoch of private gradient descent with Poisson samples; gradients are summed."""
    return _trained(rows, "sum")


def trained_by_mean(rows):
    """The same with the default reduction: sums are divided by the number of rows times the sampling rate."""
    return _trained(rows, "mean")


def epsilon():
    """What the engine's accountant states for them."""
    stated = []
    _trained(cohorts()[0][2], "sum", stated)
    return stated[0]


def cohorts():
    """One row more or less: a gradient far beyond the clip norm, along the others or against them."""
    row = np.array([100.0, 0, 0, 0, 1e5])  # every step pulls the first weight upwards
    others = [np.array([0.0, 1, 0, 0, 1]) for _ in range(OTHERS)]
    alike = [row.copy() for _ in range(OTHERS)]
    return [
        ("one row more, others in another direction", others, [*others, row]),
        ("one row more, like the others", alike, [*alike, row]),
    ]


if __name__ == "__main__":
    print(epsilon())
