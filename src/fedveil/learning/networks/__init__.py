"""Networks that can be trained privately, by name: none has statistics of the images, none mixes patients.

`network("resnet18", classes=2, channels=1, image_size=28, seed=0)` takes images with values in [0, 1] to logits;
input scaling is part of it and public. From scratch: `cnn`, `resnet18`, `densenet121`, with group norm and
weight standardisation. From public weights: `efficientnet-lite0`, of which few parameters are
trained; `timm:NAME` where timm is installed, `timm:NAME@scratch` with random weights. One's own by the name of a
function that builds it, `module:package.function`.
`split_frozen` separates the constant part, which is computed only once, from the trained part. `replace_batch_norm`
and `fix_batch_norm` make other networks suitable.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.learning.networks.batch_norm import fix_batch_norm, replace_batch_norm
    from fedveil.learning.networks.convolutional import cnn, densenet121, resnet18
    from fedveil.learning.networks.foreign import timm_network
    from fedveil.learning.networks.layers import Centred, FixedBatchNorm2d, WeightStandardizedConv2d
    from fedveil.learning.networks.outputs import made_up
    from fedveil.learning.networks.own import is_own
    from fedveil.learning.networks.pretrained import efficientnet_lite0, split_frozen
    from fedveil.learning.networks.registry import NETWORKS, fixed_key, layers_of, network

__all__ = [
    "NETWORKS",
    "Centred",
    "FixedBatchNorm2d",
    "WeightStandardizedConv2d",
    "cnn",
    "densenet121",
    "efficientnet_lite0",
    "fix_batch_norm",
    "fixed_key",
    "is_own",
    "layers_of",
    "made_up",
    "network",
    "replace_batch_norm",
    "resnet18",
    "split_frozen",
    "timm_network",
]

__getattr__, __dir__ = on_first_use(__name__)
