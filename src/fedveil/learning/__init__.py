"""What happens inside one hospital: frozen features, models, bounded sums of gradients, evaluation.

A `Learner` is the only code that sees pixels. It knows no budget and adds no noise: it guarantees that one patient
changes its sums by at most the clip norm, and the layers above do the rest. Server optimisers and the evaluation of
released models are also here; they only use released values.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.learning.encoders import FeatureExtractor, feature_extractor
    from fedveil.learning.evaluation.finding_histogram import FindingHistogram
    from fedveil.learning.evaluation.findings import decide_findings, evaluate_findings, findings_point
    from fedveil.learning.evaluation.grade_histogram import GradeHistogram
    from fedveil.learning.evaluation.grades import quadratic_kappa
    from fedveil.learning.evaluation.held_out import HeldOut, histogram_of
    from fedveil.learning.evaluation.intervals import Spread
    from fedveil.learning.evaluation.metrics import (
        ClassMetrics,
        Metrics,
        auroc,
        decide,
        evaluate,
        expected_calibration_error,
    )
    from fedveil.learning.evaluation.released_subgroups import ReleasedSubgroups
    from fedveil.learning.evaluation.score_histogram import Histogram, ScoreHistogram
    from fedveil.learning.evaluation.subgroups import Subgroup, subgroups
    from fedveil.learning.models.findings import FindingsHead, FindingsLearner
    from fedveil.learning.models.grades import GradesHead
    from fedveil.learning.models.learner import Learner
    from fedveil.learning.models.linear_head import CentredHead, CentredLearner, ClassHead
    from fedveil.learning.models.logistic import LinearHead, LinearLearner
    from fedveil.learning.models.network import NetworkLearner, NetworkModel
    from fedveil.learning.models.protocol import Model, Sizes, Statistics
    from fedveil.learning.models.public_start import PublicStart
    from fedveil.learning.optimizers import Adam, Averaged, Optimizer, OptimizerState, Pulled, Sgd, Shrunk
    from fedveil.learning.padded_batches import ImageSource
    from fedveil.learning.released.class_statistics import ClassStatistics, unit_blocks
    from fedveil.learning.released.finding_means import FindingMeans
    from fedveil.learning.released.finding_statistics import FindingStatistics
    from fedveil.learning.released.score_statistics import Certainty, ScoreStatistics, drowned
    from fedveil.learning.sizes import NetworkSizes
    from fedveil.learning.views import Views

__all__ = [
    "Adam",
    "Averaged",
    "CentredHead",
    "CentredLearner",
    "Certainty",
    "ClassHead",
    "ClassMetrics",
    "ClassStatistics",
    "FeatureExtractor",
    "FindingHistogram",
    "FindingMeans",
    "FindingStatistics",
    "FindingsHead",
    "FindingsLearner",
    "GradeHistogram",
    "GradesHead",
    "HeldOut",
    "Histogram",
    "ImageSource",
    "Learner",
    "LinearHead",
    "LinearLearner",
    "Metrics",
    "Model",
    "NetworkLearner",
    "NetworkModel",
    "NetworkSizes",
    "Optimizer",
    "OptimizerState",
    "PublicStart",
    "Pulled",
    "ReleasedSubgroups",
    "ScoreHistogram",
    "ScoreStatistics",
    "Sgd",
    "Shrunk",
    "Sizes",
    "Spread",
    "Statistics",
    "Subgroup",
    "Views",
    "auroc",
    "decide",
    "decide_findings",
    "drowned",
    "evaluate",
    "evaluate_findings",
    "expected_calibration_error",
    "feature_extractor",
    "findings_point",
    "histogram_of",
    "quadratic_kappa",
    "subgroups",
    "unit_blocks",
]

__getattr__, __dir__ = on_first_use(__name__)
