"""Start-up kits: everything that each party of a federation needs, from a short list of hospitals."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from fedveil import __version__
from fedveil.deploy.carrier import Engine, check_cell_names
from fedveil.deploy.identity import Identity, fingerprint, private_files, write_private
from fedveil.deploy.provisioning import templates
from fedveil.deploy.provisioning.certificates import Authority, node_keys
from fedveil.deploy.site.config import SiteConfig
from fedveil.errors import InvalidValue
from fedveil.names import check_site_name, check_site_names
from fedveil.privacy import Budget, Ledger
from fedveil.study.settings.toml import toml_value

__all__ = ["init_site", "make_kits", "write_site_settings"]


def make_kits(
    folder: Path,
    *,
    name: str,
    hospitals: Sequence[str],
    hosts: Sequence[str],
    port: int,
    engine: Engine = "flower",
) -> str:
    """Write a coordinator's folder and one folder for each hospital; return the coordinator's public key.

    Args:
        folder: a new folder.
        name: the federation's name.
        hospitals: names of the hospitals, as studies will name them.
        hosts: names and addresses by which hospitals reach the coordinator; its certificate contains them.
        port: the port that hospitals connect to.
        engine: what carries messages.

    Raises:
        InvalidValue: the folder exists, or a name cannot be used.
    """
    _check_names(hospitals)
    if engine == "nvflare":
        check_cell_names(hospitals)
        _check_cell_hosts(hosts)
    if not hosts:
        raise InvalidValue(
            "no address is given", "hospitals must be able to reach the coordinator", "give its host name"
        )
    if folder.exists() and any(folder.iterdir()):
        raise InvalidValue(
            f"{folder} is not empty", "kits need a new folder for new keys", "choose another folder"
        )
    home = folder / "coordinator"
    home.mkdir(mode=0o700, parents=True)
    authority = Authority.create(name)
    identity = Identity.create(home / "identity.key")
    _write_coordinator(home, authority, identity, name, hospitals, hosts, port, engine)
    superlink = f"[{hosts[0]}]:{port}" if ":" in hosts[0] else f"{hosts[0]}:{port}"
    for hospital in hospitals:
        _write_kit(folder / hospital, hospital, name, authority, identity.public, superlink, engine)
        if engine == "flower":
            (home / "nodes").mkdir(exist_ok=True)
            public = (folder / hospital / "node" / "node.pub").read_bytes()
            (home / "nodes" / f"{hospital}.pub").write_bytes(public)
    return identity.public


def _write_coordinator(
    home: Path,
    authority: Authority,
    identity: Identity,
    name: str,
    hospitals: Sequence[str],
    hosts: Sequence[str],
    port: int,
    engine: Engine,
) -> None:
    key, certificate = authority.certify(hosts)
    write_private(home / "ca.key", authority.key)
    write_private(home / "superlink.key", key)
    if engine == "flower":
        write_private(home / "superlink.secret", secrets.token_bytes(32))
    (home / "ca.pem").write_bytes(authority.certificate)
    (home / "superlink.pem").write_bytes(certificate)
    sites = ", ".join(toml_value(hospital) for hospital in hospitals)
    listen = "127.0.0.1" if hosts[0] in ("127.0.0.1", "localhost") else "0.0.0.0"
    settings = templates.FEDERATION.format(name=name, port=port, listen=listen, sites=sites, engine=engine)
    (home / "federation.toml").write_text(settings, encoding="utf-8")
    guide = templates.coordinator_guide(
        engine,
        federation=name,
        kits=", ".join(f"../{hospital}" for hospital in hospitals),
        port=port,
        hosts=" or ".join(hosts),
        fingerprint=fingerprint(identity.public),
        version=__version__,
    )
    units = {"study@": templates.STUDY_UNIT, "superlink": templates.SUPERLINK_UNIT}
    after = " fedveil-superlink.service"
    if engine == "nvflare":
        del units["superlink"]
        after = ""
    for unit, text in units.items():
        filled = text.format(name=name, after=after)
        (home / f"fedveil-{unit}.service").write_text(filled, encoding="utf-8")
    (home / "README.md").write_text(guide, encoding="utf-8")


def _write_kit(
    kit: Path,
    hospital: str,
    federation: str,
    authority: Authority,
    coordinator: str,
    superlink: str,
    engine: Engine,
) -> None:
    for part in ("site", "node", "systemd"):
        (kit / part).mkdir(mode=0o700, parents=True)
    write_site_settings(kit / "site", name=hospital, coordinator=coordinator)
    private, public = node_keys() if engine == "flower" else authority.certify_node(hospital)
    write_private(kit / "node" / "node.key", private)
    (kit / "node" / ("node.pub" if engine == "flower" else "node.pem")).write_bytes(public)
    (kit / "node" / "ca.pem").write_bytes(authority.certificate)
    node = templates.NODES[engine].format(superlink=superlink, listen="unix:../site/site.sock")
    (kit / "node" / "node.toml").write_text(node, encoding="utf-8")
    words = {"name": hospital, "superlink": superlink}
    (kit / "systemd" / "fedveil-site.service").write_text(templates.SITE_UNIT.format(**words))
    (kit / "systemd" / "fedveil-node.service").write_text(templates.NODE_UNIT.format(**words))
    guide = templates.SITE_GUIDE.format(
        federation=federation,
        version=__version__,
        fingerprint=fingerprint(coordinator),
        engine=engine,
        **words,
    )
    (kit / "README.md").write_text(guide, encoding="utf-8")


def write_site_settings(
    folder: Path,
    *,
    name: str,
    coordinator: str = "",
    source: str = "images/manifest.csv",
    epsilon: float = 1.0,
    delta: float = 1e-5,
    max_units: int = 10_000,
) -> None:
    """Write a commented ``site.toml``."""
    text = templates.SITE.format(
        name=name,
        coordinator=coordinator,
        listen="unix:site.sock",
        group='#group = "fedveil-line"         # its users may connect too; default: this user only',
        source=source,
        epsilon=toml_value(epsilon),
        delta=toml_value(delta),
        max_units=max_units,
    )
    (folder / "site.toml").write_text(text, encoding="utf-8")


def init_site(folder: Path) -> Identity:
    """Make a hospital's signing key and ledger, as specified in its ``site.toml``; return the identity.

    Raises:
        InvalidValue: the settings cannot be used, or the site was set up before.
    """
    config = SiteConfig.load(folder)
    if (folder / "ledger.jsonl").exists():
        raise InvalidValue(
            f"{folder / 'ledger.jsonl'} exists",
            "a ledger is created once and never replaced",
            "continue to use it; change a budget with `fedveil ledger amend`",
        )
    folder.chmod(0o700)
    identity = Identity.create(folder / "identity.key")
    budget = Budget(config.budget.epsilon, config.budget.delta, config.budget.unit)
    with private_files(), Ledger(folder / "ledger.jsonl", budget):
        pass
    return identity


def _check_cell_hosts(hosts: Sequence[str]) -> None:
    for host in hosts:
        if ":" in host:
            raise InvalidValue(
                f"an address of the coordinator is {host}",
                "over NVFlare it is a host's name or an IPv4 address, without a port",
                "give the host's name or its IPv4 address, or take Flower",
            )


def _check_names(hospitals: Sequence[str]) -> None:
    for hospital in hospitals:
        if check_site_name(hospital, plain=True) == "coordinator":
            raise InvalidValue(
                f"a hospital is called {hospital!r}",
                "this is the name of the coordinator's folder",
                "choose another name",
            )
    check_site_names(tuple(hospitals))
    if len(set(hospitals)) != len(hospitals) or not hospitals:
        raise InvalidValue(
            f"the hospitals are {', '.join(hospitals) or 'none'}", "their names must differ", "name each once"
        )
