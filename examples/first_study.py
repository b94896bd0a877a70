"""A first study: five simulated hospitals, synthetic images, epsilon 1 per patient in total."""

import fedveil as fv

study = fv.Study(epsilon=1.0, image_size=32)

print(fv.plan(study).guarantee)  # the cost, before anything runs

run = fv.run(study, directory="first")
print(f"AUROC {run.metrics.auroc:.3f} at epsilon {run.guarantee.epsilon:.3f} per {run.guarantee.unit}")
print(f"report: {run.directory / 'report.html'}")
