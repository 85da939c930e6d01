import multiprocessing
import os
import pickle
import signal
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

import data.photo_store
from data.datasets import (
    BatchStream,
    EnhancerImages,
    GuidanceImages,
    LevelTuples,
    batches_per_epoch,
    stream_batches,
)
from data.photo_store import PhotoStore, decode
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


def test_decode_is_pillows_lanczos(tmp_path):
    (path,) = make_photos(tmp_path, 1)
    expected = Image.open(path).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(decode(path, 16), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["memory", "disk", "none"])
def test_caches_agree_and_name_a_damaged_file_once(tmp_path, capsys, mode):
    paths = make_photos(tmp_path, 5)
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    paths[4].write_bytes(b"")
    store = PhotoStore(paths, 16, mode, tmp_path / "cache")
    warnings = capsys.readouterr().err
    assert store.paths == [paths[0], paths[2], paths[3]]
    assert warnings.count(str(paths[1])) == 1
    assert warnings.count(str(paths[4])) == 1
    for item, path in zip((store[i] for i in range(len(store))), store.paths, strict=True):
        assert item.dtype == torch.uint8
        assert np.array_equal(item.numpy(), decode(path, 16))


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_nothing_is_decoded_after_the_cache_is_made(tmp_path, monkeypatch, mode):
    paths = make_photos(tmp_path, 4)
    dataset = EnhancerImages(paths, 16, cache=mode, cache_folder=tmp_path / "cache")

    def decode_again(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(data.photo_store, "decode", decode_again)
    batches = islice(stream_batches(dataset, 3), 4)
    assert torch.cat([images for images, _ in batches]).shape == (8, 3, 16, 16)


def test_disk_cache_is_found_again_until_a_photo_changes(tmp_path, monkeypatch, capsys):
    paths = make_photos(tmp_path, 3)
    paths[0].write_bytes(b"not a photo")
    PhotoStore(paths, 16, "disk", tmp_path / "cache")
    decoded = []

    def counted(path, image_size):
        decoded.append(path)
        return decode(path, image_size)

    monkeypatch.setattr(data.photo_store, "decode", counted)
    capsys.readouterr()
    again = PhotoStore(paths, 16, "disk", tmp_path / "cache")
    assert decoded == []
    assert again.paths == paths[1:]
    assert str(paths[0]) in capsys.readouterr().err  # each run says it
    make_photos(tmp_path, 1, size=(20, 20))  # overwrites the damaged one
    assert PhotoStore(paths, 16, "disk", tmp_path / "cache").paths == paths
    assert sorted(decoded) == sorted(paths)


def test_disk_cache_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    paths = make_photos(tmp_path, 3)

    def interrupted(path, image_size):
        if path == paths[2]:
            raise KeyboardInterrupt
        return decode(path, image_size)

    with monkeypatch.context() as patched:
        patched.setattr(data.photo_store, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            PhotoStore(paths, 16, "disk", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(PhotoStore(paths, 16, "disk", tmp_path / "cache")) == 3


def test_a_worker_process_is_sent_the_file_and_not_its_pixels(tmp_path):
    store = PhotoStore(make_photos(tmp_path, 3), 64, "disk", tmp_path / "cache")
    first = store[0]
    sent = pickle.dumps(store)
    assert len(sent) < first.numel()
    assert torch.equal(pickle.loads(sent)[0], first)


def test_nothing_readable_is_a_users_error(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="none of the 2 files"):
        PhotoStore(paths, 16)
    with pytest.raises(UserError, match="no photographs"):
        PhotoStore([], 16)
    with pytest.raises(UserError, match="unknown cache"):
        PhotoStore(paths, 16, "ram")


def test_enhancer_items_are_augmented_by_key(tmp_path):
    paths = make_photos(tmp_path, 2)
    dataset = EnhancerImages(paths, 16, seed=3)
    again = EnhancerImages(paths, 16, seed=3, cache="none")
    items = torch.stack([dataset[epoch, 0][0] for epoch in range(12)])
    assert items.dtype == torch.float32
    assert items.min() >= 0 and items.max() <= 1
    assert torch.equal(items, torch.stack([again[epoch, 0][0] for epoch in range(12)]))
    assert len(items.flatten(1).unique(dim=0)) > 6  # epochs differ
    other_seed = EnhancerImages(paths, 16, seed=4)
    assert not torch.equal(items, torch.stack([other_seed[epoch, 0][0] for epoch in range(12)]))
    plain = EnhancerImages(paths, 16, augment=False)
    image, index = plain[7, 1]
    assert index == 1
    assert torch.equal(image, torch.from_numpy(decode(paths[1], 16)).float() / 255)


def test_guidance_repeats_the_shorter_list(tmp_path):
    backlit = PhotoStore(make_photos(tmp_path / "backlit", 2), 16)
    well_lit = PhotoStore(make_photos(tmp_path / "well_lit", 5), 16)
    dataset = GuidanceImages(backlit, well_lit)
    assert len(dataset) == 10
    assert [dataset[0, i][2] for i in range(10)] == [0] * 5 + [1] * 5
    # A draw without zoom and rotation only moves pixels: the sorted values are the source's.
    images = [dataset[0, i][0] for i in range(10)]
    sources = [backlit[i % 2] for i in range(5)] + [well_lit[i] for i in range(5)]
    exact = [
        torch.equal(image.flatten(1).sort().values, (source / 255).flatten(1).sort().values)
        for image, source in zip(images, sources, strict=True)
    ]
    assert sum(exact) >= 3  # about half of the draws neither zoom nor rotate
    swapped = GuidanceImages(well_lit, backlit)
    assert len(swapped) == 10
    assert [swapped[0, i][2] for i in range(10)] == [0] * 5 + [1] * 5


def test_level_tuples_share_one_draw(tmp_path):
    backlit = PhotoStore(make_photos(tmp_path / "backlit", 3), 16)
    doubled = torch.stack([backlit[i] for i in range(3)]).float() / 255 / 2
    constant = torch.full((5, 3, 16, 16), 255, dtype=torch.uint8)
    dataset = LevelTuples([backlit, doubled, constant])
    assert len(dataset) == 5
    for index in range(5):
        first, second, last = dataset[2, index][0]
        torch.testing.assert_close(first / 2, second, atol=1e-6, rtol=0)
        torch.testing.assert_close(last, torch.ones(3, 16, 16))


def test_draws_that_only_turn_an_image_say_which_turn_it_is(tmp_path):
    backlit = PhotoStore(make_photos(tmp_path / "backlit", 2), 16)
    enhanced = torch.rand(2, 3, 16, 16)
    well_lit = PhotoStore(make_photos(tmp_path / "well_lit", 3), 16)
    turned = []
    guidance = GuidanceImages(backlit, well_lit)
    assert len(guidance.turns) == 8 * 5
    for epoch in range(4):
        for index in range(len(guidance)):
            image, place, _ = guidance[epoch, index]
            turned.append(place >= 0)
            assert place < 0 or torch.equal(image, guidance.turns[place])
    tuples = LevelTuples([backlit, enhanced, well_lit])
    assert len(tuples.turns) == 8 * 7
    for epoch in range(4):
        for index in range(len(tuples)):
            images, places = tuples[epoch, index]
            turned.append(bool(places[0] >= 0))
            assert (places >= 0).all() or (places == -1).all()
            for image, place in zip(images, places.tolist(), strict=True):
                assert place < 0 or torch.equal(image, tuples.turns[place])
    assert 0.2 < sum(turned) / len(turned) < 0.8  # about half


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


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_workers_and_resuming_give_the_very_same_batches(tmp_path, cache):
    dataset = EnhancerImages(
        make_photos(tmp_path, 7), 24, seed=1, cache=cache, cache_folder=tmp_path / "cache"
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = list(islice(stream_batches(dataset, 3, seed=1), 8))
    with_workers = list(islice(stream_batches(dataset, 3, seed=1, num_workers=2), 8))
    resumed = list(islice(stream_batches(dataset, 3, seed=1, start=4, num_workers=1), 4))
    for expected, batch in zip(alone + alone[4:], with_workers + resumed, strict=True):
        for one, other in zip(expected, batch, strict=True):
            assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_whole_run_leaves_its_workers_loading(tmp_path, number):
    dataset = EnhancerImages(make_photos(tmp_path, 7), 24, cache="none")
    expected = list(islice(stream_batches(dataset, 3), 12))
    batches = stream_batches(dataset, 3, num_workers=1)
    received = [next(batches)]
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    received += islice(batches, 11)  # more than had been prepared
    for one, other in zip(expected, received, strict=True):
        assert torch.equal(one[0], other[0])
