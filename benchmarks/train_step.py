"""Seconds of a RAVE step and of its parts, against the same mathematics written plainly.

python -m benchmarks.train_step [--image_size 512] [--batch_size 2] [--repeats 5]

The encoders are a ViT-B/32 and an RN101 of full size; their weights are random, their arithmetic
is not. The plain form has the network as method.md writes it, in NCHW, and calls the encoders of
open_clip image by image. Both forms are first checked to compute the same, and take turns, so that
a machine that is busy for a while slows both; rows give medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.enhance import PlainEnhancer
from models.criterion import Criterion
from models.encoders import CLIPEncoder, load_encoder
from models.enhancer import enhance, enhance_images, new_enhancer
from models.losses import (
    IDENTITY_IN_ROUNDS,
    IDENTITY_WEIGHT,
    RESIDUAL_GUIDANCE_WEIGHT,
    ROUND_STAGES,
    identity_loss,
    residual_guidance_loss,
)
from utils.memory import keep_freed_memory
from utils.options import choose_device
from utils.training import Learner

GUIDANCE, IDENTITY = "ViT-B-32-quickgelu", "RN101-quickgelu"  # OpenAI's architectures
THRESHOLD = 0.2  # any t serves
LEARNING_RATE, WEIGHT_DECAY = 2e-5, 1e-3
TOLERANCE = 1e-3  # of the gradients, relative to their norm


class Plain:
    """The step as one would first write it down."""

    def __init__(self, encoders: list[nn.Module], ours: Ours) -> None:
        self.clip, self.resnet = encoders[0], encoders[1].visual
        self.guidance_encoder, self.identity_encoder = ours.guidance_encoder, ours.identity_encoder
        self.residual = ours.residual
        self.enhancer = PlainEnhancer().to(ours.residual.device)
        outer = ("cond1", "cond_add1", "condx", "condy")
        for name in outer:
            getattr(self.enhancer, name).padding_mode = "zeros"  # as method.md trains it
        self.enhancer.load_state_dict(ours.enhancer.state_dict())
        self.optimizer = torch.optim.Adam(
            self.enhancer.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )

    def light_map(self, x: Tensor) -> Tensor:
        """Estimate (N, 1, H, W) from (N, 3, H, W)."""
        return self.enhancer(x)

    def guidance(self, y: Tensor) -> Tensor:
        """Compute the residual guidance loss, image by image."""
        distances = []
        for image in y:
            embedding = self.clip.encode_image(prepare_plainly(self.guidance_encoder, image))
            cosine = F.cosine_similarity(embedding, self.residual[None])
            distances.append((cosine - THRESHOLD) ** 2)
        return torch.cat(distances).mean()

    def stages(self, image: Tensor) -> list[Tensor]:
        """Map an image (3, H, W) to the five feature maps."""
        maps = [self.resnet.stem(prepare_plainly(self.identity_encoder, image))]
        for number in range(1, 5):
            maps.append(getattr(self.resnet, f"layer{number}")(maps[-1]))
        return maps

    def identity(self, y: Tensor, x: Tensor) -> Tensor:
        """Compute the identity loss, image by image."""
        loss = 0.0
        for enhanced, backlit in zip(y, x, strict=True):
            pairs = zip(ROUND_STAGES, self.stages(enhanced), self.stages(backlit), strict=True)
            loss = loss + sum(weight * ((a - b) ** 2).mean() for weight, a, b in pairs)
        return loss

    def step(self, x: Tensor) -> None:
        """Train on a batch (N, 3, H, W)."""
        y = enhance(x, self.enhancer(x))
        loss = RESIDUAL_GUIDANCE_WEIGHT * self.guidance(y)
        loss = loss + IDENTITY_IN_ROUNDS * IDENTITY_WEIGHT * self.identity(y, x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def prepare_plainly(encoder: CLIPEncoder, image: Tensor) -> Tensor:
    """Resize an image (3, H, W) to an encoder's input and normalise it, (1, 3, s, s) in NCHW."""
    size = (encoder.input_size, encoder.input_size)
    return (F.interpolate(image[None], size, mode="bilinear") - encoder.mean) / encoder.std


class Ours:
    """The step as `train_rave.py` takes it."""

    def __init__(self, encoders: list[CLIPEncoder], device: torch.device, amp: bool) -> None:
        self.guidance_encoder, self.identity_encoder = encoders
        self.criterion = Criterion(*encoders)
        self.residual = F.normalize(torch.randn(encoders[0].dim, device=device), dim=0)
        self.enhancer = new_enhancer(start_light_map=1.0).to(device)
        self.amp = amp
        self.learner = Learner.create(self.enhancer, LEARNING_RATE, WEIGHT_DECAY)

    def light_map(self, x: Tensor) -> Tensor:
        """Estimate (N, 1, H, W) from (N, 3, H, W)."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp):
            return self.enhancer(x.contiguous(memory_format=torch.channels_last))

    def guidance(self, y: Tensor) -> Tensor:
        """Compute the residual guidance loss."""
        return residual_guidance_loss(self.guidance_encoder.embed(y), self.residual, THRESHOLD)

    def identity(self, y: Tensor, x: Tensor) -> Tensor:
        """Compute the identity loss."""
        stages_y = self.identity_encoder.stages(y)
        with torch.no_grad():
            stages_x = self.identity_encoder.stages(x)
        return identity_loss(stages_y, stages_x, ROUND_STAGES)

    def step(self, x: Tensor) -> None:
        """Train on a batch (N, 3, H, W)."""
        terms = self.criterion.round(
            enhance_images(self.enhancer, x, self.amp),
            x,
            lambda embeddings: (
                RESIDUAL_GUIDANCE_WEIGHT
                * residual_guidance_loss(embeddings, self.residual, THRESHOLD)
            ),
        )
        self.learner.step(terms["loss"])


def build_forms(args: argparse.Namespace) -> dict[str, Plain | Ours]:
    """Build both forms with the same random weights."""
    torch.manual_seed(0)
    plain, encoders = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in (GUIDANCE, IDENTITY):
            model = open_clip.create_model(name).eval().requires_grad_(False)
            path = Path(folder) / f"{name}.pt"
            torch.save(model.state_dict(), path)
            encoders.append(load_encoder(name, path, args.device))
            plain.append(model.to(args.device))
    ours = Ours(encoders, args.device, args.amp)
    return {"plain": Plain(plain, ours), "ours": ours}


def check_agreement(forms: dict[str, Plain | Ours], x: Tensor) -> None:
    """Take a step in each form and compare its gradients."""
    gradients = []
    for form in forms.values():
        form.step(x)
        gradients.append({name: p.grad for name, p in form.enhancer.named_parameters()})
    plain, ours = gradients
    flat = [torch.cat([tensor.flatten() for tensor in form.values()]) for form in (plain, ours)]
    error = float((flat[0] - flat[1]).norm() / flat[0].norm())
    print(f"relative difference between the two forms' gradients: {error:.1e}")
    if error > TOLERANCE:
        raise SystemExit("the two forms do not compute the same")


def time_parts(form: Plain | Ours, x: Tensor) -> dict[str, float]:
    """Time a step and its parts once, in seconds."""
    seconds = {}

    def timed(name: str, call: Callable[[], Tensor | None]) -> Tensor | None:
        synchronize(x.device)
        start = time.perf_counter()
        result = call()
        synchronize(x.device)
        seconds[name] = time.perf_counter() - start
        return result

    timed("whole step", partial(form.step, x))
    light_map = timed("enhancer, forward", partial(form.light_map, x))
    timed("enhancer, backward", partial(light_map.backward, torch.ones_like(light_map)))
    del light_map
    y = (1.5 * x).clamp(0, 1).requires_grad_()
    timed("guidance loss", lambda: form.guidance(y).backward())
    timed("identity loss", lambda: form.identity(y, x).backward())
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(args: argparse.Namespace) -> None:
    """Check that both forms agree, time them in turn, print medians and their ratio."""
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    args.device = choose_device(args.device)
    forms = build_forms(args)
    x = torch.rand(args.batch_size, 3, args.image_size, args.image_size, device=args.device) / 2
    if not args.amp:
        check_agreement(forms, x)
    if args.compile:
        forms["ours"].enhancer.compile(dynamic=False)
    for form in forms.values():
        time_parts(form, x)
    measured = {name: [] for name in forms}
    for _ in range(args.repeats):
        for name, form in forms.items():
            measured[name].append(time_parts(form, x))

    kind = torch.backends.cpu.get_cpu_capability() if args.device.type == "cpu" else "GPU"
    print(
        f"{args.batch_size} images of {args.image_size} x {args.image_size}, {kind}, "
        f"{args.threads} threads, load {os.getloadavg()[0]:.1f}, medians of {args.repeats}\n"
    )
    print("| part               | plain s | ours s | times |\n|---|--:|--:|--:|")
    for part in measured["ours"][0]:
        plain, ours = (statistics.median(t[part] for t in times) for times in measured.values())
        print(f"| {part:18} | {plain:7.3f} | {ours:6.3f} | {plain / ours:5.2f} |")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--image_size", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="ours in bf16 autocast")
    parser.add_argument("--compile", action="store_true", help="compile our enhancer")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
