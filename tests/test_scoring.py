import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.pairs import Pair
from evaluation import scoring
from evaluation.fid import fid
from evaluation.scoring import LeftOut, Scorer, Scores, save_preview, score_pairs
from utils.errors import WorkError

CPU = torch.device("cpu")


class Inception(nn.Module):
    """Gives two features that tell images apart; notes how many threads are in it at once."""

    def __init__(self, seconds: float = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 255.0]))
        self.seconds, self.inside, self.most, self.lock = seconds, 0, 0, threading.Lock()

    def forward(self, images):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(self.seconds)
        with self.lock:
            self.inside -= 1
        return [(images.mean((1, 2, 3))[:, None] * self.weight)[..., None, None]]


class Waiter:
    """In place of a `Scorer`: takes some time for each pair, and gives it back."""

    def __init__(self, seconds: tuple[float, ...] = (0,)):
        self.seconds, self.begun, self.lock = seconds, 0, threading.Lock()

    def score(self, pair):
        with self.lock:
            self.begun += 1
        time.sleep(self.seconds[pair % len(self.seconds)])
        return pair


class Failer(Waiter):
    def score(self, pair):
        super().score(pair)
        raise ZeroDivisionError


def threads() -> int:
    return min(scoring.MAX_THREADS, torch.get_num_threads())


def flat(path: Path, level: int, size: tuple[int, int] = (12, 9)) -> Path:
    Image.new("RGB", size, (level,) * 3).save(path)
    return path


@pytest.fixture
def pairs(tmp_path) -> list[Pair]:
    """Six pairs of flat images of 12 x 9; the enhanced ones are 100 levels brighter."""
    return [
        Pair(str(n), flat(tmp_path / f"{n}g.png", 10 * n), flat(tmp_path / f"{n}e.png", 100 + n))
        for n in range(6)
    ]


@pytest.mark.parametrize("seconds", [(0,), (0.1, 0, 0.02), (0, 0.1)])
def test_results_come_in_the_order_of_pairs_whoever_finishes_first(seconds):
    assert list(score_pairs(range(17), Waiter(seconds))) == list(range(17))


def test_pairs_are_scored_only_a_little_ahead():
    waiter, most = Waiter(), 2 * threads() + 1
    results = score_pairs(range(500), waiter)
    assert next(results) == 0
    time.sleep(0.2)
    assert waiter.begun <= most
    results.close()


def test_torch_gets_its_cores_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(score_pairs([1], Waiter())) == [1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_ends_the_run_and_what_waits_is_not_begun():
    failer = Failer((0.3,))  # until more are waiting
    with pytest.raises(ZeroDivisionError):
        list(score_pairs(range(100), failer))
    assert failer.begun <= 2 * threads()  # of 2 * threads + 1 that were handed out


def test_what_has_begun_is_left_behind_when_the_run_ends():
    class Stuck(Waiter):
        go_on, ended = threading.Event(), 0

        def score(self, pair):
            super().score(pair)
            self.go_on.wait(60)
            self.ended += 1

    results = score_pairs(range(9), stuck := Stuck(), patience=0.1)
    assert next(results) is None
    results.close()
    assert stuck.begun and not stuck.ended
    stuck.go_on.set()


def test_a_pair_has_the_scores_of_its_protocols_and_its_features(pairs):
    scorer = Scorer(CPU, ["standard", "released"], ["psnr", "fid"], {"fid": Inception()})
    scores = scorer.score(pairs[2])
    psnr = 20 * math.log10(255 / 82)
    assert scores.values["standard"] == {"psnr": pytest.approx(psnr)}
    assert scores.values["released"] == {"psnr": pytest.approx(psnr)}
    assert scores.size == (12, 9) and not scores.previews
    expected = np.array([[20 / 255, 20], [102 / 255, 102]])  # ground truth first
    assert scores.features == pytest.approx(expected, rel=1e-5)


def test_fid_is_the_same_in_every_run(pairs):
    def run(seconds: float):
        scorer = Scorer(CPU, ["standard"], ["fid"], {"fid": Inception(seconds)})
        features = np.stack([scores.features for scores in score_pairs(pairs, scorer)], axis=1)
        return features, fid(*features)

    (features, distance), (others, other_distance) = run(0), run(0.02)
    assert features.shape == (2, 6, 2)
    assert features[0, :, 1] == pytest.approx([0, 10, 20, 30, 40, 50])
    assert np.array_equal(features, others) and distance == other_distance


def test_only_a_cpu_computes_several_pairs_at_once(pairs):
    for device, most in ("cpu", min(6, threads())), ("cuda", 1):
        network = Inception(0.2)
        scorer = Scorer(torch.device(device), ["standard"], ["fid"], {"fid": network})
        assert len(list(score_pairs(pairs, scorer))) == 6
        assert network.most == most


@pytest.mark.parametrize(("pixels", "together"), [(1, False), (10**6, True)])
def test_networks_look_at_few_pixels_at_once(pairs, monkeypatch, pixels, together):
    monkeypatch.setattr(scoring, "PIXELS_AT_ONCE", pixels)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    network = Inception(0.05)
    scorer = Scorer(CPU, ("standard",), ("fid",), {"fid": network})
    assert len(list(score_pairs([*pairs, *pairs], scorer))) == 2 * len(pairs)
    assert (network.most > 1) == together


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried")])
def test_a_pair_that_memory_does_not_suffice_for_is_left_out(error, pairs, monkeypatch):
    def fidelity(gt, *_):
        if gt[0, 0, 0] == 20:
            raise error
        return {"psnr": 1.0}

    monkeypatch.setattr(scoring, "fidelity", fidelity)
    results = list(score_pairs(pairs, Scorer(CPU, ["standard"], ["psnr"])))
    assert [isinstance(result, Scores) for result in results] == [True] * 2 + [False] + [True] * 3
    reason = f"{pairs[2].gt} and {pairs[2].enhanced} need more memory than there is"
    assert results[2] == LeftOut([reason])


def test_other_errors_of_torch_are_no_lack_of_memory(pairs, monkeypatch):
    def fidelity(*_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(scoring, "fidelity", fidelity)
    with pytest.raises(RuntimeError, match="illegal"):
        Scorer(CPU, ["standard"], ["psnr"]).score(pairs[0])


def test_previews_are_small_pictures_of_all_versions(tmp_path):
    versions = [flat(tmp_path / f"{n}.png", 90 * n, (400, 200)) for n in range(3)]
    pair = Pair("1", *versions)
    (tmp_path / "previews").mkdir()
    scorer = Scorer(CPU, ["standard"], ["psnr"], {}, False, tmp_path / "previews", 100)
    scores = scorer.score(pair)
    assert set((tmp_path / "previews").iterdir()) == set(scores.previews.values())
    for level, version in enumerate(("gt", "enhanced", "input")):
        with Image.open(scores.previews[version]) as image:
            assert image.size == (100, 50) and image.format == "WEBP"
            assert np.asarray(image) == pytest.approx(90 * level, abs=3)


def test_previews_of_100_images_make_a_page_of_about_20_megabytes(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (50, 75, 3), dtype=np.uint8)
    smooth = np.array(Image.fromarray(photo).resize((1200, 800)))
    assert save_preview(smooth, tmp_path, 640).stat().st_size < 60_000  # 4 / 3 of it as base64


def test_a_preview_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(WorkError, match=r"cannot write the report's previews.*set TMPDIR"):
        save_preview(np.zeros((9, 9, 3), np.uint8), tmp_path / "missing", 100)
