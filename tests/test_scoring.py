import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.pairs import Pair
from evaluation import scoring
from evaluation.scoring import LeftOut, Loaded, Networks, Scores, score_pairs

CPU = torch.device("cpu")
INCEPTION_BYTES = 2 * 3 * 2 * 2 * 4  # of the small images below


class Inception(nn.Module):
    """Gives 2048 features that tell the images apart."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(2048.0))

    def forward(self, images):
        return [(images.mean((1, 2, 3))[:, None] * self.weight)[..., None, None]]


def loaded(number: int, size=(4, 3), image_bytes: int = 0) -> Loaded:
    pair = Pair(str(number), Path(f"gt/{number}"), Path(f"enhanced/{number}"))
    sides = np.zeros(image_bytes, np.uint8), np.zeros(0, np.uint8)
    images = torch.full((2, 3, 2, 2), float(number))
    return Loaded(Scores(pair, size, {"standard": {}}), {"standard": sides}, images)


def numbers(results) -> list[int]:
    return [int(scores.pair.name) for scores in results]


def test_every_pair_is_scored_once_and_left_out_ones_pass_through():
    def load(number):
        return LeftOut(["broken"]) if number == 5 else loaded(number, (number % 3, 1))

    networks = Networks(CPU, fid=Inception())
    results = list(score_pairs(range(40), load, networks))
    scored = [result for result in results if isinstance(result, Scores)]
    assert sorted(numbers(scored)) == [number for number in range(40) if number != 5]
    assert [result for result in results if isinstance(result, LeftOut)] == [LeftOut(["broken"])]
    assert networks.gt.count == networks.enhanced.count == 39
    mean = sum(number for number in range(40) if number != 5) / 39
    assert networks.gt.mean == pytest.approx(mean * np.arange(2048))


def test_order_is_the_same_in_every_run():
    def run():
        load = lambda number: loaded(number, (number % 4, 1))  # noqa: E731
        return numbers(score_pairs(range(50), load, Networks(CPU)))

    assert run() == run()


def test_batches_are_of_one_size():
    items = [loaded(number, (number % 2, 1)) for number in range(20)]
    batches = list(scoring._batches(items, 8))
    assert [len(batch) for batch in batches] == [8, 8, 2, 2]
    assert all(len({item.scores.size for item in batch}) == 1 for batch in batches)


def test_without_lpips_sizes_do_not_matter():
    pairs = [loaded(number, (number, 1)) for number in range(20)]
    for pair in pairs:
        pair.lpips_pixels = {}
    assert [len(batch) for batch in scoring._batches(pairs, 8)] == [8, 8, 4]


def test_pairs_of_many_sizes_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(scoring, "WAITING_BYTES", 1000)
    produced = 0

    def produce():
        nonlocal produced
        for produced in range(1, 31):
            yield loaded(produced, (produced, 1), image_bytes=300 - INCEPTION_BYTES)

    consumed = 0
    for batch in scoring._batches(produce(), 8):
        assert produced - consumed <= 4  # of 300 bytes each
        consumed += len(batch)
    assert consumed == 30


def test_files_are_read_only_a_little_ahead():
    reading = threading.Lock()
    read = 0

    def load(number):
        nonlocal read
        with reading:
            read += 1
        return loaded(number)

    results = score_pairs(range(500), load, Networks(CPU))
    next(results)
    workers = min(scoring.MAX_WORKERS, torch.get_num_threads())
    assert read <= scoring.BATCH_ON_CPU * (workers + 2) + 3 * workers + 2
    results.close()


def test_torch_gets_its_cores_back():
    before = torch.get_num_threads()
    list(score_pairs([1], loaded, Networks(CPU)))
    assert torch.get_num_threads() == before


def test_an_error_while_reading_ends_the_run():
    def load(number):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(score_pairs(range(3), load, Networks(CPU)))


def test_what_waits_is_not_begun_after_an_error():
    workers = min(scoring.MAX_WORKERS, torch.get_num_threads())
    begun = []

    def load(number):
        begun.append(number)
        time.sleep(0.3)  # until more are waiting
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(score_pairs(range(100), load, Networks(CPU)))
    assert len(begun) <= 2 * workers  # of 2 * workers + 1 that were handed out


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried")])
def test_a_pair_that_memory_does_not_suffice_for_is_left_out(error, monkeypatch):
    pairs = [loaded(number, (number, 1)).scores.pair for number in range(6)]

    def load(pair):
        if pair is pairs[2]:
            raise error
        return loaded(int(pair.name), (int(pair.name), 1))

    def compute(networks, batch):
        if batch[0].scores.pair.name == "4":
            raise error
        return [item.scores for item in batch], None

    monkeypatch.setattr(Networks, "compute", compute)
    results = list(score_pairs(pairs, load, Networks(CPU)))
    left_out = [result.reasons[0] for result in results if isinstance(result, LeftOut)]
    assert len(results) == 6 and len(left_out) == 2
    for number, reason in zip((2, 4), sorted(left_out), strict=True):
        assert reason == f"gt/{number} and enhanced/{number} need more memory than there is"


def test_other_errors_of_torch_are_no_lack_of_memory():
    def load(number):
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        list(score_pairs(range(3), load, Networks(CPU)))
