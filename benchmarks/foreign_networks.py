"""How many networks of timm private training takes without running a layer once per patient: one JSON line.

    python benchmarks/foreign_networks.py [--only swin_tiny_patch4_window7_224 ...] [--sizes 64 224] [--verbose]

Each of 43 architectures, small variants with random weights, is built as `model.network = "timm:NAME@scratch"` builds
it, and tried out on made-up images of the first size at which it runs. A network counts if its trial passes, no layer
runs once per patient, and the clipped sum over three patients with one to three images agrees with a plain loop over
patients to 1e-7 in double precision. The trial compares patient by patient. For each other network the line states
what it is refused with.
"""

import argparse
import json
import sys
import time
import warnings
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import PrivateGradients, trainable_parameters, try_out
from fedveil.learning.networks import network

NAMES = [
    "resnet18",
    "resnetv2_50",
    "densenet121",
    "regnety_002",
    "repvgg_a0",
    "efficientnet_b0",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "ghostnet_050",
    "eca_nfnet_l0",
    "convnext_atto",
    "convnextv2_atto",
    "inception_next_atto",
    "vit_tiny_patch16_224",
    "cait_xxs24_224",
    "eva02_tiny_patch14_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "maxvit_rmlp_pico_rw_256",
    "coatnet_nano_rw_224",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "levit_128s",
    "xcit_nano_12_p16_224",
    "pvt_v2_b0",
    "poolformer_s12",
    "mixer_s32_224",
    "resmlp_12_224",
    "gmlp_ti16_224",
    "twins_pcpvt_small",
    "pit_ti_224",
    "visformer_tiny",
    "coat_lite_tiny",
    "edgenext_xx_small",
    "efficientformer_l1",
    "fastvit_t8",
    "efficientvit_b0",
    "tiny_vit_5m_224",
    "davit_tiny",
    "focalnet_tiny_srf",
    "mvitv2_tiny",
    "tnt_s_patch16_224",
]
TOLERANCE = 1e-7
loss_of_each = partial(functional.cross_entropy, reduction="none")


def outcome(name: str, sizes: list[int]) -> str:
    """Empty if the network is taken at one of the sizes, otherwise what it is refused with at the last of them."""
    refusal = ""
    for size in sizes:
        try:
            torch.manual_seed(0)
            model = network(f"timm:{name}@scratch", classes=2, channels=1, image_size=size, seed=0)
            model = model.eval().double()
            trial = try_out(model, (1, size, size))
            if trial.notices:
                refusal = f"{size} px: {len(trial.notices)} slow: {trial.notices[0]}"
                continue
            error = largest_error(model, PrivateGradients(model, loss_of_each, 1.0, trial=trial), size)
        except InvalidValue as refused:
            refusal = f"{size} px: {refused}"
            continue
        if error < TOLERANCE:
            return ""
        refusal = f"{size} px: the clipped sum differs from that of a plain loop by {error:.2g}"
    return refusal


def largest_error(model: nn.Module, engine: PrivateGradients, size: int) -> float:
    """Norm of the error of the sum over patients, relative to the sum's, against one backward pass per patient."""
    images, labels = torch.rand(6, 1, size, size, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    patients, parameters = torch.tensor([0, 1, 1, 2, 2, 2]), list(trainable_parameters(model).values())
    expected: Tensor | float = 0.0
    for patient in patients.unique():
        mine = patients == patient
        loss = loss_of_each(model(images[mine]), labels[mine]).mean()
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        gradient = torch.cat([g.flatten() for g in found]).double()
        expected = expected + gradient * min(1.0, 1.0 / float(gradient.norm()))
    assert isinstance(expected, Tensor)
    vector = engine.sum(images, labels, patients).vector.double()
    return float((vector - expected).norm() / expected.norm())


def main() -> None:
    """Try what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, help="which networks")
    parser.add_argument("--sizes", nargs="*", type=int, default=[64, 224], help="pixels, tried in this order")
    parser.add_argument("--verbose", action="store_true", help="one line for each network on standard error")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # timm's deprecations
    refusals = {}
    for name in arguments.only:
        start, refusal = time.perf_counter(), outcome(name, arguments.sizes)
        if arguments.verbose:
            seconds = time.perf_counter() - start
            print(f"{name}: {refusal or 'taken'} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        if refusal:
            refusals[name] = refusal
    taken = len(arguments.only) - len(refusals)
    print(
        json.dumps({"figure": "timm_networks_taken", "value": taken, "of": len(arguments.only), **refusals})
    )


if __name__ == "__main__":
    main()
