"""NVIDIA FLARE's privacy filters, as mechanisms: a client's weight difference to what the filter lets out."""

import logging

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy

logging.disable(logging.CRITICAL)
WIDTH = 20


def _filtered(a_filter, weights):
    given = DXO(DataKind.WEIGHT_DIFF, data={name: value.copy() for name, value in weights.items()})
    return a_filter.process_dxo(given, Shareable(), FLContext()).data


def svt(weights):
    """A tenth of 20 weights; the filter's own accountant says epsilon 0.5 + 0.5 for one call."""
    svt = SVTPrivacy(fraction=0.1, epsilon=0.5, epsilon_release=0.5, gamma=1.0, tau=0.5)
    output = _filtered(svt, weights)
    assert abs(svt.get_privacy_spent() - 1.0) < 1e-9
    return output


def svt_small(weights):
    """The same with the default gamma and tau, for weights of their size."""
    svt = SVTPrivacy(fraction=0.1, epsilon=0.5, epsilon_release=0.5)
    return _filtered(svt, weights)


def percentile(weights):
    """The largest nine tenths of the weights, truncated. The documentation states no epsilon."""
    return _filtered(PercentilePrivacy(percentile=10, gamma=1.0), weights)


def _weights(value, **more):
    return {"layer": np.asarray(value, dtype=float), **{name: np.asarray(one) for name, one in more.items()}}


def layers():
    """Two clients' weight differences, within the filter's truncation."""
    axis = np.eye(1, WIDTH)[0]
    return [
        ("one weight at the bound", _weights(0 * axis), _weights(axis)),
        ("all weights at the bound", _weights(np.zeros(WIDTH)), _weights(np.ones(WIDTH))),
        ("opposite weights", _weights(-np.ones(WIDTH)), _weights(np.ones(WIDTH))),
    ]


def small_layers():
    """The same at the filter's default truncation."""
    return [
        ("one weight at the bound", _weights(np.zeros(WIDTH)), _weights(1e-5 * np.eye(1, WIDTH)[0])),
        ("opposite weights", _weights(-1e-5 * np.ones(WIDTH)), _weights(1e-5 * np.ones(WIDTH))),
    ]


def scalars():
    """Weights with a scalar parameter, such as a temperature."""
    return [
        (
            "a scalar parameter",
            _weights(np.zeros(WIDTH), temperature=0.0),
            _weights(np.zeros(WIDTH), temperature=1.0),
        )
    ]
