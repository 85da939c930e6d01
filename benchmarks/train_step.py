"""Seconds of a RAVE step and of its parts, against the same mathematics written plainly.

python -m benchmarks.train_step [--image_size 512] [--batch_size 2] [--repeats 5]

The encoders are a ViT-B/32 and an RN101 of full size; their weights are random, their arithmetic
is not. The plain form computes the network in NCHW and calls the encoders of open_clip image by
image. Each form has a process of its own. Both are first checked to compute the
same, and take turns, so that a machine that is busy for a while slows both; rows give medians.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.enhance import MEBIBYTE, peak_memory
from models.criteria import (
    GUIDANCE_WEIGHT,
    IDENTITY_IN_ROUNDS,
    IDENTITY_WEIGHT,
    RESIDUAL_FACTOR,
    ROUND_MAPS,
    ResidualCriterion,
)
from models.encoders import CLIPEncoder
from models.enhancer import UNetEnhancer, enhance, enhance_images, new_enhancer
from models.losses import identity_loss, residual_guidance_loss
from training.encoder_weights import load_encoder
from training.learner import Learner
from utils.memory import keep_freed_memory
from utils.options import choose_device

GUIDANCE, IDENTITY = "ViT-B-32-quickgelu", "RN101-quickgelu"  # OpenAI's architectures
INPUT_SIZE = (224, 224)
MEAN, STD = (
    torch.tensor(values).view(3, 1, 1)
    for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
)
EMBEDDING = 512
THRESHOLD = 0.2  # any t serves
LEARNING_RATE, WEIGHT_DECAY = 2e-5, 1e-3
MEMORY = "peak memory of the process"
TOLERANCE = 1e-3  # of the gradients, relative to their norm


def random_model(name: str) -> nn.Module:
    """A frozen open_clip model of random weights, the same in every process."""
    torch.manual_seed(0)
    return open_clip.create_model(name).eval().requires_grad_(False)


def load_both(args: argparse.Namespace) -> list[CLIPEncoder]:
    """Load the guidance and the identity encoder.

    Args:
        args: clip_weights and identity_weights, files or None for full size and random weights;
            device.
    """
    encoders = []
    given = {GUIDANCE: args.clip_weights, IDENTITY: args.identity_weights}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in given.items():
            if path is None:
                path = Path(folder) / f"{name}.pt"
                torch.save(random_model(name).state_dict(), path)
            encoders.append(load_encoder(name, path, args.device))
    return encoders


def random_residual() -> Tensor:
    """A residual vector, the same in every process."""
    return F.normalize(torch.randn(EMBEDDING, generator=torch.Generator().manual_seed(1)), dim=0)


class Plain:
    """The step as one would first write it down."""

    def __init__(self, args: argparse.Namespace) -> None:
        guidance, identity = load_both(args)
        self.clip = guidance.model.to(memory_format=torch.contiguous_format)
        self.resnet = identity.model.visual.to(memory_format=torch.contiguous_format)
        self.mean, self.std = MEAN.to(args.device), STD.to(args.device)
        self.residual = random_residual().to(args.device)
        self.enhancer = UNetEnhancer()
        torch.manual_seed(0)
        self.enhancer.load_state_dict(new_enhancer(start_light_map=1.0).state_dict())
        self.enhancer = self.enhancer.to(args.device)
        self.optimizer = torch.optim.Adam(
            self.enhancer.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )

    def prepare(self, image: Tensor) -> Tensor:
        """Resize an image (3, H, W) to the encoders' input and normalise it, (1, 3, 224, 224)."""
        return (F.interpolate(image[None], INPUT_SIZE, mode="bilinear") - self.mean) / self.std

    def light_map(self, x: Tensor) -> Tensor:
        """Estimate (N, 1, H, W) from (N, 3, H, W)."""
        return self.enhancer(x)

    def guidance(self, y: Tensor) -> Tensor:
        """Compute the residual guidance loss, image by image."""
        distances = []
        for image in y:
            embedding = self.clip.encode_image(self.prepare(image))
            cosine = F.cosine_similarity(embedding, self.residual[None])
            distances.append((cosine - THRESHOLD) ** 2)
        return torch.cat(distances).mean()

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """Map an image (3, H, W) to the five feature maps."""
        maps = [self.resnet.stem(self.prepare(image))]
        for number in range(1, 5):
            maps.append(getattr(self.resnet, f"layer{number}")(maps[-1]))
        return maps

    def identity(self, y: Tensor, x: Tensor) -> Tensor:
        """Compute the identity loss, image by image."""
        loss = 0.0
        for enhanced, backlit in zip(y, x, strict=True):
            pairs = zip(
                ROUND_MAPS, self.feature_maps(enhanced), self.feature_maps(backlit), strict=True
            )
            loss = loss + sum(weight * ((a - b) ** 2).mean() for weight, a, b in pairs)
        return loss

    def step(self, x: Tensor) -> None:
        """Train on a batch (N, 3, H, W)."""
        y = enhance(x, self.enhancer(x))
        loss = RESIDUAL_FACTOR * GUIDANCE_WEIGHT * self.guidance(y)
        loss = loss + IDENTITY_IN_ROUNDS * IDENTITY_WEIGHT * self.identity(y, x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Ours:
    """The step as `train_rave.py` takes it."""

    def __init__(self, args: argparse.Namespace) -> None:
        keep_freed_memory()
        self.guidance_encoder, self.identity_encoder = encoders = load_both(args)
        self.residual = random_residual().to(args.device)
        threshold = torch.tensor(THRESHOLD, device=args.device)
        self.criterion = ResidualCriterion(*encoders, self.residual, threshold)
        torch.manual_seed(0)
        self.enhancer = new_enhancer(start_light_map=1.0).to(args.device)
        if args.compile:
            self.enhancer.compile(dynamic=False)
        self.amp = args.amp
        self.learner = Learner.create(self.enhancer, LEARNING_RATE, WEIGHT_DECAY)

    def light_map(self, x: Tensor) -> Tensor:
        """Estimate (N, 1, H, W) from (N, 3, H, W)."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp):
            return self.enhancer(x)

    def guidance(self, y: Tensor) -> Tensor:
        """Compute the residual guidance loss."""
        return residual_guidance_loss(self.guidance_encoder.embed(y), self.residual, THRESHOLD)

    def identity(self, y: Tensor, x: Tensor) -> Tensor:
        """Compute the identity loss."""
        maps_y = self.identity_encoder.feature_maps(y)
        with torch.no_grad():
            maps_x = self.identity_encoder.feature_maps(x)
        return identity_loss(maps_y, maps_x, ROUND_MAPS)

    def step(self, x: Tensor) -> None:
        """Train on a batch (N, 3, H, W)."""
        terms = self.criterion(enhance_images(self.enhancer, x, self.amp), x)
        self.learner.clear_gradients()
        self.learner.backward(terms["loss"])
        self.learner.step()


class Bench:
    """One form in this process, and what it is measured with."""

    def __init__(self, form: type[Plain | Ours], args: argparse.Namespace) -> None:
        torch.set_num_threads(args.threads)
        self.form = form(args)
        torch.manual_seed(0)
        self.x = torch.rand(args.batch_size, 3, args.image_size, args.image_size) / 2
        self.x = self.x.to(args.device)

    def gradients(self) -> dict[str, Tensor]:
        """Take a step; return the gradients of the enhancer's weights."""
        self.form.step(self.x)
        return {name: p.grad.cpu() for name, p in self.form.enhancer.named_parameters()}

    def time_parts(self) -> dict[str, float]:
        """Time a step and its parts once, in seconds; see the process's peak memory, in MiB."""
        form, x, seconds = self.form, self.x, {}

        def timed(name: str, call: Callable[[], Tensor | None]) -> Tensor | None:
            synchronize(x.device)
            start = time.perf_counter()
            result = call()
            synchronize(x.device)
            seconds[name] = time.perf_counter() - start
            return result

        timed("whole step", lambda: form.step(x))
        light_map = timed("enhancer, forward", lambda: form.light_map(x))
        timed("enhancer, backward", lambda: light_map.backward(torch.ones_like(light_map)))
        y = (1.5 * x).clamp(0, 1).requires_grad_()
        timed("guidance loss", lambda: form.guidance(y).backward())
        timed("identity loss", lambda: form.identity(y, x).backward())
        return {**seconds, MEMORY: peak_memory() / MEBIBYTE}


def serve(form: type[Plain | Ours], args: argparse.Namespace, pipe: Connection) -> None:
    """Build a bench in this process and call the methods whose names come through the pipe."""
    bench = Bench(form, args)
    with contextlib.suppress(EOFError):  # the other end has gone
        while True:
            pipe.send(getattr(bench, pipe.recv())())


def start_process(form: type[Plain | Ours], args: argparse.Namespace) -> Callable[[str], dict]:
    """Give a form a process of its own; return what calls its bench's methods."""
    context = multiprocessing.get_context("spawn")
    pipe, other_end = context.Pipe()
    context.Process(target=serve, args=(form, args, other_end), daemon=True).start()

    def call(method: str) -> dict:
        pipe.send(method)
        return pipe.recv()

    return call


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def check_agreement(plain: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """Compare the gradients of one step; leave if they are not the same."""
    plain, ours = (torch.cat([g.flatten() for g in form.values()]) for form in (plain, ours))
    error = float((plain - ours).norm() / plain.norm())
    print(f"relative difference between the two forms' gradients: {error:.1e}")
    if error > TOLERANCE:
        raise SystemExit("the two forms do not compute the same")


def main(args: argparse.Namespace) -> None:
    """Check that both forms agree, time them in turn, print medians and their ratio."""
    args.device = choose_device(args.device)
    forms = [start_process(form, args) for form in (Plain, Ours)]
    gradients = [call("gradients") for call in forms]
    if not args.amp:
        check_agreement(*gradients)
    measured = []
    for _ in range(1 + args.repeats):
        measured.append([call("time_parts") for call in forms])
    del measured[0]  # a warm-up

    kind = torch.backends.cpu.get_cpu_capability() if args.device.type == "cpu" else "GPU"
    print(
        f"{args.batch_size} images of {args.image_size} x {args.image_size}, {kind}, "
        f"{args.threads} threads, load {os.getloadavg()[0]:.1f}, medians of {args.repeats}\n"
    )
    print("| part | plain | ours | plain / ours |\n|:--|--:|--:|--:|")
    for part in measured[0][0]:
        plain, ours = (statistics.median(turn[i][part] for turn in measured) for i in (0, 1))
        unit, digits = ("MiB", 0) if part == MEMORY else ("s", 3)
        row = (f"{plain:.{digits}f} {unit}", f"{ours:.{digits}f} {unit}", f"{plain / ours:.2f}")
        print("|", part, "|", " | ".join(row), "|")


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add files of weights, by which other networks than those of full size can be measured."""
    for name in ("clip", "identity"):
        parser.add_argument(
            f"--{name}_weights", metavar="FILE", help="default: full size, random weights"
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--image_size", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    add_weights_arguments(parser)
    parser.add_argument("--amp", action="store_true", help="ours in bf16 autocast")
    parser.add_argument("--compile", action="store_true", help="compile our enhancer")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
