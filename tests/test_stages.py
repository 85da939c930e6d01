"""The schedule of method.md, 7, with scripted losses and PSNRs through the loops that train."""

import itertools
from argparse import Namespace

import pytest
import torch
from torch import nn

import train_rave
from models.latent_learner import LatentPromptLearner
from tests.runs import rows
from training import stages
from training.learner import Learner
from training.run import Run
from training.saved_state import rounds_like
from training.schedule import Schedule

PUBLISHED = train_rave.parse_arguments(["-b", "a", "-r", "b", "--exp_name", "c"])
GUIDANCE = dict(
    prompt_batch_size=2,
    prompt_display_iter=2,
    thre_prompt=60,
    num_workers=0,
    seed=0,
    amp=False,
    accumulate=1,
)


class Scripted:
    """A criterion whose terms are given, one row an iteration; their gradient is 0."""

    def __init__(self, **terms):
        self.terms = {name: itertools.cycle(values) for name, values in terms.items()}

    def __call__(self, output, *_, share):
        nothing = 0 * share * output.sum()
        return {name: nothing + next(values) for name, values in self.terms.items()}


def small_enhancer(args=PUBLISHED, restart=0):
    """As fast as can be; nothing here depends on what it is."""
    torch.manual_seed(restart)
    return nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "fresh_enhancer", small_enhancer)
    enhancer = Learner.create(small_enhancer(), 0.0, 0.0)
    guidance = Learner.create(LatentPromptLearner(3), 0.1, 0.0)
    run = Run(tmp_path, {}, enhancer, guidance, limit=10_000, device=torch.device("cpu"))
    with run:
        yield run


def batches():
    return itertools.repeat([(1.0, [torch.rand(1, 3, 4, 4)])])


def settings(**changed):
    return Namespace(**vars(PUBLISHED) | changed)


def warm_up(run, psnrs, **changed):
    criterion = Scripted(loss=[1.0], psnr=psnrs)
    stages.warm_up(run, batches(), criterion, settings(**changed))


@pytest.mark.parametrize(
    ("iterations", "psnrs", "collapsed"),
    [
        (101, [7.9] * 30, True),
        (100, [7.9] * 30, False),  # "more than 100"
        (101, [8.0] * 30, False),  # "under 8 dB"
        (101, [7.0] * 29, False),
        (500, [0.0] * 15 + [15.9] * 15, True),  # the mean counts
        (500, [0.0] * 15 + [16.1] * 15, False),
    ],
)
def test_what_a_collapse_is(iterations, psnrs, collapsed):
    assert stages.has_collapsed(iterations, psnrs) is collapsed


def test_every_enhancer_has_a_hundred_warm_up_iterations_of_its_own(run):
    # Three are white; the fourth keeps the image.
    warm_up(run, [4.0] * 303 + [20.0] * 10_000, num_reconstruction_iters=200)
    assert run.schedule.restarts == 3
    assert run.schedule.done == 200 + 3 * 100


def test_a_restart_brings_new_weights_and_a_new_optimiser(run):
    before = run.enhancer.module.state_dict()["0.weight"].clone()
    warm_up(run, [4.0] * 101 + [20.0] * 300, num_reconstruction_iters=200)
    assert not torch.equal(before, run.enhancer.module.state_dict()["0.weight"])
    steps = {int(state["step"]) for state in run.enhancer.optimizer.state.values()}
    assert steps == {300 - 101}


@pytest.mark.parametrize("kept", [105, 202, 203])
def test_the_count_survives_a_resumed_run(run, tmp_path, kept):
    psnrs = [4.0] * 1000
    run.limit = 250
    warm_up(run, psnrs)
    whole = run.schedule
    assert whole.restarts == 2  # after 101 and 202 iterations
    resumed = Run(tmp_path / "b", {}, run.enhancer, run.guidance, limit=kept, device=run.device)
    warm_up(resumed, psnrs)
    resumed.save()
    again = Run(tmp_path / "b", {}, run.enhancer, run.guidance, limit=250, device=run.device)
    again.restore(torch.load(tmp_path / "b" / "last.pt", weights_only=True))
    warm_up(again, psnrs)
    assert (again.schedule.restarts, again.schedule.done) == (whole.restarts, whole.done)
    assert again.schedule.since_restart == whole.since_restart == 250 - 202


@pytest.mark.parametrize(("extension", "length"), [(89.9, 2100), (90.1, 2160)])
def test_a_round_is_extended_by_its_sum_without_raves_factor(run, extension, length):
    # High but for the extension's last iteration, after which it may end.
    values = [500.0] * 19 + [extension] + [500.0] * 59 + [0.0]
    criterion = Scripted(loss=[1000.0], extension=values)
    stages.train_round(run, 1, batches(), criterion, settings(round_iters=20))
    assert run.schedule.done == length - PUBLISHED.round_iters + 20


def test_the_published_lengths():
    assert (PUBLISHED.round_iters, stages.EXTRA_ITERS) == (2100, 60)
    assert (stages.EXTRA_PROMPT_ITERS, stages.RESTART_ITERS) == (100, 100)


def train_guidance(run, losses, length=6, **changed):
    class Encoder:
        def embed(self, images):
            return nn.functional.normalize(images.flatten(1)[:, :3], dim=-1)

    dataset = [(torch.rand(3, 4, 4), torch.tensor(0))] * 2

    class Keyed(torch.utils.data.Dataset):
        def __len__(self):
            return len(dataset)

        def __getitem__(self, key):
            return dataset[key[1]]

    criterion = Scripted(loss=losses)
    settings = Namespace(**GUIDANCE | changed)
    stages.train_guidance(run, "refinement", 3, length, Encoder(), Keyed(), criterion, settings)


def test_the_best_guidance_has_the_lowest_single_loss_at_a_display(run):
    kept, real = [], run.guidance.keep_best
    run.guidance.keep_best = lambda: (kept.append(run.schedule.done), real())
    # Means over the last iterations fall to the end; 0.1 is at no display.
    train_guidance(run, [9.0, 3.0, 0.1, 4.0, 1.0, 3.5])
    assert kept == [2]
    name = "snapshots_guidance/best_guidance_learner_round3.pth"
    assert (run.folder / name).is_file()


@pytest.mark.parametrize(
    ("at_6", "at_106", "length"), [(60.0, 61.0, 6), (61.0, 60.0, 106), (61.0, 61.0, 206)]
)
def test_a_guidance_stage_is_extended_by_its_last_loss(run, at_6, at_106, length):
    train_guidance(run, [1.0] * 5 + [at_6] + [99.0] * 99 + [at_106] + [99.0] * 99 + [1.0])
    assert run.schedule.done == length


def test_the_best_enhancer_has_the_highest_mean_of_thirty_scores(run):
    kept, real = [], run.enhancer.keep_best
    run.enhancer.keep_best = lambda: (kept.append(run.schedule.done), real())
    # A single low loss at display 40 does not count, the mean over 31 to 60 does.
    losses = [10.0] * 39 + [9.0] + [5.0] * 20 + [30.0] * 20
    criterion = Scripted(loss=losses, extension=[0.0])
    stages.train_round(run, 1, batches(), criterion, settings(round_iters=80))
    assert kept == [20, 40, 60]


def test_the_log_has_a_line_for_each_display(run):
    criterion = Scripted(loss=[7.0], extension=[0.0])
    stages.train_round(run, 2, batches(), criterion, settings(round_iters=50))
    log = rows(run.folder)
    assert [int(row["stage_iteration"]) for row in log] == [20, 40, 50]
    assert {(row["stage"], row["round"], row["loss"]) for row in log} == {("round", "2", "7.0")}


@pytest.mark.parametrize(
    ("iteration", "warmup", "cosine", "expected"),
    [(0, 0, 0, 2.0), (4, 10, 0, 1.0), (20, 10, 0, 2.0), (50, 0, 100, 1.0), (100, 0, 100, 0.0)],
)
def test_learning_rates(iteration, warmup, cosine, expected):
    assert stages.learning_rate(2.0, iteration, warmup, cosine) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("stage", "number", "kept"),
    [
        *[("", 0, []), ("initialisation", 0, []), ("warm-up", 0, []), ("round", 1, [])],
        *[("refinement", 1, [1]), ("round", 2, [1]), ("refinement", 2, [1, 2])],
        *[("round", 3, [1, 2]), ("refinement", 7, [6, 7]), ("round", 7, [5, 6])],
    ],
)
def test_a_saved_state_has_the_enhancers_of_the_last_rounds(stage, number, kept):
    like = rounds_like(Schedule(stage, number), {"w": torch.ones(2)})
    assert list(like.get("rounds", {})) == kept and like.keys() <= {"rounds"}
