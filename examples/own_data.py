"""A study of images that are already in memory, and predictions for new ones.

Always name the patients: without them every image counts as a patient of its own, and the guarantee covers one image.
"""

import fedveil as fv
from fedveil.data import load

phantom = load("phantom", image_size=32)  # replace it by your own reader
everything = phantom.images.read(range(len(phantom)))
images = everything[:, 0]  # (n, height, width); floats in [0, 1], or uint8
labels = [phantom.classes[code] for code in phantom.labels]
patients = [phantom.patient_names[code] for code in phantom.patients]

data = fv.Dataset.from_arrays(images, labels, patients=patients, name="my scans")
print(data)

run = fv.run(fv.Study(epsilon=1.0, image_size=32), data)
print(run.guarantee)
print(f"AUROC {run.metrics.auroc:.3f}, on {run.metrics.n} images of patients who were not trained on")
print(run.model.predict(images[:5]))

# Embeddings from your own encoder, in place of images; here, coarse pixels.
embeddings = images.reshape(len(images), 8, 4, 8, 4).mean(axis=(2, 4)).reshape(len(images), -1) - 0.5
run = fv.run(fv.Study(epsilon=1.0), fv.Dataset.from_features(embeddings, labels, patients=patients))
print(f"AUROC {run.metrics.auroc:.3f} from embeddings alone")

# The same as a scikit-learn estimator, which adds all noise in this process.
classifier = fv.PrivateLinearClassifier(epsilon=1.0).fit(embeddings, labels, groups=patients)
print(classifier.guarantee_)
