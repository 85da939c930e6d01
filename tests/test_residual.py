import math

import pytest
import torch

from models.residual import (
    Residual,
    build_residual,
    shift_residual,
    token_scores,
)
from utils.errors import UserError


def test_residual_of_two_known_directions():
    residual = build_residual(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    half = math.sqrt(0.5)
    assert residual.r.tolist() == pytest.approx([-half, half])
    assert residual.t == pytest.approx(half)
    assert (residual.n.tolist(), residual.p.tolist()) == ([1, 0], [0, 1])


def test_cells_have_vectors_of_their_own():
    x, y, z = torch.eye(3)
    half = math.sqrt(0.5)
    backlit = torch.stack([torch.stack([x, y]), torch.stack([x, y])])  # (2 images, 2 cells, 3)
    well_lit = torch.stack([torch.stack([y, z]), torch.stack([y, z])])
    expected = torch.stack([half * (y - x), half * (z - y)])
    residual = build_residual(backlit, well_lit)
    assert torch.allclose(residual.r, expected)
    assert residual.t.tolist() == pytest.approx([half, half])


def shifting_case() -> tuple[Residual, torch.Tensor]:
    r = torch.tensor([1.0, 0.0, 0.0])
    p = torch.tensor([0.6, 0.8, 0.0])
    vocabulary = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 1.0, 0.0], [0.1, 0.0, 9.0]])
    return Residual(r=r, t=0.6, n=torch.tensor([0.0, 1.0, 0.0]), p=p), vocabulary


def test_shift_removes_the_nearest_and_farthest_tokens_direction():
    residual, vocabulary = shifting_case()
    # Scores are +-sqrt(1/2): a = (1, 1) / sqrt 2, b = (1, -1) / sqrt 2, so q = (1, 0): all of r.
    with torch.no_grad():
        vocabulary[1] = torch.tensor([0.0, -1.0, 0.0])  # score 0: b is no direction, q = a
        vocabulary[2, 0] = 0.0
    shifted = shift_residual(residual, torch.cat([vocabulary, -vocabulary[:1]]), 1)
    # Now a = (1, 1) / sqrt 2 = b (the farthest is -v, its weight negative): q = a.
    half = math.sqrt(0.5)
    assert shifted.r.tolist() == pytest.approx([half, -half, 0], abs=1e-6)
    assert shifted.t == pytest.approx(half * (0.6 - 0.8), abs=1e-6)
    assert torch.equal(shifted.p, residual.p) and torch.equal(shifted.n, residual.n)


def test_shift_by_no_tokens_changes_nothing():
    residual, vocabulary = shifting_case()
    assert shift_residual(residual, vocabulary, 0) is residual


@pytest.mark.parametrize("n", [-1, 2])
def test_shift_by_too_many_tokens_is_an_error(n):
    residual, vocabulary = shifting_case()
    with pytest.raises(UserError, match=f"cannot remove {n} tokens.*0 to 1"):
        shift_residual(residual, vocabulary, n)


def test_token_scores_are_cosines():
    residual, vocabulary = shifting_case()
    half = math.sqrt(0.5)
    expected = [half, -half, 0.1 / math.hypot(0.1, 9)]
    assert token_scores(vocabulary, residual.r).tolist() == pytest.approx(expected)
