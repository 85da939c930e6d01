import math

import pytest
import torch

from models.interpretation import bootstrap_stability, token_table
from models.residual import Residual
from tests.test_residual import shifting_case


def test_stability_tells_one_direction_from_none():
    generator = torch.Generator().manual_seed(1)
    noise = 0.01 * torch.randn(2, 40, 8, generator=generator)
    backlit, well_lit = torch.eye(8)[0] + noise[0], torch.eye(8)[1] + noise[1]
    normalised = [torch.nn.functional.normalize(side, dim=1) for side in (backlit, well_lit)]
    assert bootstrap_stability(*normalised) > 0.999
    scattered = torch.nn.functional.normalize(torch.randn(80, 64, generator=generator), dim=1)
    unstable = bootstrap_stability(scattered[:40], scattered[40:])
    assert 0.2 < unstable < 0.8  # half of each resampled vector is its own draw's noise
    assert bootstrap_stability(scattered[:40], scattered[40:]) == unstable
    assert bootstrap_stability(scattered[:40], scattered[40:], seed=1) != unstable


def test_stability_of_identical_photographs_is_one():
    backlit, well_lit = torch.eye(3)[:1].repeat(4, 1), torch.eye(3)[1:2].repeat(2, 1)
    assert bootstrap_stability(backlit, well_lit, resamples=3) == pytest.approx(1, abs=1e-6)


def test_token_table_ranks_before_and_after():
    residual, vocabulary = shifting_case()
    shifted = Residual(torch.tensor([0.0, 0.0, 1.0]), 0.0, residual.n, residual.p)
    rows = token_table(["up", "down", "side"], vocabulary, residual, shifted, count=1)
    half = pytest.approx(math.sqrt(0.5))
    assert [(row["vector"], row["end"], row["rank"], row["token"]) for row in rows[:3]] == [
        ("before", "nearest", 1, "up"),
        ("before", "farthest", 1, "down"),
        ("after", "nearest", 1, "side"),
    ]
    assert rows[0]["score_before"] == half and rows[0]["score_after"] == 0
    assert rows[2]["score_after"] == pytest.approx(9 / math.hypot(0.1, 9))


def test_token_table_without_a_shift():
    residual, vocabulary = shifting_case()
    rows = token_table(["up", "down", "side"], vocabulary, residual, count=2)
    assert [(row["end"], row["token"]) for row in rows] == [
        ("nearest", "up"),
        ("nearest", "side"),
        ("farthest", "down"),
        ("farthest", "side"),
    ]
    assert {row["score_after"] for row in rows} == {""}
