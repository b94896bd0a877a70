"""A study of images that a program already holds, and predictions for new ones.

Patients matter most: without them every image counts as a patient of its own, and the guarantee covers one image.
"""

import fedveil as fv
from fedveil.data import load

phantom = load("phantom", image_size=32)  # stands for your own reader
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

# Embeddings of an encoder of your own, in place of images; here rows of coarse pixels.
embeddings = images.reshape(len(images), 8, 4, 8, 4).mean(axis=(2, 4)).reshape(len(images), -1) - 0.5
run = fv.run(fv.Study(epsilon=1.0), fv.Dataset.from_features(embeddings, labels, patients=patients))
print(f"AUROC {run.metrics.auroc:.3f} from embeddings alone")

# The same as an estimator for scikit-learn, all noise at one place.
classifier = fv.PrivateLinearClassifier(epsilon=1.0).fit(embeddings, labels, groups=patients)
print(classifier.guarantee_)
