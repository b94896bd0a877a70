"""One study at many settings: the grid, the runs, and the budget that covers them."""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.sweeps.budget import Paid, read_payment
    from fedveil.sweeps.grid import EVEN, NAMED, NO_PRIVACY, Grid, Measurement, Setting
    from fedveil.sweeps.knee import Knee, knees
    from fedveil.sweeps.run import measure, read_measurements, sweep

__all__ = [
    "EVEN",
    "NAMED",
    "NO_PRIVACY",
    "Grid",
    "Knee",
    "Measurement",
    "Paid",
    "Setting",
    "knees",
    "measure",
    "read_measurements",
    "read_payment",
    "sweep",
]

__getattr__, __dir__ = on_first_use(__name__)
