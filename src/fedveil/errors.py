"""Every error that fedveil raises on purpose, and the one shape that their messages have.

::

    FedveilError                    found; rule: remedy.
    ├── InvalidValue                a number, name or setting that cannot be used
    ├── StudyError                  the study file or the run directory
    ├── DataError                   images, labels, manifests, patients
    ├── BudgetExceeded              a charge that would pass a site's budget; nothing was released
    ├── LedgerError                 a ledger that is damaged, rolled back, or held by someone else
    ├── Refused                     a site will not do what a request asks; nothing was charged
    └── FederationError             too few sites are left, a peer broke the protocol
"""

__all__ = [
    "BudgetExceeded",
    "DataError",
    "FederationError",
    "FedveilError",
    "InvalidValue",
    "LedgerError",
    "Refused",
    "StudyError",
    "printable",
]


def printable(text: str) -> str:
    """The text on one line, without what could steer a terminal: it may quote files and messages of others.

    >>> printable("label is a\\x1b[2J")
    'label is a�[2J'
    """
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


class FedveilError(Exception):
    """A mistake or a refusal that a person can act on.

    >>> print(InvalidValue("rate is 1.4", "it must lie in (0, 1]", "give the fraction of patients in one step"))
    rate is 1.4; it must lie in (0, 1]: give the fraction of patients in one step.
    """

    def __init__(self, found: str, rule: str, remedy: str) -> None:
        found, rule, remedy = printable(found), printable(rule), printable(remedy)
        super().__init__(f"{found}; {rule}: {remedy.rstrip('.')}.")
        self.found, self.rule, self.remedy = found, rule, remedy

    def __reduce__(self) -> tuple[type["FedveilError"], tuple[str, str, str]]:
        return type(self), (self.found, self.rule, self.remedy)


class InvalidValue(FedveilError, ValueError):
    """A number, name or setting that cannot be used."""


class StudyError(FedveilError):
    """The study file or the run directory is not usable as it stands."""


class DataError(FedveilError):
    """Images, labels, patients or a manifest are not usable as they stand."""


class BudgetExceeded(FedveilError):
    """A charge would pass a site's budget; nothing was released."""


class LedgerError(FedveilError):
    """A ledger is damaged, was edited or rolled back, or is held by another process."""


class Refused(FedveilError):
    """A site will not do what a request asks; nothing was charged."""


class FederationError(FedveilError):
    """Too few sites are left to go on, or a peer broke the protocol."""
