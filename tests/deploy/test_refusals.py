"""Why a node is turned away, and which calls a SuperLink serves to other machines."""

import asyncio
import time
from email.utils import formatdate

import httpx
import pytest

from fedveil.deploy.flower.refusals import refusal
from fedveil.deploy.flower.superlink import FleetOnly


@pytest.mark.parametrize(
    ("ahead", "named"), [(400.0, "clock"), (-30.0, "clock"), (0.0, "does not know this node")]
)
def test_a_wrong_clock_is_told_from_an_unknown_key(ahead, named):
    response = httpx.Response(401, headers={"date": formatdate(time.time() - ahead, usegmt=True)})
    assert named in str(refusal(response))


@pytest.mark.parametrize(
    ("path", "client", "served"),
    [
        ("/v1/fleet/pull-messages", "192.0.2.7", True),
        ("/v1/control/register-node", "192.0.2.7", False),
        ("/v1/runtime/acquire-task", "192.0.2.7", False),
        ("/docs", "::ffff:192.0.2.7", False),
        ("/v1/control/register-node", "127.0.0.1", True),
        ("/v1/control/register-node", "::1", True),
        ("/v1/control/register-node", None, False),
        ("/v1/fleet/../control/register-node", "192.0.2.7", False),
    ],
)
def test_other_machines_reach_the_nodes_interface_only(path, client, served):
    reached, sent = [], []

    async def inner(scope, receive, send):
        reached.append(scope["path"])

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "path": path,
        "client": (client, 1) if client else None,
        "headers": [],
        "method": "POST",
    }
    asyncio.run(FleetOnly(inner)(scope, None, send))
    assert bool(reached) is served
    if not served:
        assert sent[0]["status"] == 403
