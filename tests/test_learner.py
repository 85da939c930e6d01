import copy

import pytest
import torch
from torch import nn

from training.learner import Learner

DECAY = 0.9


def weight(module):
    return module.weight.item()


def stepped(learner, steps=1):
    """Take steps down a constant slope; return the weights that they led to."""
    weights = []
    for _ in range(steps):
        learner.clear_gradients()
        learner.backward(learner.module.weight.sum())
        learner.step()
        weights.append(weight(learner.module))
    return weights


@pytest.fixture
def plain():
    return Learner.create(nn.Linear(1, 1, bias=False), lr=0.1, weight_decay=0)


@pytest.fixture
def averaging():
    return Learner.create(nn.Linear(1, 1, bias=False), 0.1, weight_decay=0, ema_decay=DECAY)


def test_adams_first_step_is_as_long_as_the_learning_rate(plain):
    start = weight(plain.module)
    assert stepped(plain) == [pytest.approx(start - 0.1)]
    assert plain.result() is plain.module


def test_the_best_weights_are_a_copy(plain):
    best = weight(plain.module)
    plain.keep_best()
    stepped(plain, 2)
    plain.return_to_best()
    assert weight(plain.module) == best


def test_no_best_weights_leave_the_present_ones(plain):
    (present,) = stepped(plain)
    plain.return_to_best()
    assert weight(plain.module) == present


def test_an_average_stands_for_the_module(averaging):
    first, second, third = stepped(averaging, 3)  # the first step's weights begin the average
    average = DECAY * (DECAY * first + (1 - DECAY) * second) + (1 - DECAY) * third
    assert weight(averaging.result()) == pytest.approx(average)
    averaging.keep_best()
    stepped(averaging)
    averaging.return_to_best()
    assert weight(averaging.module) == weight(averaging.result()) == pytest.approx(average)


def test_a_restart_forgets_all_but_the_settings(averaging):
    stepped(averaging, 2)
    averaging.keep_best()
    other = nn.Linear(1, 1, bias=False)
    averaging.restart(other)
    assert weight(averaging.module) == weight(averaging.result()) == weight(other)
    averaging.return_to_best()  # there is none any more
    (after,) = stepped(averaging)
    assert after == pytest.approx(weight(other) - 0.1)
    assert weight(averaging.result()) == after


def test_a_gradient_is_clipped(plain):
    plain.backward(100 * plain.module.weight.sum())
    plain.step(clip_grad_norm=0.5)
    assert plain.module.weight.grad.item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["plain", "averaging"])
def test_a_restored_learner_goes_on_alike(name, request):
    learner = request.getfixturevalue(name)
    stepped(learner, 2)
    learner.keep_best()
    ema_decay = 0 if learner.average is None else DECAY
    restored = Learner.create(nn.Linear(1, 1, bias=False), 0.1, 0, ema_decay)
    restored.load_state_dict(copy.deepcopy(learner.state_dict()))  # a file gives copies, too
    assert stepped(restored, 2) == stepped(learner, 2)
    assert weight(restored.result()) == weight(learner.result())
    for one in (learner, restored):
        one.return_to_best()
    assert torch.equal(restored.module.weight, learner.module.weight)
