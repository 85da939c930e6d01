"""Every figure that the released code computed, against what this code computes.

tests/golden/RECIPE.md specifies the inputs, the entries of released.json and their limits.
"""

import hashlib
import json
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch

import train
import train_rave
from data.squares import CentreCrop, resized
from models.criteria import (
    ROUND_MAPS,
    WARM_UP_MAPS,
    ClassificationCriterion,
    PromptCriterion,
    RankingCriterion,
    ResidualCriterion,
    WarmUpCriterion,
)
from models.enhancer import UNetEnhancer, enhance
from models.interpretation import token_table
from models.latent_learner import LatentPromptLearner
from models.losses import identity_loss, prompt_guidance_loss, residual_guidance_loss
from models.prompt_learner import PromptLearner
from models.residual import build_residual, embed_photos, shift_residual, token_scores
from models.tiling import enhance_photo
from tests.golden import make_inputs
from tests.golden.make_inputs import CROPS, DIM, LABELS, LEVELS, crop, distance, summary
from training.learner import Learner
from training.run import Run
from training.setup import new_enhancer_learner
from training.stages import train_round, warm_up
from utils.metrics import fidelity

RELEASED = json.loads((Path(__file__).parent / "golden" / "released.json").read_text())
FIGURES = RELEASED["arrays"] | RELEASED["scalars"]

# Entries, the fixture that computes them, and how far off they may be, relatively: the table of
# RECIPE.md, 3, from the quickest to the slowest.
LIMITS = [
    ("light_map.*", "enhancer_figures", 1e-5),
    ("enhanced", "enhancer_figures", 1e-5),
    ("inference", "enhancer_figures", 1e-3),
    ("metrics.*", "metric_figures", 1e-6),
    ("pair.*", "encoder_figures", 1e-5),
    ("embeddings.*", "encoder_figures", 1e-5),
    ("prompt_guidance.loss", "loss_figures", 1e-5),
    ("residual_guidance.loss", "loss_figures", 1e-5),
    ("identity_*.loss", "loss_figures", 1e-5),
    ("prompt_guidance.gradient", "loss_figures", 1e-4),
    ("residual_guidance.gradient", "loss_figures", 1e-4),
    ("identity_*.gradient", "loss_figures", 1e-4),
    ("prompt.init", "prompt_figures", 1e-7),
    ("prompt.init_vectors", "prompt_figures", 1e-5),
    ("prompt.vectors", "prompt_figures", 1e-5),
    ("prompt.logits", "prompt_figures", 1e-5),
    ("prompt.ce.*", "prompt_figures", 1e-5),
    ("prompt.rank?.loss", "prompt_figures", 1e-5),
    ("prompt.rank?.gradient", "prompt_figures", 3e-5),
    ("latent.logits", "latent_figures", 1e-5),
    ("latent.ce.*", "latent_figures", 1e-5),
    ("latent.rank?.loss", "latent_figures", 1e-5),
    ("latent.rank?.gradient", "latent_figures", 3e-5),
    ("residual.*", "residual_figures", 1e-5),
    ("vocabulary.size", "residual_figures", 0),
    ("vocabulary.scores", "residual_figures", 2e-5),
    ("vocabulary.norms", "residual_figures", 2e-5),
    ("vocabulary.mean", "residual_figures", 1e-5),
    ("steps.*.loss.?", "step_figures", 5e-5),
    ("steps.*.gradient", "step_figures", 1e-4),
    ("steps.*.gradient.*", "step_figures", 2e-4),
    ("steps.*.change", "step_figures", 3e-2),
]
NO_LIMIT = "steps.*.change.*"  # Adam's first steps are as long for a gradient of rounding noise
TOKEN_LIMIT = 1e-6  # absolute, of a cosine

TABLE = [
    (name, fixture, limit)
    for pattern, fixture, limit in LIMITS
    for name in FIGURES
    if fnmatchcase(name, pattern)
]


# Inputs


@pytest.fixture(scope="module")
def pictures():
    return make_inputs.pictures()


@pytest.fixture(scope="module")
def guidance_inputs():
    return make_inputs.guidance_inputs()


@pytest.fixture(scope="module")
def weights():
    return make_inputs.enhancer_weights()


def test_inputs_are_the_recipes(pictures, guidance_inputs, weights):
    made = {kind: make_inputs.tiny_clip(kind).values() for kind in ("vit", "resnet")}
    made = {kind: [value for value in drawn if value.dim()] for kind, drawn in made.items()}
    made |= {"enhancer": weights.values()}
    made |= {name: [value] for name, value in guidance_inputs.items()}
    for name, images in pictures.items():
        batch = isinstance(images, torch.Tensor)
        made[name] = [(255 * images).round().to(torch.uint8)] if batch else images
    hashes = {}
    for name, tensors in made.items():
        hashes[name] = hashlib.sha256()
        for tensor in map(np.asarray, tensors):
            hashes[name].update(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes())
    assert {name: one.hexdigest() for name, one in hashes.items()} == RELEASED["inputs"]


# Comparison


def test_every_figure_is_in_the_table_once():
    named = [name for name, *_ in TABLE]
    assert sorted(named) == sorted(name for name in FIGURES if not fnmatchcase(name, NO_LIMIT))


@pytest.mark.parametrize(("name", "fixture", "limit"), TABLE, ids=[name for name, *_ in TABLE])
def test_figure_is_the_released_one(name, fixture, limit, request):
    assert_released(name, request.getfixturevalue(fixture)[name], limit)


def assert_released(name, found, limit):
    expected = FIGURES[name]
    if name in RELEASED["scalars"]:
        assert float(found) == pytest.approx(expected, rel=limit, abs=0)
    else:
        found = summary(found)
        assert found["size"] == expected["size"]
        assert distance(found, expected) <= limit


@pytest.mark.parametrize("end", RELEASED["tokens"])
def test_tokens_are_the_released_ones(end, vocabulary, residual):
    expected = dict(RELEASED["tokens"][end])
    rows = token_table(*vocabulary, residual, count=len(expected) + 10)
    found = {row["token"]: row["score_before"] for row in rows if row["end"] == end}
    # Equal scores have no fixed order: compare by text, and the ranks by score alone.
    assert {token: found[token] for token in expected} == pytest.approx(
        expected, rel=0, abs=TOKEN_LIMIT
    )
    ranked = [*found.values()][: len(expected)]
    assert ranked == pytest.approx([*expected.values()], rel=0, abs=TOKEN_LIMIT)


# Enhancer


def new_enhancer(weights, padding_mode):
    enhancer = UNetEnhancer(padding_mode)
    enhancer.load_state_dict(weights)
    return enhancer.requires_grad_(False)


@pytest.fixture(scope="module")
def enhancer_figures(weights, pictures):
    x = pictures["steps"][0]
    light_maps = {mode: new_enhancer(weights, mode)(x) for mode in ("zeros", "reflect")}
    inference = (255 * enhance(x[0], light_maps["reflect"][0])).round()
    figures = {f"light_map.{mode}": light_map for mode, light_map in light_maps.items()}
    return figures | {"enhanced": enhance(x, light_maps["zeros"]), "inference": inference}


@pytest.mark.parametrize("tile", [None, 0, 32])
def test_inference_of_a_photograph_is_the_released_one(tile, weights, pictures):
    pixels = (255 * pictures["steps"][0, 0]).round().byte().permute(1, 2, 0).numpy()
    enhanced = enhance_photo(new_enhancer(weights, "reflect"), pixels, tile=tile)
    assert_released("inference", enhanced.transpose(2, 0, 1), 1e-3)


# Encoders and the residual vector


@pytest.fixture(scope="module")
def embeddings(pictures, guidance_encoder):
    crop = CentreCrop(guidance_encoder.input_size)
    crops = {
        group: [torch.from_numpy(resized(photo, crop)) / 255 for photo in pictures[group]]
        for group in ("backlit", "well_lit", "resized")
    }
    return {g: embed_photos(guidance_encoder, [torch.stack(some)]) for g, some in crops.items()}


@pytest.fixture(scope="module")
def encoder_figures(pictures, embeddings, guidance_encoder, identity_encoder):
    figures = {f"embeddings.{group}": found for group, found in embeddings.items()}
    maps = enumerate(identity_encoder.feature_maps(pictures["x"]))
    figures |= {f"pair.stage.{number}": values for number, values in maps}
    return figures | {"pair.embedding": guidance_encoder.embed(pictures["y"])}


@pytest.fixture(scope="module")
def residual(embeddings):
    return build_residual(embeddings["backlit"], embeddings["well_lit"])


@pytest.fixture(scope="module")
def residual_figures(residual, vocabulary):
    texts, vectors = vocabulary
    figures = {f"residual.{name}": getattr(residual, name) for name in "nprt"}
    for n in (5, 15):
        shifted = shift_residual(residual, vectors, n)
        figures |= {f"residual.r_shift{n}": shifted.r, f"residual.t_shift{n}": shifted.t}
    return figures | {
        "vocabulary.size": len(texts),
        "vocabulary.scores": token_scores(vectors, residual.r),
        "vocabulary.norms": vectors.norm(dim=1),
        "vocabulary.mean": vectors.mean(dim=0),
    }


# Losses, without their outer weights


@pytest.fixture(scope="module")
def whole():
    """The residual vector (512,) and its threshold, as released."""
    return torch.tensor(RELEASED["whole"]["r"]), torch.tensor(RELEASED["whole"]["t"])


@pytest.fixture(scope="module")
def loss_figures(pictures, guidance_inputs, whole, guidance_encoder, identity_encoder):
    x, y = pictures["x"], pictures["y"].clone().requires_grad_()
    embeddings = guidance_encoder.embed(y)
    maps_y = identity_encoder.feature_maps(y)
    maps_x = identity_encoder.feature_maps(x)
    losses = {
        "prompt_guidance": prompt_guidance_loss(embeddings, guidance_inputs["vectors"]),
        "residual_guidance": residual_guidance_loss(embeddings, *whole),
        "identity_warmup": identity_loss(maps_y, maps_x, WARM_UP_MAPS),
        "identity_round": identity_loss(maps_y, maps_x, ROUND_MAPS),
    }
    figures = {f"{name}.loss": loss.item() for name, loss in losses.items()}
    for name, loss in losses.items():
        (figures[f"{name}.gradient"],) = torch.autograd.grad(loss, y, retain_graph=True)
    return figures


# Guidance learners


@pytest.fixture(scope="module")
def prompt_figures(guidance_inputs, guidance_encoder):
    module = PromptLearner(guidance_encoder)
    figures = {
        "prompt.init": module.prompt_embedding.detach().clone(),
        "prompt.init_vectors": module.vectors(),
    }
    with torch.no_grad():
        module.prompt_embedding += guidance_inputs["prompt_noise"]
    figures["prompt.vectors"] = module.vectors()
    return figures | learner_figures("prompt", module, "clip-lit", guidance_inputs)


@pytest.fixture(scope="module")
def latent_figures(guidance_inputs):
    module = LatentPromptLearner(DIM)
    with torch.no_grad():
        module.guidance_embeddings.copy_(guidance_inputs["vectors"])
    return learner_figures("latent", module, "clip-lit-latent", guidance_inputs)


def learner_figures(kind, module, mode, guidance_inputs):
    features, labels = guidance_inputs["features"], torch.tensor(LABELS)
    args = published(train, "--mode", mode)
    (parameter,) = module.parameters()
    learner = Learner.create(module, train.PROMPT_LR[mode], args.weight_decay)
    figures = {f"{kind}.logits": module(features[0])}

    ranking = RankingCriterion()
    for count, levels in LEVELS.items():
        loss = ranking(module(features[[*levels]].transpose(0, 1)))["loss"]
        learner.clear_gradients()
        learner.backward(loss)
        figures[f"{kind}.rank{count}.loss"] = loss.item()
        figures[f"{kind}.rank{count}.gradient"] = parameter.grad

    classification = ClassificationCriterion()
    for step in range(3):
        loss = classification(module(features[0]), labels)["loss"]
        learner.clear_gradients()
        learner.backward(loss)
        figures[f"{kind}.ce.loss.{step}"] = loss.item()
        figures.setdefault(f"{kind}.ce.gradient", parameter.grad)
        learner.step()
    return figures


# Three training steps


def published(script, *arguments):
    """The published setting of a training script, and what a test adds to it."""
    required = ["-b", "backlit", "-r", "well_lit", "--exp_name", "golden"]
    return script.parse_arguments([*required, *arguments])


class Recorder:
    """Pass images to a criterion and remember the losses."""

    def __init__(self, criterion):
        self.criterion = criterion
        self.losses = []

    def __call__(self, *images, share):
        terms = self.criterion(*images, share=share)
        self.losses.append(terms["loss"].item())
        return terms


@pytest.fixture(scope="module")
def step_figures(
    weights, pictures, guidance_inputs, whole, guidance_encoder, identity_encoder, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("steps")
    torch.save(weights, folder / "start.pth")
    arguments = ["--unet_pretrain_dir", str(folder / "start.pth"), "--device", "cpu"]
    arguments += ["--display_iter", "1000"]  # judge the best at the limit alone
    encoders = guidance_encoder, identity_encoder
    keep = WarmUpCriterion(identity_encoder)
    rave = ResidualCriterion(*encoders, *whole)
    prompt = PromptCriterion(*encoders, guidance_inputs["vectors"])

    def steps(criterion, args, limit):
        """Train; return the enhancer, and the losses."""
        recorder = Recorder(criterion)
        run = Run(folder, {}, new_enhancer_learner(args), limit=limit, device=torch.device("cpu"))
        batches = iter([[(1.0, [x])] for x in pictures["steps"]])
        with run:
            if criterion is keep:
                warm_up(run, batches, recorder, args)
            else:
                train_round(run, 1, batches, recorder, args)
        return run.enhancer.module, recorder.losses

    figures = {}
    for kind, criterion, args in (
        ("warmup", keep, published(train_rave, *arguments)),
        ("rave", rave, published(train_rave, *arguments)),
        ("prompt", prompt, published(train, *arguments)),
        ("decay", keep, published(train_rave, *arguments, "--weight_decay", "1.0")),
    ):
        if kind != "decay":
            enhancer, _ = steps(criterion, args, limit=1)
            gradients = {name: enhancer.get_parameter(name).grad for name in weights}
            figures |= {f"steps.{kind}.gradient.{name}": g for name, g in gradients.items()}
            figures[f"steps.{kind}.gradient"] = join(gradients.values())
        enhancer, losses = steps(criterion, args, limit=3)
        figures |= {f"steps.{kind}.loss.{step}": loss for step, loss in enumerate(losses)}
        figures[f"steps.{kind}.change"] = join(
            enhancer.get_parameter(name).double() - start for name, start in weights.items()
        )
    return figures


def join(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


# Metrics


@pytest.fixture(scope="module")
def metric_figures(pictures):
    y = (255 * pictures["y"]).round().byte().permute(0, 2, 3, 1).numpy()
    figures = {}
    for number, (line, enhanced) in enumerate(zip(CROPS["x"].split(", "), y, strict=True)):
        name, *sizes = line.split()
        gt = crop(name, *map(int, sizes), dark=False)
        for metric, value in fidelity(gt, enhanced, "released").items():
            figures[f"metrics.{metric}.{number}"] = value
    return figures
