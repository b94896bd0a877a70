"""The public names: pinned, lazy, and the same to a type checker as to a program."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedveil
from fedveil.cli.main import COMMANDS
from fedveil.cli.site import SITE_COMMANDS

PINNED = [
    "AuditResult",
    "Budget",
    "BudgetExceeded",
    "DataError",
    "Dataset",
    "FedveilError",
    "Guarantee",
    "InvalidValue",
    "Ledger",
    "Measurement",
    "Mechanism",
    "Plan",
    "PrivateGradients",
    "PrivateLinearClassifier",
    "Run",
    "Study",
    "StudyError",
    "TrainedModel",
    "__version__",
    "audit_mechanism",
    "audit_study",
    "calibrate",
    "epsilon",
    "load",
    "plan",
    "private_steps",
    "run",
    "sweep",
]
SOURCE = Path(fedveil.__file__).parent
HEAVY = ("torch", "scipy", "sklearn", "matplotlib", "dp_accounting", "numpy", "pydantic", "opacus", "rich")


def test_the_public_names_are_these_and_no_others():
    assert fedveil.__all__ == PINNED
    assert set(PINNED) <= set(dir(fedveil))


@pytest.mark.parametrize("name", PINNED)
def test_every_public_name_is_there_and_documented(name):
    found = getattr(fedveil, name)
    assert name == "__version__" or found.__doc__


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'epsillon'"):
        fedveil.epsillon  # noqa: B018


def test_a_type_checker_sees_the_same_names():
    tree = ast.parse(Path(fedveil.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {"__version__"} == set(PINNED)


def test_names_from_one_place_are_the_same_object():
    from fedveil.study import Study

    assert fedveil.Study is Study


LAZY = sorted(
    ".".join(path.parent.relative_to(SOURCE.parent).parts)
    for path in SOURCE.rglob("__init__.py")
    if "on_first_use(__name__)" in path.read_text()
)


@pytest.mark.parametrize("package", LAZY)
def test_a_package_that_loads_on_first_use_has_all_that_it_names(package):
    """A module of the same name would take the place of what is exported as soon as it is imported."""
    module = importlib.import_module(package)
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
        assert name not in modules, f"{package}.{name} is a module too"
    with pytest.raises(AttributeError, match="no attribute 'epsillon'"):
        module.epsillon  # noqa: B018


def loaded_after(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after some code."""
    listed = (
        f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stderr.splitlines()[-1]))


def test_importing_the_library_loads_nothing_heavy():
    assert loaded_after("import fedveil; fedveil.__version__; dir(fedveil)") == set()


def test_help_loads_nothing_heavy():
    ask = "import sys; sys.argv = ['fedveil', '--help']\nfrom fedveil.cli import main\n"
    assert loaded_after(ask + "try: main()\nexcept SystemExit: pass") == set()


LIGHT = (
    *("init", "run", "demo", "predict", "report", "data", "data check", "ledger", "ledger show", "site"),
    *("coordinate", "federation", "federation init", "statement", "statement verify"),
    *("encoder", "encoder add"),
    *(f"site {command.name}" for command in SITE_COMMANDS),
)
LAYERS = {"torch", "scipy", "sklearn", "matplotlib", "dp_accounting", "numpy"}


def test_the_help_of_a_command_loads_no_layer():
    """One process asks for them all; rich and pydantic are what a command line is made of."""
    ask = (
        "import sys\nfrom fedveil.cli import main\n"
        f"for words in {LIGHT!r}:\n"
        "    sys.argv = ['fedveil', *words.split(), '--help']\n"
        "    try: main()\n"
        "    except SystemExit: pass"
    )
    assert loaded_after(ask) & LAYERS == set()


def test_completion_loads_nothing_heavy():
    ask = (
        "import typer\nfrom fedveil.cli import app\ngroup = typer.main.get_command(app)\n"
        "found = group.shell_complete(typer.Context(group), 'p')\n"
        "assert [one.value for one in found] == ['plan', 'predict'], found"
    )
    assert loaded_after(ask) == set()


def test_a_heavy_package_would_be_seen():
    assert "torch" in loaded_after("import fedveil; fedveil.PrivateGradients")


def test_the_package_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "fedveil", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, f"fedveil {fedveil.__version__}")


@pytest.mark.parametrize("command", [*COMMANDS, *SITE_COMMANDS], ids=lambda command: command.name)
def test_help_says_of_a_command_what_the_command_says(command):
    own = command.load()
    assert own.name == command.name
    assert (own.help or "").partition("\n")[0] == command.help
