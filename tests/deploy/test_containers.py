"""The containers: what their files say, and the programs under the same users, mounts and limits in bubblewrap."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.hospital import edit, write_images
from tests.deploy.ports import free_port
from tests.deploy.town import wait_until

import fedveil
from fedveil.deploy.flower.process import _answers
from fedveil.deploy.provisioning.kits import make_kits

FOLDER = Path(__file__).parents[2] / "containers"
USERS = {"site": 10001, "node": 10002, "coordinator": 10003}
LINE = 10000


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(FOLDER.glob("*.compose.yml")):
        found |= yaml.safe_load(path.read_text())["services"]
    return found


def images() -> dict[str, dict[str, str]]:
    """The last value of each instruction, by target."""
    found: dict[str, dict[str, str]] = {}
    for line in re.sub(r"\\\n", "", (FOLDER / "Dockerfile").read_text()).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found[rest.rpartition(" AS ")[2]] = here = {}
        elif word and word != "#":
            here[word] = rest
    return found


def pods() -> dict[str, dict[str, Any]]:
    parts = [
        part for path in FOLDER.glob("kubernetes/*.yaml") for part in yaml.safe_load_all(path.read_text())
    ]
    sets = [part for part in parts if part["kind"] == "StatefulSet"]
    return {one["metadata"]["name"].removeprefix("fedveil-"): one["spec"]["template"]["spec"] for one in sets}


def test_nothing_runs_as_root_or_may_write_its_root_file_system():
    assert set(services()) == set(pods()) == set(USERS) <= set(images())
    for name, user in USERS.items():
        one, pod, image = services()[name], pods()[name], images()[name]
        (container,) = pod["containers"]
        assert one["user"] == image["USER"] == f"{user}:{user}"
        assert one["read_only"] is True
        assert (one["cap_drop"], one["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
        assert "privileged" not in one
        limits = pod["securityContext"]
        assert (limits["runAsUser"], limits["runAsGroup"], limits["runAsNonRoot"]) == (user, user, True)
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
        assert f"useradd --uid {user} " in images()["base"]["RUN"]
        assert one["build"]["target"] == name
        assert one["image"] == container["image"] == f"fedveil-{name}:{fedveil.__version__}"


def test_no_group_is_given_the_volumes_of_private_keys():
    """A pod's fsGroup is a group that may read and write every file of its volumes; keys for a group are refused."""
    limits = {name: pod["securityContext"] for name, pod in pods().items()}
    assert all("fsGroup" not in one for one in limits.values())
    groups = {name: one.get("supplementalGroups") for name, one in limits.items()}
    assert groups == {"site": [LINE], "node": [LINE], "coordinator": None}


def test_no_image_makes_the_folder_above_its_mounts_a_volume():
    """It would be a volume without a name, which the program may write in spite of its read-only root."""
    declared = {name: yaml.safe_load(image.get("VOLUME", "[]")) for name, image in images().items()}
    assert {name: one for name, one in declared.items() if one} == {"site": ["/run/fedveil"]}


def test_the_site_service_has_no_network_and_the_node_no_images():
    site, node = services()["site"], services()["node"]
    assert site["network_mode"] == "none"
    assert not {"ports", "networks"} & {*site, *node}
    mounted = {name: {text.split(":")[0] for text in one["volumes"]} for name, one in services().items()}
    assert mounted["site"] & mounted["node"] == {"line"}
    assert "./images:/images:ro" in site["volumes"]
    policies = {
        part["spec"]["podSelector"]["matchLabels"]["app"]: part["spec"]
        for path in FOLDER.glob("kubernetes/*.yaml")
        for part in yaml.safe_load_all(path.read_text())
        if part["kind"] == "NetworkPolicy"
    }
    assert set(policies) == {f"fedveil-{name}" for name in USERS}
    assert all(one["policyTypes"] == ["Ingress", "Egress"] for one in policies.values())
    assert not {"ingress", "egress"} & set(policies["fedveil-site"])
    assert "ingress" not in policies["fedveil-node"]
    claims = {
        name: {one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "emptyDir" not in one}
        for name, pod in pods().items()
    }
    assert claims["site"] & claims["node"] == {"fedveil-line"}


def test_a_node_image_installs_no_torch():
    assert "--no-deps ." in images()["build-node"]["RUN"]
    program = (
        "import sys; sys.modules['torch'] = sys.modules['scipy'] = sys.modules['sklearn'] = None; "
        "import fedveil.deploy.flower.node"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_site_image_installs_no_flower():
    assert "flower" not in images()["build-site"]["RUN"]
    program = (
        "import sys; sys.modules['flwr'] = None; from fedveil.cli.site import SITE_COMMANDS, site; "
        "[one.load() for one in SITE_COMMANDS]; import fedveil.deploy.provisioning.renewal"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def unusable() -> str:
    """Why nothing can be run in bubblewrap here; empty if it can."""
    if os.geteuid() != 0 or shutil.which("bwrap") is None or shutil.which("setpriv") is None:
        return "needs root, bubblewrap and setpriv"
    try:
        done = subprocess.run(Box("site", {}).command(["true"]), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap cannot be used here: {error}"
    return "" if done.returncode == 0 else f"bubblewrap cannot be used here: {done.stderr.strip()[:200]}"


@dataclass
class Box:
    """One service of a compose file, in bubblewrap in place of a container, and this Python in place of its image.

    Args:
        name: the service.
        folders: what lies where on this machine, by the left side of the service's volumes.
    """

    name: str
    folders: dict[str, Path]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def command(self, program: Sequence[str]) -> list[str]:
        """The service's user, groups, mounts and network, read from its compose file."""
        one = services()[self.name]
        user, _, group = one["user"].partition(":")
        groups = ",".join(one.get("group_add", [])) or group
        source = Path(fedveil.__file__).parents[1]
        there = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", sys.prefix, sys.base_prefix, str(source)]
        words = [
            "bwrap",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
            "--die-with-parent",
            "--new-session",
        ]
        words += ["--unshare-net"] if one.get("network_mode") == "none" else []
        words += ["--tmpfs", "/", "--proc", "/proc", "--dev", "/dev"]
        for text in one["tmpfs"]:  # first, for this Python may lie below one of them
            words += ["--perms", "1777", "--tmpfs", text.partition(":")[0]]
        for place in dict.fromkeys(there):
            for above in reversed(Path(place).parents[:-1]):  # bubblewrap makes them for root only
                words += ["--dir", str(above)]
            words += ["--ro-bind-try", place, place]
        if self.folders:
            words += ["--ro-bind", str(self.folders["group"]), "/etc/group"]
        for text in one["volumes"] if self.folders else []:
            here, there_, *mode = text.split(":")
            for above in reversed(Path(there_).parents[:-1]):
                words += ["--dir", str(above)]
            words += ["--ro-bind" if mode == ["ro"] else "--bind", str(self.folders[here]), there_]
        words += [
            "--remount-ro",
            "/",
            "--clearenv",
            "--setenv",
            "HOME",
            "/tmp",
            "--setenv",
            "MPLCONFIGDIR",
            "/tmp",
        ]
        words += [
            "--setenv",
            "PATH",
            os.environ["PATH"],
            "--setenv",
            "PYTHONPATH",
            str(source),
            "--chdir",
            "/",
        ]
        words += ["--setenv", "OMP_NUM_THREADS", "1", "--setenv", "PYTHONDONTWRITEBYTECODE", "1"]
        words += [option for cap in ("SETUID", "SETGID", "SETPCAP") for option in ("--cap-add", f"CAP_{cap}")]
        drop = ["setpriv", "--reuid", user, "--regid", group, "--groups", groups, "--bounding-set=-all"]
        return [*words, "--", *drop, "--inh-caps=-all", "--no-new-privs", *program]

    def python(self, text: str) -> "subprocess.CompletedProcess[str]":
        """Run a Python program in it."""
        return subprocess.run(
            self.command([sys.executable, "-c", text]), capture_output=True, text=True, timeout=300
        )

    def start(self, log: Path) -> None:
        """Start the image's own command, with this Python's fedveil."""
        image = images()[self.name]
        words = [*yaml.safe_load(image["ENTRYPOINT"]), *yaml.safe_load(image["CMD"])]
        words = [sys.executable, *({"fedveil": ["-m", "fedveil"], "python": []}[words[0]]), *words[1:]]
        with log.open("wb") as output:
            self.processes.append(
                subprocess.Popen(self.command(words), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            )

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[dict[str, Box]]:
    """A coordinator, a site service and a node whose folders have the owners that the documentation states."""
    if why := unusable():
        pytest.skip(why)
    tmp_path.chmod(0o755)
    port = free_port()
    make_kits(tmp_path / "kits", name="town", hospitals=["north"], hosts=["127.0.0.1"], port=port)
    kit = tmp_path / "kits" / "north"
    edit(kit / "site" / "site.toml", listen='"unix:/run/fedveil/site.sock"', source='"/images/north.npz"')
    edit(kit / "site" / "site.toml", group='"fedveil-line"')
    edit(kit / "node" / "node.toml", site='"unix:/run/fedveil/site.sock"')
    places = {"./site": kit / "site", "./node": kit / "node", "./images": tmp_path / "images"}
    places |= {"line": tmp_path / "line", "./runs": tmp_path / "runs"}
    places |= {"./coordinator": tmp_path / "kits" / "coordinator", "group": tmp_path / "group"}
    for name in ("./images", "line", "./runs"):
        places[name].mkdir()
    write_images(places["./images"] / "north.npz", 60, seed=0)
    places["group"].write_text(f"root:x:0:\nfedveil-line:x:{LINE}:\n")
    owners = {"./site": 10001, "./node": 10002, "./coordinator": 10003, "./runs": 10003, "line": 10001}
    for name, owner in owners.items():
        for path in (places[name], *places[name].rglob("*")):
            os.chown(path, owner, LINE if name == "line" else owner)
    places["line"].chmod(0o750)
    for folder in (tmp_path / "kits", kit):
        folder.chmod(0o755)
    made = {name: Box(name, places) for name in USERS}
    yield made
    for box in made.values():
        box.stop()


def test_the_programs_work_under_the_containers_users_mounts_and_missing_network(boxes, tmp_path):
    init = boxes["site"].command([sys.executable, "-m", "fedveil", "site", "init", "/var/lib/fedveil/site"])
    done = subprocess.run(init, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "kits" / "north" / "site" / "identity.key").stat().st_uid == USERS["site"]
    logs = {name: tmp_path / f"{name}.log" for name in USERS}
    port = int(re.search(r"port = (\d+)", (tmp_path / "kits/coordinator/federation.toml").read_text())[1])
    boxes["coordinator"].start(logs["coordinator"])
    wait_until(lambda: _answers(port), "the SuperLink to run")
    boxes["site"].start(logs["site"])
    wait_until(lambda: "listens at /run/fedveil/site.sock" in logs["site"].read_text(), "the site service")
    told = boxes["node"].python(
        "import socket; line = socket.socket(socket.AF_UNIX); line.connect('/run/fedveil/site.sock')"
    )
    assert told.returncode == 0, told.stderr
    boxes["node"].start(logs["node"])
    done = boxes["coordinator"].python(GREET)
    assert done.stdout.endswith("{'north': 'refused'}\n"), done.stdout + done.stderr
    assert "an offer with the fields" in logs["site"].read_text(), "sealed, and answered"


GREET = """
import time
from pathlib import Path
from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.coordinator.runner import reach
until = time.monotonic() + 240
with reach(Federation.load(Path("/var/lib/fedveil/coordinator"))) as transport:
    states = {"north": "absent"}
    while states == {"north": "absent"} and time.monotonic() < until:
        states = transport.greet(["north"], "ab" * 32, {})
        time.sleep(0.5)
print(states)
"""
"""A coordinator that offers nothing: what comes back went through the node to the site service and was sealed there."""


WRITE = "import pathlib; pathlib.Path({!r}).write_text('x')"
DIAL = "import socket; socket.create_connection(('127.0.0.1', {}), timeout=20)"


@pytest.mark.parametrize("name", USERS)
def test_nothing_outside_the_mounts_is_written_or_reached(boxes, name):
    box = boxes[name]
    mine = services()[name]["volumes"][0].split(":")[1]
    assert box.python(WRITE.format(f"{mine}/x")).returncode == 0
    assert box.python(WRITE.format("/tmp/x")).returncode == 0
    for place in ("/x", "/usr/x", "/var/lib/fedveil/x", "/run/x"):
        done = box.python(WRITE.format(place))
        assert done.returncode == 1
        assert re.search("Read-only file system|Permission denied|No such file", done.stderr), done.stderr
    who = box.python("import os; print(os.getuid(), os.geteuid(), os.getgid(), sorted(os.getgroups()))")
    group = LINE if name != "coordinator" else USERS[name]
    assert who.stdout == f"{USERS[name]} {USERS[name]} {USERS[name]} [{group}]\n"
    caps = box.python(
        "print([line for line in open('/proc/self/status') if line[:3] == 'Cap' or line[:4] == 'NoNe'])"
    )
    assert set(re.findall(r"Cap\w+:\\t(\w+)", caps.stdout)) == {"0" * 16}
    assert r"NoNewPrivs:\t1" in caps.stdout


def test_the_site_service_reaches_nobody_and_the_node_reads_no_image(boxes, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert boxes["node"].python(DIAL.format(port)).returncode == 0
        done = boxes["site"].python(DIAL.format(port))
    assert done.returncode == 1
    assert "refused" in done.stderr or "unreachable" in done.stderr
    read = "import pathlib; print(pathlib.Path({!r}).read_bytes()[:2])"
    assert boxes["site"].python(read.format("/images/north.npz")).stdout == "b'PK'\n"
    assert "Read-only" in boxes["site"].python(WRITE.format("/images/north.npz")).stderr
    for place in (
        "/images/north.npz",
        "/var/lib/fedveil/site/site.toml",
        str(tmp_path / "images" / "north.npz"),
    ):
        assert boxes["node"].python(read.format(place)).returncode == 1
