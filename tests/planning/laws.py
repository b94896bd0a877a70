"""Made-up laws of accuracy, for tests of what is predicted and recommended from them."""

from dataclasses import replace

from fedveil.planning import Reference
from fedveil.study import Recipe

TASK = Reference(
    name="made up",
    method="gradient",
    separation=2.8,
    patients=40.0,
    noise=80.0,
    power=1.5,
    spread=0.05,
    scatter=0.3,
    ratios=(10.0, 5000.0),
    sizes=(100.0, 3000.0),
    runs=100,
)
ONCE = replace(TASK, method="one-shot", noise=200.0)
GRADIENT, ONE_SHOT = Recipe(), Recipe(method="one-shot")
CNN, AVERAGING, TUNED = (
    Recipe(network="cnn"),
    Recipe(network="cnn", method="averaging"),
    Recipe(network="efficientnet-lite0"),
)


def laws(*known):
    """The laws of AUROC, and for each one of balanced accuracy that takes noise worse."""
    return {
        law.recipe: {
            "auroc": law,
            "balanced-accuracy": replace(
                law, metric="balanced-accuracy", separation=1.7, noise=2 * law.noise
            ),
        }
        for law in known
    }


def law_of(recipe, **changes):
    return replace(TASK, network=recipe.network, method=recipe.method, **changes)


LAWS, BOTH = laws(TASK), laws(TASK, ONCE)
DEEP = laws(TASK, ONCE, *(law_of(one) for one in (CNN, AVERAGING, TUNED)))
FIVE = (700, 600, 500, 400, 300)
