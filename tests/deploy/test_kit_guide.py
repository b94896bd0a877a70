"""The commands of a start-up kit's README, run as they are written there, by a user whom the system has no name for."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.deploy.hospital import WHO, make_offer, write_images

from fedveil import __version__
from fedveil.deploy.provisioning.kits import make_kits
from fedveil.deploy.site.approvals import Studies
from fedveil.privacy import verify_ledger

USER = 4_242_424
SHELL = """
set -eu
groupadd() {{ :; }}; useradd() {{ :; }}; systemctl() {{ :; }}; python3() {{ :; }}
sudo() {{ shift 2; env -i {variables} setpriv --reuid={user} --regid={user} --clear-groups \\
    --inh-caps +dac_read_search --ambient-caps +dac_read_search "$@"; }}
chown() {{ command chown -R {user}:{user} "${{@: -1}}"; }}
cd {kit}
"""
"""What a test must not do for real: users and services of the machine. Everything else is run as written.

The user keeps the right to read every file, since Python may be installed where only root can read it."""

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user"
)


def blocks(guide: str) -> dict[str, str]:
    """The commands of each section of a README, by its first word."""
    sections = re.split(r"^## ", guide, flags=re.M)[1:]
    return {
        section.split()[0]: "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
        for section in sections
    }


@pytest.fixture
def machine() -> Iterator[Path]:
    """A folder that every user may enter, with the kits in it, instead of the root of the file system."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        make_kits(
            folder / "kits", name="lungs", hospitals=["north", "south"], hosts=["fl.example.org"], port=9443
        )
        program = folder / "opt" / "fedveil" / "bin" / "fedveil"
        program.parent.mkdir(parents=True)
        source = Path(__file__).parents[2] / "src"
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} -c "from fedveil.cli import main; main()" "$@"\n'
        )
        program.chmod(0o755)
        (folder / "opt/fedveil/bin/pip").write_text("#!/bin/sh\n")
        (folder / "opt/fedveil/bin/pip").chmod(0o755)
        (folder / "etc/systemd/system").mkdir(parents=True)
        yield folder


def run(machine: Path, commands: str, *, answers: str = "") -> str:
    """Run commands of the README in this machine's stead."""
    variables = "PATH=/usr/bin:/bin OMP_NUM_THREADS=1"
    script = SHELL.format(kit=machine / "kits" / "north", user=USER, variables=variables)
    for place in ("/etc/", "/opt/"):
        commands = commands.replace(place, f"{machine}{place}")
    done = subprocess.run(
        ["bash", "-c", script + commands], input=answers, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readme_of_a_kit_is_run_as_it_is_written(machine, tmp_path):
    guide = blocks((machine / "kits" / "north" / "README.md").read_text())
    assert f'pip install "fedveil[flower,desk]=={__version__}"' in guide["Install"]
    run(machine, guide["Install"])
    site = machine / "etc/fedveil/site"
    settings = (site / "site.toml").read_text()
    assert 'listen = "unix:/run/fedveil/site.sock"' in settings
    assert 'group = "fedveil-line"' in settings
    assert 'site = "unix:/run/fedveil/site.sock"' in (machine / "etc/fedveil/node/node.toml").read_text()
    assert {path.name for path in (machine / "etc/systemd/system").iterdir()} == {
        "fedveil-site.service",
        "fedveil-node.service",
    }
    images = write_images(site / "images.npz", 30, seed=1)
    (site / "site.toml").write_text(settings.replace("images/manifest.csv", "images.npz"))
    for path in (images, site / "site.toml"):
        os.chown(path, USER, USER)
    said = run(machine, guide["Set"])
    assert "north's ledger is open" in said
    assert "fingerprint of this site" in said
    assert verify_ledger(site / "ledger.jsonl").budget.epsilon == 1.0
    offer = make_offer(tmp_path, epsilon=0.5)
    offer = replace(offer, study=offer.study.with_changes({"privacy": {"delta": 1e-5}}))
    digest = Studies(site / "studies").add(offer)
    for path in (site / "studies", *(site / "studies").iterdir()):
        os.chown(path, USER, USER)
    first, second, *_ = guide["Decide"].splitlines()
    assert digest in run(machine, f"cd /etc/fedveil\n{first}")
    run(
        machine,
        f"cd /etc/fedveil\n{second.replace('STUDY', digest)}",
        answers=f"{WHO['by']}\n{WHO['role']}\ny\n",
    )
    (decision,) = Studies(site / "studies").decisions.all()
    assert (decision.by, decision.role, decision.account) == (WHO["by"], WHO["role"], str(USER))
    assert {path.stat().st_uid for path in site.rglob("*")} == {USER}
