"""Federated learning of medical image classifiers under a patient-level privacy budget.

Names are imported when they are first used: ``import fedveil`` itself loads neither torch nor scipy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedveil.audit import AuditResult
    from fedveil.audit.mechanisms import audit_mechanism
    from fedveil.data import Dataset
    from fedveil.errors import BudgetExceeded, DataError, FedveilError, InvalidValue, StudyError
    from fedveil.learning.gradients import PrivateGradients
    from fedveil.library import (
        PrivateLinearClassifier,
        Run,
        audit_study,
        load,
        plan,
        private_steps,
        run,
        sweep,
    )
    from fedveil.planning import Plan
    from fedveil.privacy import Budget, Guarantee, Ledger, Mechanism, calibrate, epsilon
    from fedveil.study import Study, TrainedModel
    from fedveil.sweeps import Measurement

    __version__: str

_PLACES = {
    "fedveil.audit.mechanisms": ("audit_mechanism",),
    "fedveil.data": ("Dataset",),
    "fedveil.errors": ("BudgetExceeded", "DataError", "FedveilError", "InvalidValue", "StudyError"),
    "fedveil.learning.gradients": ("PrivateGradients",),
    "fedveil.audit": ("AuditResult",),
    "fedveil.library.audits": ("audit_study",),
    "fedveil.library.classifier": ("PrivateLinearClassifier",),
    "fedveil.library.gradients": ("private_steps",),
    "fedveil.library.runs": ("Run", "load", "plan", "run", "sweep"),
    "fedveil.privacy": ("Budget", "Guarantee", "Ledger", "Mechanism", "calibrate", "epsilon"),
    "fedveil.planning": ("Plan",),
    "fedveil.study": ("Study", "TrainedModel"),
    "fedveil.sweeps": ("Measurement",),
}
_PLACE_OF = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "AuditResult",
    "Budget",
    "BudgetExceeded",
    "DataError",
    "Dataset",
    "FedveilError",
    "Guarantee",
    "InvalidValue",
    "Ledger",
    "Measurement",
    "Mechanism",
    "Plan",
    "PrivateGradients",
    "PrivateLinearClassifier",
    "Run",
    "Study",
    "StudyError",
    "TrainedModel",
    "__version__",
    "audit_mechanism",
    "audit_study",
    "calibrate",
    "epsilon",
    "load",
    "plan",
    "private_steps",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """A public name, imported on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fedveil")
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
