"""Train a network of your own in your own loop, under a budget per patient.

As with Opacus, you keep model, optimiser and loop. `private_steps` charges a ledger, draws each patient independently,
bounds each patient's gradient and adds the noise. What is sampled and noised is what is accounted.
"""

import torch
from torch import nn

import fedveil as fv
from fedveil.data import load

STEPS, RATE, PATIENTS = 80, 0.3, 800  # a public, approximate number of patients, not a count

scans = load("phantom", image_size=32)  # synthetic; replace it by your own reader
images, labels = torch.from_numpy(scans.images.read(scans.train)), torch.from_numpy(scans.labels[scans.train])
patients = scans.patients[scans.train]

model = nn.Sequential(
    *(nn.Conv2d(1, 16, 5, stride=2), nn.GroupNorm(4, 16), nn.ReLU()),
    *(nn.Conv2d(16, 32, 3, stride=2), nn.GroupNorm(4, 32), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 2)),
)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)

guarantee = fv.Guarantee(epsilon=3.0, delta=1e-5, unit="patient", trust="site")
mechanism = fv.calibrate(guarantee, steps=STEPS, sampling_rate=RATE)
sums = fv.PrivateGradients(model, nn.CrossEntropyLoss(reduction="none"), clip_norm=1.0)

with fv.Ledger("ledger.jsonl", fv.Budget(epsilon=3.0, delta=1e-5)) as ledger:
    for _ in fv.private_steps(sums, (images, labels), mechanism, ledger, units=PATIENTS, patients=patients):
        optimizer.step()
    print(f"epsilon {ledger.spent():.3f} of {ledger.budget.epsilon:g} is spent")

with torch.inference_mode():
    found = model(torch.from_numpy(scans.images.read(scans.test))).argmax(dim=1).numpy()
print(f"accuracy on other patients: {(found == scans.labels[scans.test]).mean():.2f}")
