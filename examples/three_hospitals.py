"""Three hospitals on one machine: each has its own patients and ledger, and none sees another's sum.

Between real hospitals, start the same study with `fedveil coordinate`; see docs/deployment.md.
"""

import math

import fedveil as fv
from fedveil.data import load
from fedveil.privacy import verify_ledger

phantom = load("phantom:3", image_size=32)  # synthetic images of three named hospitals
images = phantom.images.read(range(len(phantom)))[:, 0]
labels = [phantom.classes[code] for code in phantom.labels]
patients = [phantom.patient_names[code] for code in phantom.patients]
sites = [phantom.site_names[code] for code in phantom.sites]
study = fv.Study(name="three hospitals", epsilon=2.0, features="pixels", sites=3)

data = fv.Dataset.from_arrays(images, labels, patients=patients, sites=sites, split=phantom.split)
run = fv.run(study, data, directory="three")
print(run.guarantee)
for site in run.record.sites:
    state = verify_ledger(run.directory / "ledgers" / f"{site.name}.jsonl")
    print(f"{site.name}: {site.patients} patients, {len(state.charges)} charges, epsilon {state.spent():.3f}")

# How does accuracy depend on the trust? This sweep deals the same images out to simulated hospitals, so it charges
# none of the three.
public = fv.Dataset.from_arrays(images, labels, patients=patients)
for one in fv.sweep(study, public, epsilon=[2.0, math.inf], trust=["site", "server"]):
    setting = one.setting
    print(f"epsilon {setting.epsilon:g}, trust {setting.trust}: AUROC {one.auroc:.3f}")
