"""``site.toml``: what a hospital decides, in one file that its privacy officer can read."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedveil.data import Settings
from fedveil.data.options import LARGEST_SLICES
from fedveil.deploy.identity import check_public_key
from fedveil.deploy.sealing import OVERHEAD
from fedveil.deploy.site.ipc import Address
from fedveil.errors import InvalidValue, Refused
from fedveil.federation import Agreement, Policy, default_min_honest
from fedveil.names import SITE_NAME
from fedveil.privacy import Budget, Trust, Unit
from fedveil.schema import explain
from fedveil.study.settings.data import ColumnSettings

__all__ = ["BudgetTable", "CohortTable", "PolicyTable", "SiteConfig", "SiteTable"]

Number = Annotated[float, Field(strict=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SiteTable(_Table):
    """This hospital's name, its coordinator, and where its service listens."""

    name: str = Field(pattern=f"^{SITE_NAME}$")
    coordinator: str = ""
    listen: str = "unix:site.sock"
    group: str | None = None


class CohortTable(_Table):
    """Where the hospital's own images are, and how its tables and folders are read."""

    source: str
    site: str | None = None
    columns: ColumnSettings = ColumnSettings()
    preset: str = ""
    layout: str = ""
    accept: tuple[str, ...] = Field(default=(), strict=False)
    allow_patient_overlap: bool = False
    one_image_a_patient: bool = False
    test_fraction: Number = Field(default=0.2, ge=0, lt=1)
    slices: int | None = Field(default=None, ge=2, le=LARGEST_SLICES)

    @property
    def settings(self) -> Settings:
        """Keywords of `fedveil.data.load`."""
        return {
            **self.columns.settings,
            "preset": self.preset,
            "layout": self.layout,
            "accept": self.accept,
            "test_fraction": self.test_fraction,
            "allow_patient_overlap": self.allow_patient_overlap,
            "slices": self.slices,
        }


class BudgetTable(_Table):
    """The privacy budget of all studies together, and a public bound on the number of units."""

    epsilon: Number = Field(gt=0)
    delta: Number = Field(gt=0, lt=1)
    unit: Unit = "patient"
    max_units: int = Field(default=10_000, ge=1)


class PolicyTable(_Table):
    """The limits on studies that the hospital may admit."""

    trust: tuple[Trust, ...] = Field(default=("site", "secure-aggregation"), strict=False)
    min_sites: int = Field(default=2, ge=1)
    max_honest: int | None = Field(default=None, ge=1)
    max_dimension: int = Field(default=5_000_000, ge=1, le=250_000_000)
    methods: tuple[Literal["gradient", "averaging", "one-shot"], ...] = Field(
        default=("gradient",), strict=False
    )
    own_models: bool = True
    max_message_age: Number = Field(default=600.0, ge=1, le=86400)

    def __str__(self) -> str:
        """The policy on one line.

        >>> print(PolicyTable(trust=("site",), max_honest=3))
        trust site; at least 2 sites, at most 3 honest; methods gradient; 5,000,000 numbers per round; own models
        """
        honest = f", at most {self.max_honest} honest" if self.max_honest else ""
        return (
            f"trust {', '.join(self.trust)}; at least {self.min_sites} sites{honest}; "
            f"methods {', '.join(self.methods)}; "
            f"{self.max_dimension:,} numbers per round; {'own' if self.own_models else 'no own'} models"
        )


class SiteConfig(_Table):
    """A whole ``site.toml``; paths in it are relative to its folder."""

    site: SiteTable
    data: CohortTable
    budget: BudgetTable
    policy: PolicyTable = PolicyTable()
    folder: Path = Field(default=Path(), exclude=True)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``site.toml`` in a site's folder; `InvalidValue` names the key, the rule and the remedy."""
        path = folder / "site.toml"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
            config = cls.model_validate({**values, "folder": folder})
        except FileNotFoundError:
            raise InvalidValue(
                f"{path} does not exist",
                "a site's folder must hold its settings",
                "make one with `fedveil site init`",
            ) from None
        except ValidationError as error:
            raise explain(error, str(path), InvalidValue, "correct it", cls) from None
        except (OSError, ValueError) as error:
            raise InvalidValue(f"{path} cannot be read ({error})", "it must be TOML", "correct it") from None
        if config.site.coordinator:
            check_public_key(config.site.coordinator)
        config.address()
        config.check_delta(config.budget.delta)
        return config

    def address(self) -> Address:
        """Where the service listens."""
        text = self.site.listen
        if text.startswith("unix:"):
            text = f"unix:{(self.folder / text.removeprefix('unix:')).absolute()}"
        token = self.folder / "token"
        try:
            return Address.parse(text, token if token.exists() else None)
        except ValueError as error:
            raise InvalidValue(
                f"site.listen: {error}",
                "a service may listen on this machine only",
                "use unix:site.sock, or tcp:127.0.0.1:PORT with a file named token",
            ) from None

    @property
    def message_limit(self) -> int:
        """The longest sealed message in bytes that a site with this policy accepts."""
        return 8 * self.policy.max_dimension + 2**21 + OVERHEAD

    def core_policy(self) -> Policy:
        """The part of the policy that `fedveil.federation.Site` enforces at every request."""
        return Policy(
            trusts=frozenset(self.policy.trust),
            min_sites=self.policy.min_sites,
            max_dimension=self.policy.max_dimension,
            max_units=None if self.budget.unit == "site" else self.budget.max_units,
        )

    def check(self, agreement: Agreement) -> None:
        """Refuse an agreement that the hospital's policy or its bound on units does not admit; independent of the
        images."""
        self.core_policy().check(agreement)
        self._check_units(agreement)
        method = _setting(agreement, "training", "method")
        if method not in self.policy.methods:
            raise Refused(
                f"the study trains with {method!r}",
                f"this site's policy allows {', '.join(self.policy.methods)}",
                "change the study's training.method, or the site's policy.methods",
            )
        allowed = self.policy.max_honest or default_min_honest(len(agreement.sites))
        if agreement.trust == "secure-aggregation" and agreement.honest > allowed:
            raise Refused(
                f"the guarantee assumes {agreement.honest} honest hospitals among {len(agreement.sites)}",
                f"this site's policy allows {allowed} at most",
                "reduce federation.min_honest in the study, or increase the site's policy.max_honest",
            )

    def budget_conflict(self, budget: Budget) -> str | None:
        """How the ledger's budget, which is enforced, differs from the one in ``site.toml``; None if it does not."""
        stated = Budget(self.budget.epsilon, self.budget.delta, self.budget.unit)
        if stated == budget:
            return None
        return (
            f"site.toml states a budget of {stated}, and the ledger, which is enforced, {budget}: "
            "amend the ledger with `fedveil ledger amend`, or correct site.toml"
        )

    def check_delta(self, delta: float) -> None:
        """Refuse a delta, of a budget or a study, above one over the bound on the number of units."""
        if self.budget.unit != "site" and delta * self.budget.max_units > 1:
            raise InvalidValue(
                f"delta is {delta:g} and budget.max_units is {self.budget.max_units:,}",
                "it must be at most 1 / max_units, otherwise it would allow publishing one unit's data outright",
                "reduce delta, or budget.max_units in site.toml if there will never be that many",
            )

    def _check_units(self, agreement: Agreement) -> None:
        """Refuse what one ledger cannot price for its own unit, and a delta above one over the bound on units.

        All studies on the same patients are charged to one ledger. A guarantee for a coarser unit also protects this
        ledger's unit, at a known price; a guarantee for a finer unit does not bound it.
        """
        if agreement.trust == "none":
            return
        for release in agreement.possible:
            try:
                release.mechanism.for_unit(self.budget.unit)
            except InvalidValue as error:
                raise Refused(
                    f"the study protects each {agreement.target.unit}, this site's budget protects each "
                    f"{self.budget.unit}: {error.found}",
                    error.rule,
                    f'set privacy.unit = "{self.budget.unit}" in the study, which protects its parts as well; a second '
                    "budget for the same patients would not count what the first one spent",
                ) from None
        self.check_delta(agreement.target.delta)


def _setting(agreement: Agreement, table: str, key: str) -> Any:
    values = agreement.settings.get(table)
    return values.get(key) if isinstance(values, dict) else None
