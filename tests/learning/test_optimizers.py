"""Server optimisers against torch's, exact resume, and what DP-AdamBC promises."""

import io

import numpy as np
import pytest
import torch

from fedveil.errors import InvalidValue, StudyError
from fedveil.learning import Adam, Averaged, Pulled, Sgd

EVERY = [
    Sgd(learning_rate=0.5),
    Sgd(learning_rate=0.5, momentum=0.9, weight_decay=0.1),
    Adam(learning_rate=0.01),
    Averaged(optimizer=Sgd(learning_rate=0.5, momentum=0.9)),
    Averaged(optimizer=Adam(learning_rate=0.01, weight_decay=0.1), decay=0.9, skip=3),
    Pulled(optimizer=Sgd(learning_rate=0.5), start=np.array([[1.0, -2.0, 0.5, 3.0]]), clip_norm=2.0),
]


def gradients(steps, dimension=4, seed=0):
    return np.random.default_rng(seed).standard_normal((steps, dimension))


def run(optimizer, state, steps):
    for gradient in steps:
        state = optimizer.step(state, gradient, noise_variance=0.01)
    return state


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sgd(learning_rate=0.5), lambda p: torch.optim.SGD(p, lr=0.5)),
        (
            Sgd(learning_rate=0.5, momentum=0.9, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.1),
        ),
        (
            Adam(learning_rate=0.01, beta2=0.99, floor=1e-12, weight_decay=0.1),
            lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.99), eps=1e-12, weight_decay=0.1),
        ),
    ],
)
def test_without_noise_the_rules_are_those_of_torch(ours, theirs):
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    reference = theirs([parameter])
    state = ours.init(np.ones(4))
    for gradient in gradients(20):
        parameter.grad = torch.from_numpy(gradient)
        reference.step()
        state = ours.step(state, gradient)
        np.testing.assert_allclose(state.parameters, parameter.detach().numpy(), rtol=1e-9)


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
@pytest.mark.parametrize("stop", [0, 2, 7])
def test_resume_equals_uninterrupted(optimizer, stop):
    steps = gradients(12)
    whole = run(optimizer, optimizer.init(np.ones(4)), steps)
    state = run(optimizer, optimizer.init(np.ones(4)), steps[:stop])
    file = io.BytesIO()
    np.savez(file, **optimizer.to_arrays(state))
    file.seek(0)
    with np.load(file) as arrays:
        state = optimizer.from_arrays(dict(arrays))
    resumed = run(optimizer, state, steps[stop:])
    np.testing.assert_array_equal(optimizer.released(resumed), optimizer.released(whole))
    np.testing.assert_array_equal(optimizer.query(resumed), optimizer.query(whole))
    assert resumed.steps == whole.steps == 12


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
def test_a_step_leaves_the_state_before_untouched(optimizer):
    start = np.ones(4)
    state = run(optimizer, optimizer.init(start), gradients(3))
    before = {name: array.copy() for name, array in optimizer.to_arrays(state).items()}
    run(optimizer, state, gradients(2, seed=1))
    for name, array in optimizer.to_arrays(state).items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(start, np.ones(4))


def test_polyak_average_is_the_mean_of_the_iterates_after_the_skip():
    optimizer = Averaged(optimizer=Sgd(learning_rate=0.5, momentum=0.5), skip=2)
    state, iterates = optimizer.init(np.zeros(4)), []
    for number, gradient in enumerate(gradients(9), 1):
        state = optimizer.step(state, gradient)
        iterates.append(optimizer.query(state))
        expected = np.mean(iterates[2:], axis=0) if number > 2 else iterates[-1]
        np.testing.assert_allclose(optimizer.released(state), expected)


def test_moving_average_weighs_the_past_by_decay_without_start_up_bias():
    optimizer = Averaged(optimizer=Sgd(learning_rate=0.5), decay=0.8)
    state, iterates = optimizer.init(np.zeros(4)), []
    for gradient in gradients(9):
        state = optimizer.step(state, gradient)
        iterates.append(optimizer.query(state))
        weights = 0.8 ** np.arange(len(iterates))[::-1]
        np.testing.assert_allclose(
            optimizer.released(state), np.average(iterates, axis=0, weights=weights), rtol=1e-9
        )


def test_adam_takes_the_noise_out_of_its_second_moment():
    """A gradient of 1 under noise of +-5 moves corrected Adam by eta a step, plain Adam by eta / sqrt(26)."""
    optimizer = Adam(learning_rate=1.0, beta1=0.99, beta2=0.999)
    corrected = plain = optimizer.init(np.zeros(1))
    for step in range(2000):
        gradient = np.array([1.0 + 5.0 * (-1) ** step])
        before_corrected, before_plain = corrected.parameters, plain.parameters
        corrected = optimizer.step(corrected, gradient, noise_variance=25.0)
        plain = optimizer.step(plain, gradient)
    assert before_corrected - corrected.parameters == pytest.approx(1.0, rel=0.05)
    assert before_plain - plain.parameters == pytest.approx(1 / np.sqrt(26), rel=0.05)


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
@pytest.mark.parametrize("gradient", [np.full(4, np.nan), np.full(4, np.inf), np.zeros(3), np.zeros((4, 1))])
def test_broken_gradients_are_refused(optimizer, gradient):
    with pytest.raises(InvalidValue, match="gradient"):
        optimizer.step(optimizer.init(np.zeros(4)), gradient)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sgd(learning_rate=0),
        lambda: Sgd(learning_rate=float("nan")),
        lambda: Sgd(learning_rate=1, momentum=1.0),
        lambda: Adam(learning_rate=1, beta2=1.0),
        lambda: Adam(learning_rate=1, floor=0.0),
        lambda: Averaged(optimizer=Sgd(learning_rate=1), decay=1.0),
        lambda: Averaged(optimizer=Sgd(learning_rate=1), skip=-1),
        lambda: Averaged(optimizer=Averaged(optimizer=Sgd(learning_rate=1))),
        lambda: Sgd(learning_rate=1).init(np.array([np.nan])),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(InvalidValue):
        make()


def test_a_checkpoint_of_another_optimizer_is_refused():
    sgd, adam = Sgd(learning_rate=1), Adam(learning_rate=1)
    with pytest.raises(StudyError, match="not those of this optimiser"):
        adam.from_arrays(sgd.to_arrays(sgd.init(np.zeros(3))))
    arrays = sgd.to_arrays(sgd.init(np.zeros(3)))
    for change in ({"moment.velocity": np.zeros(2)}, {"steps": np.array(-1)}, {"parameters": np.array("x")}):
        with pytest.raises(StudyError):
            sgd.from_arrays(arrays | change)
