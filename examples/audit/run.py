"""Audit other projects' privacy mechanisms, each in an environment of its own, and print claimed against found.

    python examples/audit/run.py [--folder /tmp/audited] [--only flower]

For each package it makes a virtual environment in the folder and installs the package there from the package index;
an environment that is there already is used again.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fedveil.audit.claims import Claim, EpsilonClaim, MechanismClaim
from fedveil.audit.mechanisms.remote import audit_place
from fedveil.audit.mechanisms.search import MechanismAudit
from fedveil.privacy import Mechanism

HERE = Path(__file__).parent
PACKAGES = {
    "opacus": "opacus==1.6.0",
    "flower": "flwr==1.42.0",
    "nvflare": "nvflare==2.9.0",
    "naive": "numpy",
}
OPACUS = EpsilonClaim(5.38, 1e-5)  # as `PrivacyEngine.get_epsilon` states it: python opacus_mechanisms.py
ONE = MechanismClaim((Mechanism(1.0, 1.0, steps=1),), 1e-5)


@dataclass(frozen=True)
class Row:
    """One audit.

    Attributes:
        package: key of `PACKAGES`.
        words: what is audited.
        mechanism: function of the package's module here.
        neighbours: likewise.
        claim: what the package states, or lets a user expect.
        runs: outputs of each input that are compared.
    """

    package: str
    words: str
    mechanism: str
    neighbours: str
    claim: Claim
    runs: int


ROWS = (
    Row("opacus", "training, summed gradients", "trained", "cohorts", OPACUS, 1600),
    Row("opacus", "training, mean gradients (default)", "trained_by_mean", "cohorts", OPACUS, 400),
    Row("flower", "fixed clipping, equal clients", "fixed_clipping", "clients", ONE, 800),
    Row("flower", "fixed clipping, weighted clients", "fixed_clipping_weighted", "clients", ONE, 800),
    Row("flower", "local, sensitivity = clip norm", "local", "updates", EpsilonClaim(4.0, 0.01), 10000),
    Row(
        "flower",
        "local, sensitivity = 2 clip norms",
        "local_twice",
        "updates",
        EpsilonClaim(4.0, 0.01),
        10000,
    ),
    Row("nvflare", "SVTPrivacy, weights", "svt", "layers", EpsilonClaim(1.0, 0.0), 4000),
    Row(
        "nvflare", "SVTPrivacy, default truncation", "svt_small", "small_layers", EpsilonClaim(1.0, 0.0), 4000
    ),
    Row("nvflare", "SVTPrivacy, a scalar parameter", "svt", "scalars", EpsilonClaim(1.0, 0.0), 2000),
    Row("nvflare", "PercentilePrivacy", "percentile", "layers", EpsilonClaim(1.0, 1e-5), 2000),
    Row("naive", "noise on the weights", "noise_on_the_weights", "cohorts", EpsilonClaim(1.0, 1e-5), 2000),
)


def interpreter(folder: Path, package: str) -> Path:
    """The interpreter of a package's environment, which is made if it is not there."""
    python = folder / package / "bin" / "python"
    if not python.exists():
        venv.create(folder / package, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGES[package]], check=True)
    return python


def audit(row: Row, python: Path) -> MechanismAudit:
    """One row's audit."""
    module = f"{row.package}_mechanisms"
    return audit_place(
        f"{module}:{row.mechanism}",
        row.claim,
        neighbours=f"{module}:{row.neighbours}",
        python=str(python),
        runs=row.runs,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "audited")
    parser.add_argument("--only", choices=PACKAGES, default=None)
    options = parser.parse_args()
    os.chdir(HERE)
    rows = [row for row in ROWS if options.only in (None, row.package)]
    pythons = {
        package: interpreter(options.folder, package) for package in dict.fromkeys(r.package for r in rows)
    }
    print(f"fedveil {version('fedveil')}, Python {sys.version.split()[0]}\n")
    print("| package | mechanism | claimed epsilon, delta | found at 99 % | inputs | verdict |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        found = audit(row, pythons[row.package])
        claimed = f"{found.claim.epsilon():.3g}, {found.claim.delta:g}"
        verdict = "refuted" if found.violated else "not refuted"
        print(
            f"| {PACKAGES[row.package]} | {row.words} | {claimed} | at least {found.epsilon:.2f} "
            f"| {found.neighbours} | {verdict} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
