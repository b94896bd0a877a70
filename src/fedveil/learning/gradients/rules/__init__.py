"""One rule per kind of layer: how to run it on a tape, and what each unit's gradient is.

A rule replaces a module's `forward` while a tape records. It computes the same output with detached
parameters, and hands the tape one contribution per trainable parameter when the gradient at its output
arrives. `plan_rules` finds a module's rule by the *code that runs*, not by its class alone: a subclass that
overrides `forward` is another layer, and one without a rule of its own falls back (`fallback`).
"""

from fedveil.learning.gradients.rules.select import Plan, plan_rules

__all__ = ["Plan", "plan_rules"]
