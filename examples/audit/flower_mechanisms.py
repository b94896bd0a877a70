"""Flower's wrappers for differential privacy, as mechanisms: a list of clients' updates to what the server releases.

Each list holds one update per client; a client that does not take part sends an update of (nearly) nothing, since the
wrappers assume a fixed number of clients per round.
"""

import logging

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # what a running server app has
logging.getLogger("flwr").setLevel(logging.ERROR)

CLIENTS, WIDTH, CLIP, MULTIPLIER = 5, 8, 1.0, 1.0
NOTHING = 1e-9  # the wrappers divide by an update's norm


def _arrays(vector):
    return ArrayRecord({"weights": Array(np.asarray(vector, dtype=np.float64))})


def _replies(updates, examples):
    """Answers to a round whose model is 0."""
    replies = []
    for number, (update, count) in enumerate(zip(updates, examples, strict=True)):
        asked = Message(RecordDict({"arrays": _arrays(np.zeros(WIDTH))}), number + 1, "train")
        content = RecordDict(
            {"arrays": _arrays(update), "metrics": MetricRecord({"num-examples": count, "loss": 0.0})}
        )
        replies.append(Message(content, reply_to=asked))
    return replies


def _round(strategy, updates, examples):
    strategy.current_arrays = _arrays(np.zeros(WIDTH))
    arrays, _ = strategy.aggregate_train(1, _replies(updates, examples))
    return arrays.to_numpy_ndarrays()[0]


def fixed_clipping(updates):
    """Clients with the same number of examples: noise of MULTIPLIER x CLIP in the sum."""
    strategy = DifferentialPrivacyServerSideFixedClipping(FedAvg(), MULTIPLIER, CLIP, CLIENTS)
    return _round(strategy, updates, [100] * CLIENTS)


def fixed_clipping_weighted(updates):
    """The last client has nine tenths of all examples, by which FedAvg weighs."""
    strategy = DifferentialPrivacyServerSideFixedClipping(FedAvg(), MULTIPLIER, CLIP, CLIENTS)
    return _round(strategy, updates, [100] * (CLIENTS - 1) + [3600])


def _local(update, sensitivity):
    """One client's answer through the modifier for local differential privacy, at epsilon 4 and delta 0.01."""
    mod = LocalDpMod(CLIP, sensitivity, 4.0, 0.01)
    asked = Message(RecordDict({"arrays": _arrays(np.zeros(WIDTH))}), 1, "train")

    def client(message, context):
        del context
        return Message(RecordDict({"arrays": _arrays(update)}), reply_to=message)

    answer = mod(asked, Context(0, 0, {}, RecordDict(), {}), client)
    return answer.content["arrays"].to_numpy_ndarrays()[0]


def local(updates):
    """The sensitivity is given as the clip norm."""
    return _local(updates[0], CLIP)


def local_twice(updates):
    """The sensitivity is given as twice the clip norm, the distance of two clipped updates."""
    return _local(updates[0], 2 * CLIP)


def clients():
    """The last client's update is at the bound, or nothing."""
    axis, nothing = np.eye(1, WIDTH)[0] * CLIP, np.full(WIDTH, NOTHING)
    others = [nothing] * (CLIENTS - 1)
    return [
        ("one client's update at the bound", [*others, nothing], [*others, axis]),
        ("one client's update far beyond the bound", [*others, nothing], [*others, 1000 * axis]),
    ]


def updates():
    """Any two updates of one client."""
    axis = np.eye(1, WIDTH)[0] * CLIP
    return [("opposite updates at the bound", [-axis], [axis])]
