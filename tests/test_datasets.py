import multiprocessing
import os
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.datasets import (
    BatchStream,
    EnhancerImages,
    GuidanceImages,
    LevelTuples,
    batches_per_epoch,
    loading_failure,
    stream_batches,
)
from data.images import UnreadablePhoto
from data.listing import list_photos
from data.photo_store import PhotoStore
from utils.errors import UserError


def make_photos(folder, count, size=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    paths = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        paths.append(folder / f"{i}.png")
        coarse.resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def backlit_and_well_lit(tmp_path, backlit=2, well_lit=5):
    return (
        PhotoStore(make_photos(tmp_path / name, count), 16)
        for name, count in (("backlit", backlit), ("well_lit", well_lit))
    )


def test_enhancer_items_are_augmented_by_key(tmp_path):
    paths = make_photos(tmp_path, 2)
    dataset = EnhancerImages(PhotoStore(paths, 16), seed=3)
    again = EnhancerImages(PhotoStore(paths, 16, "none"), seed=3)
    items = torch.stack([dataset[epoch, 0][0] for epoch in range(12)])
    assert items.dtype == torch.float32
    assert items.min() >= 0 and items.max() <= 1
    assert torch.equal(items, torch.stack([again[epoch, 0][0] for epoch in range(12)]))
    assert len(items.flatten(1).unique(dim=0)) > 6  # epochs differ
    other_seed = EnhancerImages(PhotoStore(paths, 16), seed=4)
    assert not torch.equal(items, torch.stack([other_seed[epoch, 0][0] for epoch in range(12)]))


def test_partners_belong_by_name_and_share_the_draw(tmp_path):
    backlit = PhotoStore(make_photos(tmp_path / "backlit", 3), 16)
    paths = make_photos(tmp_path / "well_lit", 2)  # 0 and 1, of other pixels
    dataset = EnhancerImages(backlit, partners=PhotoStore(paths, 16))
    for epoch in range(6):
        for index, has_partner in enumerate((True, True, False)):
            image, partner, own = dataset[epoch, index]
            assert own.item() is has_partner
            assert torch.equal(image, partner) is not has_partner
            (alone,) = EnhancerImages(backlit)[epoch, index]
            torch.testing.assert_close(image, alone, rtol=0, atol=1e-6)
    others = PhotoStore([path.rename(path.with_stem(f"x{path.stem}")) for path in paths], 16)
    with pytest.raises(UserError, match=r"no image of .*backlit belongs to one of .*well_lit"):
        EnhancerImages(backlit, partners=others)


def test_partners_are_found_by_the_rule_that_metrics_use(tmp_path):
    backlit, well_lit = make_photos(tmp_path / "backlit", 3), make_photos(tmp_path / "well_lit", 3)
    for path, name in zip(
        [*backlit, *well_lit],
        ["CAF\u00c9.png", "7(1).png", "7(2).png", "b.png", "7.png", "cafe\u0301.png"],
        strict=True,
    ):
        path.rename(path.with_name(name))
    stores = [PhotoStore(list_photos(tmp_path / name), 16) for name in ("backlit", "well_lit")]
    dataset = EnhancerImages(stores[0], partners=stores[1])
    names = [Path(path).stem for path in stores[0].paths]
    own = {name: dataset[0, index][2].item() for index, name in enumerate(names)}
    assert own == {"CAF\u00c9": True, "7(1)": True, "7(2)": False}
    well_lit[0].with_name("7.jpg").write_bytes(well_lit[0].with_name("7.png").read_bytes())
    with pytest.raises(UserError, match=r"several candidates.*7\.png and .*7\.jpg|7\.jpg and"):
        EnhancerImages(stores[0], partners=PhotoStore(list_photos(tmp_path / "well_lit"), 16))


def test_guidance_repeats_the_shorter_list(tmp_path):
    backlit, well_lit = backlit_and_well_lit(tmp_path)
    for first, second in ((backlit, well_lit), (well_lit, backlit)):
        dataset = GuidanceImages(first, second)
        assert len(dataset) == 10
        assert [dataset[0, i][1].item() for i in range(10)] == [0] * 5 + [1] * 5
    # A draw without zoom and rotation only moves pixels: the sorted values are the source's.
    dataset = GuidanceImages(backlit, well_lit)
    images = [dataset[0, i][0] for i in range(10)]
    sources = [backlit[i % 2] for i in range(5)] + [well_lit[i] for i in range(5)]
    exact = [
        torch.equal(image.flatten(1).sort().values, (source / 255).flatten(1).sort().values)
        for image, source in zip(images, sources, strict=True)
    ]
    assert sum(exact) >= 3  # about half of the draws neither zoom nor rotate


def constant_levels(count, offset=0, side=16):
    """Images of one value each, which no draw changes."""
    values = torch.arange(count, dtype=torch.uint8) + offset
    return values.view(-1, 1, 1, 1).expand(-1, 3, side, side)


def tuples_of(dataset):
    """The value of every level of every tuple, (N, levels)."""
    items = [dataset[0, index][0] for index in range(len(dataset))]
    return (torch.stack(items)[:, :, 0, 8, 8] * 255).round().int().tolist()


@pytest.mark.parametrize(("backlit", "well_lit"), [(12, 12), (5, 12), (12, 5)])
def test_tuples_pair_a_backlit_image_with_its_results_and_any_well_lit_one(backlit, well_lit):
    levels = constant_levels(backlit), constant_levels(backlit, 50), constant_levels(backlit, 100)
    bright = constant_levels(well_lit, 150)
    seen = [tuples_of(LevelTuples(levels[0], levels[1:], bright, seed)) for seed in (1, 1, 2)]
    for tuples in seen:
        assert len(tuples) == 12
        assert all(e1 == b + 50 and e2 == b + 100 for b, e1, e2, _ in tuples)
        assert {b for b, *_ in tuples} == set(range(backlit))
        assert {w for *_, w in tuples} == set(range(150, 150 + well_lit))
        own = sum(w == b + 150 for b, *_, w in tuples)
        assert own < 6  # its own scene only by chance
    assert seen[0] == seen[1]  # so that a resumed run meets the same tuples
    assert {(b, w) for b, *_, w in seen[0]} != {(b, w) for b, *_, w in seen[2]}
    assert [b for b, *_ in seen[0]] != sorted(b for b, *_ in seen[0])


def test_level_tuples_share_one_draw(tmp_path):
    (backlit, _) = backlit_and_well_lit(tmp_path, 3)
    doubled = torch.stack([backlit[i] for i in range(3)]).float() / 255 / 2
    dataset = LevelTuples(backlit, [doubled], constant_levels(5))
    assert len(dataset) == 5
    for index in range(5):
        first, second, _ = dataset[2, index][0]
        torch.testing.assert_close(first / 2, second, atol=1e-6, rtol=0)


def test_an_epoch_visits_everything_once_and_keeps_the_last_batch():
    assert batches_per_epoch(368, 8) == 46
    stream = islice(BatchStream(10, 4, seed=1), 6)
    batches = list(stream)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    orders = []
    for epoch in range(2):
        keys = [key for batch in batches[3 * epoch : 3 * epoch + 3] for key in batch]
        assert {key[0] for key in keys} == {epoch}
        orders.append([key[1] for key in keys])
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] != orders[1]


def test_a_folder_smaller_than_a_batch_works():
    assert [len(batch) for batch in islice(BatchStream(3, 8), 4)] == [3, 3, 3, 3]


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_a_resumed_stream_goes_on_in_the_middle(start):
    whole = list(islice(BatchStream(10, 4, seed=2), 12))
    assert list(islice(BatchStream(10, 4, seed=2, start=start), 12 - start)) == whole[start:]


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_workers_and_resuming_give_the_very_same_batches(tmp_path, cache):
    dataset = EnhancerImages(PhotoStore(make_photos(tmp_path, 7), 24, cache), seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = list(islice(stream_batches(dataset, 3, seed=1), 8))
    with_workers = list(islice(stream_batches(dataset, 3, seed=1, num_workers=2), 8))
    resumed = list(islice(stream_batches(dataset, 3, seed=1, start=4, num_workers=1), 4))
    for expected, batch in zip(alone + alone[4:], with_workers + resumed, strict=True):
        ((share, one), (other_share, other)) = *expected, *batch
        assert share == other_share == 1
        assert torch.equal(*one, *other)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_whole_run_leaves_its_workers_loading(tmp_path, number):
    dataset = EnhancerImages(PhotoStore(make_photos(tmp_path, 7), 24, "none"))
    expected = list(islice(stream_batches(dataset, 3), 12))
    batches = stream_batches(dataset, 3, num_workers=1)
    received = [next(batches)]
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    received += islice(batches, 11)  # more than had been prepared
    for ((_, one),), ((_, other),) in zip(expected, received, strict=True):
        assert torch.equal(*one, *other)


def test_a_photograph_that_vanishes_is_named(tmp_path):
    paths = make_photos(tmp_path, 4)
    batches = stream_batches(EnhancerImages(PhotoStore(paths, 16, "none")), 2, num_workers=1)
    next(batches)
    paths[2].unlink()
    with pytest.raises(UnreadablePhoto) as error:
        list(islice(batches, 9))
    assert loading_failure(error.value).endswith(f"{paths[2]} is missing")


def test_a_worker_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # for its end

    class Dying(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, key):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError) as error:
        next(stream_batches(Dying(), 2, num_workers=1))
    assert "a loading process died" in loading_failure(error.value)


def test_other_errors_are_no_loading_failures():
    assert loading_failure(ValueError("a bug")) is None
    assert loading_failure(RuntimeError("shapes do not match")) is None


def test_more_workers_than_cores_are_no_warning(tmp_path, recwarn):
    dataset = EnhancerImages(PhotoStore(make_photos(tmp_path, 2), 24))
    next(stream_batches(dataset, 2, num_workers=len(os.sched_getaffinity(0)) + 1))
    assert not [each for each in recwarn if "DataLoader" in str(each.message)]
