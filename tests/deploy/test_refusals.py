"""Why a node is turned away."""

import time
from email.utils import formatdate

import httpx
import pytest

from fedveil.deploy.flower.refusals import refusal


@pytest.mark.parametrize(
    ("ahead", "named"), [(400.0, "clock"), (-30.0, "clock"), (0.0, "does not know this node")]
)
def test_a_wrong_clock_is_told_from_an_unknown_key(ahead, named):
    response = httpx.Response(401, headers={"date": formatdate(time.time() - ahead, usegmt=True)})
    assert named in str(refusal(response))
