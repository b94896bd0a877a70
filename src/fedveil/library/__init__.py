"""fedveil as programs use it: `import fedveil` gives these names, and the layers below do the work.

`runs` trains, plans, sweeps and opens what they left; `audits` attacks a study's own code; `display` is what a notebook
shows of a run; `classifier` is an estimator for scikit-learn; `gradients` is private training in a loop of one's own.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.library.audits import audit_study
    from fedveil.library.classifier import PrivateLinearClassifier
    from fedveil.library.gradients import PrivateStep, private_steps
    from fedveil.library.runs import Run, load, plan, run, sweep

__all__ = [
    "PrivateLinearClassifier",
    "PrivateStep",
    "Run",
    "audit_study",
    "load",
    "plan",
    "private_steps",
    "run",
    "sweep",
]

__getattr__, __dir__ = on_first_use(__name__)
