import math

import pytest
import torch
from PIL import Image

from models.residual import (
    Residual,
    bootstrap_stability,
    build_residual,
    embed_photos,
    residual_of_pairs,
    shift_residual,
    token_scores,
    token_table,
)
from utils.errors import UserError


def test_residual_of_two_known_directions():
    residual = build_residual(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    half = math.sqrt(0.5)
    assert residual.r.tolist() == pytest.approx([-half, half])
    assert residual.t == pytest.approx(half)
    assert (residual.n.tolist(), residual.p.tolist()) == ([1, 0], [0, 1])


def test_cells_and_pairs_have_vectors_of_their_own():
    x, y, z = torch.eye(3)
    half = math.sqrt(0.5)
    backlit = torch.stack([torch.stack([x, y]), torch.stack([x, y])])  # (2 images, 2 cells, 3)
    well_lit = torch.stack([torch.stack([y, z]), torch.stack([y, z])])
    expected = torch.stack([half * (y - x), half * (z - y)])
    residual = build_residual(backlit, well_lit)
    assert torch.allclose(residual.r, expected)
    assert residual.t.tolist() == pytest.approx([half, half])
    vectors, thresholds = residual_of_pairs(torch.stack([x, y]), torch.stack([y, z]))
    assert torch.allclose(vectors, expected)
    assert thresholds.tolist() == pytest.approx([half, half])


def test_no_photographs_give_no_embeddings(guidance_encoder):
    assert embed_photos(guidance_encoder, []).shape == (0, guidance_encoder.dim)


def test_photographs_are_taken_batch_by_batch(guidance_encoder):
    taken, seen = 0, []

    def photos():
        nonlocal taken
        for level in range(5):
            taken += 1
            yield Image.new("L", (40, 30), 40 * level)

    whole = guidance_encoder.embed

    def watch(images):
        seen.append((taken, len(images)))
        return whole(images)

    guidance_encoder.embed = watch
    try:
        embeddings = embed_photos(guidance_encoder, photos(), batch_size=2)
    finally:
        del guidance_encoder.embed
    assert seen == [(2, 2), (4, 2), (5, 1)]
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1.0] * 5)


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
