"""Conflicts between settings of a study; each single setting was already checked."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedveil.data.annotations.groups import GROUPS, OTHER

if TYPE_CHECKING:
    from fedveil.study.settings.schema import Study

__all__ = ["conflicts"]


def conflicts(study: "Study") -> Iterator[str]:
    """The conflicts in a study, as rules with their remedies."""
    yield from _network(study)
    yield from _precomputed(study)
    yield from _volumes(study)
    yield from _encoder(study)
    yield from _subgroups(study)
    if study.model.start is not None or study.model.start_sha256:
        yield from _start(study)
    if study.training.method == "one-shot":
        yield from _one_shot(study)
    yield from _own_models(study)
    if study.privacy.epsilon == "calibrated":
        yield from _calibrated(study)
    if study.data.meaning == "findings":
        yield from _findings(study)
    if study.data.meaning == "grades":
        yield from _grades(study)


def _findings(study: "Study") -> Iterator[str]:
    if study.privacy.epsilon == "calibrated":
        yield (
            'privacy.epsilon "calibrated" predicts accuracy for classes that exclude each other, not for data.task '
            '"findings": give a number'
        )


def _grades(study: "Study") -> Iterator[str]:
    without = 'or set data.task = "classes"'
    if study.privacy.epsilon == "calibrated":
        yield f'privacy.epsilon "calibrated" is for classes without an order: give a number, {without}'


def _network(study: "Study") -> Iterator[str]:
    network, features, training = study.model.network, study.model.features, study.training
    if network == "linear" and features == "none":
        yield 'model.features is "none", which only networks train on: name features'
    if network != "linear" and features != "none":
        yield f'model.network "{network}" is trained on pixels: set model.features = "none"'
    if network != "linear" and training.precision != "float32":
        yield "training.precision is for encoders: networks are trained in float32, in which contributions are clipped"
    if network == "linear" and training.clipping != "flat":
        yield "training.clipping is for networks"
    if network == "linear" and training.views > 1:
        yield (
            "training.views is for networks: views of frozen features were removed because they gained nothing; remove "
            "it"
        )
    if study.model.trained != "all" and not network.startswith("timm:"):
        yield (
            "model.trained is for timm:NAME: remove it; efficientnet-lite0 has model.trained_blocks, and a network of "
            "your own sets requires_grad"
        )
    if network.startswith("efficientnet-lite0") and training.views > 1:
        yield "training.views must be 1 for efficientnet-lite0, whose frozen part runs only once"


def _precomputed(study: "Study") -> Iterator[str]:
    model = study.model
    if model.features != "precomputed":
        if model.dimension is not None:
            yield 'model.dimension is for model.features = "precomputed": other features have a fixed length'
        return
    if model.whitened:
        yield "model.whitened needs the encoder to process synthetic images: set it to false for precomputed features"


def _volumes(study: "Study") -> Iterator[str]:
    network = study.model.network
    if study.data.slices is None:
        if network == "cnn3d":
            yield 'model.network "cnn3d" is trained on volumes: set data.slices, or model.network = "cnn"'
        return
    if network not in ("linear", "cnn3d") and not network.startswith("module:"):
        yield f'data.slices reads volumes, which "{network}" does not take: set model.network to "cnn3d" or "linear"'
    if study.model.features == "precomputed":
        yield "data.slices reads volumes, and precomputed features have no slices: remove data.slices"


def _subgroups(study: "Study") -> Iterator[str]:
    data, named = study.data, bool(study.data.subgroup)
    if named != (study.privacy.subgroup_share > 0):
        yield "data.subgroup and privacy.subgroup_share belong together: set both, or neither"
    values = data.subgroup_values
    if named and data.subgroup in GROUPS and values:
        yield f"the groups of {data.subgroup} are fixed: remove data.subgroup_values"
    if named and data.subgroup not in GROUPS and not values:
        yield f"the values of {data.subgroup} must not follow from patients: list them in data.subgroup_values"
    if not named and values:
        yield "data.subgroup_values are those of data.subgroup: set it, or remove them"
    if len({value.strip() for value in values if value.strip()}) != len(values):
        yield "data.subgroup_values must be different names: remove the repeated or empty ones"
    if any(value != value.strip() or value == OTHER for value in values):
        yield f'data.subgroup_values are compared without outer spaces, and "{OTHER}" is everybody else: change them'


def _encoder(study: "Study") -> Iterator[str]:
    features, encoder = study.model.features, study.model.encoder
    kind = features.partition(":")[0] if ":" in features else ""
    if not kind and encoder != type(encoder)():
        yield "model.encoder is for encoders that are not built in: remove it, or set model.features to one"
    if encoder.weights and kind != "timm":
        yield "model.encoder.weights is for timm:NAME: other files hold their own weights"
    if encoder.layer is not None and kind != "timm":
        yield "model.encoder.layer is for timm:NAME: of a graph, export the layer as an output"


def _start(study: "Study") -> Iterator[str]:
    training = study.training
    if training.method != "gradient":
        yield 'model.start needs training.method "gradient": remove it, or training.method'
    linear = study.model.network == "linear"
    plain = training.optimizer == "sgd" and training.weight_decay == 0
    if linear and (not plain or training.momentum > 0 or training.average_from < 1):
        yield (
            "model.start needs plain gradient descent, whose noise is known: remove training.optimizer, momentum, "
            "weight_decay and average_from"
        )
    if not linear and not plain:
        yield (
            "model.start needs gradient descent, whose noise is known: remove training.optimizer and weight_decay"
        )
    if study.privacy.epsilon == "calibrated":
        yield 'privacy.epsilon "calibrated" does not know what model.start brings so far: give a number, or remove it'


def _one_shot(study: "Study") -> Iterator[str]:
    privacy = study.privacy
    if study.model.network != "linear":
        yield 'training.method "one-shot" is for linear heads: remove model.network'
    if study.training.sampling_rate < 1:
        yield 'training.method "one-shot" uses all units once: remove sampling_rate'
    if privacy.unit == "site":
        yield 'training.method "one-shot" counts patients or images: set privacy.unit to one of them'
    if privacy.personal_share > 0:
        yield 'training.method "one-shot" has no local steps: remove privacy.personal_share'


def _calibrated(study: "Study") -> Iterator[str]:
    privacy = study.privacy
    if privacy.max_epsilon is None:
        yield 'privacy.epsilon is "calibrated": set privacy.max_epsilon, the most that it may be'
    elif privacy.pilot_epsilon >= privacy.max_epsilon:
        yield "privacy.pilot_epsilon leaves nothing of privacy.max_epsilon for training: reduce it"
    if privacy.trust == "none":
        yield 'privacy.epsilon is "calibrated" and privacy.trust "none": there is no noise to calibrate'
    if privacy.unit == "site":
        yield 'privacy.epsilon "calibrated" counts patients or images: set privacy.unit to one of them'
    if max(privacy.personal_share, privacy.personal_calibration_share) > 0:
        yield (
            'privacy.epsilon "calibrated" cannot be combined with own models: set personal_share and '
            "personal_calibration_share to 0"
        )
    if study.training.method != "one-shot" and not privacy.statistics_share:
        yield 'privacy.epsilon "calibrated" needs class statistics: set privacy.statistics_share above 0'


def _own_models(study: "Study") -> Iterator[str]:
    privacy = study.privacy
    for key in ("personal_share", "personal_calibration_share"):
        if getattr(privacy, key) > 0 and (study.training.sampling_rate < 1 or privacy.unit == "site"):
            yield f"privacy.{key} needs training.sampling_rate 1 and a patient or an image as privacy.unit"
    common = study.training.method == "one-shot" or min(privacy.statistics_share, privacy.calibration_share)
    if privacy.personal_calibration_share > 0 and not common:
        yield (
            "privacy.personal_calibration_share changes the common threshold and frequencies: statistics_share and "
            "calibration_share must be above 0"
        )
