"""How many of twenty planted faults an audit finds: `planted_faults_found`, each with its control.

    PYTHONPATH=. python benchmarks/planted_faults.py [NAME ...]

The control is the same audit without the fault; at 99 % confidence one in a hundred may raise a false alarm.
"""

import logging
import sys
import time

from tests.audit.planted import FAULTS, Fault

from fedveil.errors import InvalidValue


def _alarm(fault: Fault) -> bool:
    """Whether the audit suspects the product without the fault."""
    try:
        return fault.audit(planted=False).violated
    except InvalidValue:  # it opens nothing, so there is nothing to audit
        return False


def main() -> None:
    """Print the table."""
    logging.disable(logging.CRITICAL)
    names = sys.argv[1:] or list(FAULTS)
    sys.stdout.write(
        "| fault planted | found | epsilon charged | epsilon at least | seconds | alarm without the fault |\n"
        "|---|---|---|---|---|---|\n"
    )
    count = alarms = 0
    for name in names:
        fault = FAULTS[name]
        started = time.monotonic()
        found = fault.audit()
        seconds = time.monotonic() - started
        alarm = _alarm(fault)
        count, alarms = count + found.violated, alarms + alarm
        sys.stdout.write(
            f"| {fault.words} | {'yes' if found.violated else 'NO'} | {found.claim.epsilon():.2f} "
            f"| {found.epsilon:.2f} | {seconds:.0f} | {'YES' if alarm else 'no'} |\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"\nplanted_faults_found: {count} of {len(names)}; alarms without a fault: {alarms}\n")


if __name__ == "__main__":
    main()
