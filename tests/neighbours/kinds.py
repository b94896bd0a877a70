"""The kinds of models that the search goes through, as study files name them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from tests.neighbours.harness import PIXELS, SHARES, make_study
from tests.neighbours.positions import POSITIONS, positions

from fedveil.study import Study

TWO, THREE, FOUR = ("ill", "normal"), ("a", "b", "c"), ("a", "b", "c", "d")
OWN = "\npersonal_share = 0.2\npersonal_calibration_share = 0.1"
CALIBRATION = "calibration_share = 0.1"
CALIBRATED = f"{SHARES}\n{CALIBRATION}"
FINDINGS = 'task = "findings"\nseparator = "|"\nunknown_labels = "unknown"'
FEW = {"files": True, "most": 150, "tries": 10, "cohorts": 4}


@dataclass(frozen=True)
class Kind:
    """A model and how it is trained.

    Attributes:
        name: in the lines that the search prints.
        settings: for `make_study`.
        most: images in a cohort.
        tries: parameters that are tried for each release of one cohort.
        files: whether images are files, of which one may be odd, rather than one array.
        slow: left out of the short search.
        answers: what is compared is what a hospital's service says, not a sum.
        cohorts: of the short search.
        trained: so many images are trained on, one a patient; 0 for any number.
        room: so many units a masked sum has room for, one less than are trained on; 0 for more than ever come.
        listed: labels are lists of findings, some of them unknown; images are files then.
        releases: the ones that are searched; empty for all.
        within: a context in which the study's network is built; for one that no study file can name.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    most: int = 1400
    tries: int = 60
    files: bool = False
    slow: bool = False
    answers: bool = False
    cohorts: int = 1
    trained: int = 0
    room: int = 0
    listed: bool = False
    releases: tuple[str, ...] = ()
    within: Callable[[], AbstractContextManager[Any]] = nullcontext

    def study(self, trust: str = "site") -> Study:
        """The study file."""
        study = make_study(**{"classes": TWO, **self.settings, "trust": trust})
        return study.with_changes({"federation": {"max_units": self.room}}) if self.room else study

    @property
    def bounds(self) -> dict[str, int]:
        """What a hospital's settings say of its units: no more than a masked sum has room for."""
        return {"max_units": self.room} if self.room else {}

    @property
    def network(self) -> bool:
        """Whether sums are in single precision."""
        return "network" in self.settings.get("model", "")


def _linear(name: str, **settings: Any) -> Kind:
    return Kind(name, {"model": PIXELS, **settings}, cohorts=3)


def _network(name: str, network: str, **changes: Any) -> Kind:
    settings = {"model": f'network = "{network}"', **changes.pop("settings", {})}
    return Kind(name, settings, **{"most": 260, "tries": 12, **changes})


LINEAR = (
    _linear("pixels", privacy=CALIBRATED),
    _linear(
        "pixels, 3 classes",
        classes=THREE,
        data='subgroup = "sex"',
        privacy=f"{CALIBRATED}\nsubgroup_share = 0.1",
    ),
    _linear("pixels, images", unit="image", classes=FOUR),
    _linear("pixels, site", unit="site"),
    _linear("pixels, sampled", training="sampling_rate = 0.3"),
    _linear("one shot", classes=THREE, training='method = "one-shot"', privacy="evaluation_share = 0.1"),
    _linear("averaging", training='method = "averaging"\nunits = 20\nlocal_steps = 2'),
    _linear("averaging, sampled", training='method = "averaging"\nunits = 20\nsampling_rate = 0.4'),
    _linear("averaging, site", unit="site", training='method = "averaging"\nsampling_rate = 1.0'),
    replace(_linear("own models", classes=THREE, training="units = 20", privacy=SHARES + OWN), tries=20),
    replace(_linear("pixels, files", privacy=CALIBRATED), files=True, most=150, tries=10, cohorts=8),
    replace(_linear("pixels, colour", channels=3), files=True, most=100, tries=10),
    replace(
        _linear("more than there is room for", privacy=CALIBRATED), trained=13, room=12, tries=10, cohorts=1
    ),
    replace(_linear("findings", classes=FOUR, data=FINDINGS, privacy=CALIBRATED), listed=True, **FEW),
    replace(
        _linear("findings, images", unit="image", classes=FOUR, data=FINDINGS, privacy=CALIBRATED),
        **{"listed": True, **FEW},
    ),
    replace(
        _linear(
            "findings, own models",
            classes=FOUR,
            data=FINDINGS,
            training="units = 20",
            privacy=f"{CALIBRATED}{OWN}",
        ),
        **{"listed": True, **FEW},
    ),
    replace(
        _linear(
            "findings, one shot",
            classes=FOUR,
            data=FINDINGS,
            training='method = "one-shot"',
            privacy=CALIBRATED,
        ),
        **{"listed": True, **FEW},
    ),
    _linear(
        "grades",
        classes=FOUR,
        data='task = "grades"\nsubgroup = "sex"',
        training="units = 20",
        privacy=f"{CALIBRATED}\nsubgroup_share = 0.1{OWN}",
    ),
    replace(
        _linear(
            "pilot", classes=THREE, epsilon='"calibrated"', privacy="max_epsilon = 8.0\npilot_epsilon = 2.0"
        ),
        releases=("pilot",),
    ),
    Kind("scattering", {"model": 'features = "scattering"', "classes": THREE}, most=120, tries=40),
    Kind("efficientnet features", {"model": 'features = "efficientnet-lite0"'}, most=120, slow=True),
)
NETWORKS = (
    _network("cnn", "cnn", settings={"training": 'clipping = "flat"', "classes": THREE}),
    _network(
        "cnn, automatic", "cnn", settings={"training": 'clipping = "automatic"\nviews = 2'}, most=130, tries=8
    ),
    _network("cnn, per layer", "cnn", settings={"training": 'clipping = "per-layer"'}, slow=True),
    _network("cnn, sampled", "cnn", settings={"training": "sampling_rate = 0.3"}, slow=True),
    _network("cnn, images", "cnn", settings={"unit": "image"}, slow=True),
    _network("cnn, site", "cnn", settings={"unit": "site"}, slow=True),
    _network(
        "cnn, averaging",
        "cnn",
        settings={"training": 'method = "averaging"\nunits = 20\nlocal_steps = 2'},
        slow=True,
    ),
    _network(
        "cnn, own models",
        "cnn",
        settings={"training": "units = 20\nsampling_rate = 1.0", "privacy": SHARES + OWN},
        slow=True,
    ),
    _network("cnn, files", "cnn", files=True, most=60, tries=3, cohorts=4),
    _network(
        "cnn, findings",
        "cnn",
        settings={"classes": FOUR, "data": FINDINGS, "privacy": CALIBRATED},
        files=True,
        listed=True,
        most=60,
        tries=3,
        cohorts=2,
    ),
    _network("tuned", "efficientnet-lite0", most=300, tries=12),
    _network("tuned, one image each", "efficientnet-lite0", trained=33, tries=20),
    _network("positions", "cnn", trained=POSITIONS, tries=6, within=positions),
    _network("resnet18", "resnet18", most=60, tries=4, slow=True),
    _network("densenet121", "densenet121", most=20, tries=2, slow=True),
)
ANSWERS = (Kind("answers", {"model": PIXELS, "classes": FOUR}, most=60, files=True, answers=True, cohorts=8),)
KINDS = {kind.name: kind for kind in (*LINEAR, *NETWORKS, *ANSWERS)}
