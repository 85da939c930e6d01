"""What a device does, in a few minutes: seconds, memory, and whether it computes what a CPU does.

    python -m benchmarks.accelerator [--device cuda]

prints tables in Markdown: steps of the three methods and what memory they take, the released way of
computing beside ours, photographs, the vocabulary, and three steps of each method compared with the
CPU's. The encoders are of full size, their weights random. fp32 is without TF32; "TF32" allows it
in convolutions and matrix products, as do the bf16 ones. Seconds are medians after a warm-up.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.enhance import random_photo
from benchmarks.train_step import (
    LEARNING_RATE,
    THRESHOLD,
    WEIGHT_DECAY,
    Plain,
    add_weights_arguments,
    load_both,
    random_residual,
    synchronize,
)
from data.datasets import GUIDANCE_SIZE
from models.criteria import ClassificationCriterion, PromptCriterion, ResidualCriterion
from models.encoders import CLIPEncoder
from models.enhancer import UNetEnhancer, enhance_images, new_enhancer
from models.latent_learner import LatentPromptLearner
from models.prompt_learner import PromptLearner
from models.tiling import enhance_photo
from models.vocabulary import embed_texts, vocabulary_texts
from training.learner import Learner
from training.stages import embed
from utils.errors import brief, lacks_memory
from utils.memory import keep_freed_memory
from utils.options import choose_device

PROMPT_LR = 5e-6
STEPS_COMPARED = 3
TOLERANCE = 1e-4  # of losses and gradients against the CPU's, relative
GIBIBYTE = 2**30


@dataclass(frozen=True)
class Mode:
    """How the network computes."""

    tf32: bool = False
    amp: bool = False
    compiled: bool = False


MODES = {
    "fp32": Mode(),
    "TF32": Mode(tf32=True),
    "bf16": Mode(tf32=True, amp=True),
    "TF32 compiled": Mode(tf32=True, compiled=True),
    "bf16 compiled": Mode(tf32=True, amp=True, compiled=True),
}
Step = Callable[[], object]


def set_tf32(allowed: bool) -> None:
    """Allow TF32 in convolutions and matrix products, or forbid it."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def dark_images(count: int, size: int, device: torch.device) -> Tensor:
    """Random images (N, 3, S, S) in [0, 0.5], the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, 3, size, size, generator=generator) / 2).to(device)


class Methods:
    """The three methods' steps, as the training scripts take them.

    Args:
        encoders: the guidance and the identity encoder, on the device.
        mode: how the network computes.
        images: backlit ones (N, 3, S, S) in [0, 1], on the device.
    """

    def __init__(self, encoders: list[CLIPEncoder], mode: Mode, images: Tensor) -> None:
        device = images.device
        self.encoder, self.amp, self.images = encoders[0], mode.amp, images
        torch.manual_seed(0)
        enhancer = new_enhancer(start_light_map=1.0).to(device)
        if mode.compiled:
            enhancer.compile(dynamic=False)
        self.enhancer = Learner.create(enhancer, LEARNING_RATE, WEIGHT_DECAY)
        generator = torch.Generator().manual_seed(0)
        self.guidance = {
            "CLIP-LIT": PromptLearner(self.encoder),
            "CLIP-LIT-Latent": LatentPromptLearner(self.encoder.dim, generator).to(device),
        }
        threshold = torch.tensor(THRESHOLD, device=device)
        self.criteria = {
            "RAVE": ResidualCriterion(*encoders, random_residual().to(device), threshold)
        }
        for name, guidance in self.guidance.items():
            self.criteria[name] = PromptCriterion(*encoders, guidance.vectors().detach())

    def enhancer_step(self, method: str) -> float:
        """Train the enhancer on the batch; return the loss."""
        enhanced = enhance_images(self.enhancer.module, self.images, self.amp)
        loss = self.criteria[method](enhanced, self.images)["loss"]
        self.enhancer.clear_gradients()
        self.enhancer.backward(loss)
        self.enhancer.step()
        return float(loss.detach())

    def guidance_step(self, learner: Learner, images: Tensor) -> None:
        """Take a step of the guidance's initialisation."""
        embeddings = embed(self.encoder, images, self.amp)
        labels = torch.arange(len(embeddings), device=embeddings.device) % 2
        loss = ClassificationCriterion()(learner.module(embeddings), labels)["loss"]
        learner.clear_gradients()
        learner.backward(loss)
        learner.step()

    def steps(self, guidance_images: Tensor) -> dict[str, Step]:
        """All kinds of steps, by name."""
        steps: dict[str, Step] = {}
        for name in self.criteria:
            steps[name] = partial(self.enhancer_step, name)
        for name, guidance in self.guidance.items():
            learner = Learner.create(guidance, PROMPT_LR, WEIGHT_DECAY)
            steps[f"{name}'s guidance"] = partial(self.guidance_step, learner, guidance_images)
        return steps


def measure(step: Step, args: argparse.Namespace) -> tuple[float, int]:
    """Time a step; returns the median of its seconds, and the device's peak memory in bytes."""
    on_cuda = args.device.type == "cuda"
    if on_cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(args.device)
    taken = []
    for _ in range(args.warm_up + args.repeats):
        synchronize(args.device)
        begun = time.perf_counter()
        step()
        synchronize(args.device)
        taken.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated(args.device) if on_cuda else 0
    return statistics.median(taken[args.warm_up :]), peak


def cell(step: Step, args: argparse.Namespace) -> tuple[str, float]:
    """Measure a step for a table; one that fails is named there, and the others go on.

    Returns:
        What the table shows, and the seconds, NaN after a failure.
    """
    try:
        seconds, peak = measure(step, args)
    except Exception as error:
        args.failures.append(error)
        return ("out of memory" if lacks_memory(error) else f"failed: {brief(error)}"), math.nan
    return f"{seconds:.3f} s" + (f", {peak / GIBIBYTE:.1f} GiB" if peak else ""), seconds


def print_row(*cells: object) -> None:
    """Print a row of a table at once."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def print_head(title: str, *columns: str) -> None:
    """Print a title and the head of a table."""
    print(f"\n{title}\n")
    print_row(*columns)
    print_row(*[":--", *["--:"] * (len(columns) - 1)])


def methods(args: argparse.Namespace) -> None:
    """Steps of all methods, in all modes."""
    encoders = load_both(args)
    images = dark_images(args.batch_size, args.image_size, args.device)
    guidance_images = dark_images(args.prompt_batch_size, GUIDANCE_SIZE, args.device)
    names = list(Methods(encoders, Mode(), images).steps(guidance_images))
    print_head(
        f"A step: {args.batch_size} images of {args.image_size} pixels for the enhancer, "
        f"{args.prompt_batch_size} of {GUIDANCE_SIZE} for the guidance",
        *["", *names],
    )
    for mode in args.modes:
        set_tf32(MODES[mode].tf32)
        steps = Methods(encoders, MODES[mode], images).steps(guidance_images)
        print_row(mode, *(cell(step, args)[0] for step in steps.values()))


def released(args: argparse.Namespace) -> None:
    """RAVE's step as the released code takes it, beside ours."""
    images = dark_images(args.batch_size, args.image_size, args.device)
    print_head(
        "RAVE's step, released (NCHW, an encoder call for each image) and here",
        *["", "released", "here", "times as fast"],
    )
    for mode in [mode for mode in ("fp32", "TF32") if mode in args.modes]:
        set_tf32(MODES[mode].tf32)
        plain, plain_seconds = cell(partial(Plain(args).step, images), args)
        steps = Methods(load_both(args), MODES[mode], images)
        ours, our_seconds = cell(partial(steps.enhancer_step, "RAVE"), args)
        print_row(mode, plain, ours, f"{plain_seconds / our_seconds:.2f}")


def photographs(args: argparse.Namespace) -> None:
    """Photographs as inference.py enhances them, without reading and writing files."""
    torch.manual_seed(0)
    enhancer = UNetEnhancer("reflect").eval()
    enhancer = enhancer.to(args.device, memory_format=torch.channels_last)
    modes = [mode for mode in args.modes if not MODES[mode].compiled]
    print_head("A photograph", "megapixels", *modes)
    for megapixels in args.megapixels:
        pixels, cells = random_photo(megapixels), []
        for mode in modes:
            set_tf32(MODES[mode].tf32)
            how = dict(device=args.device, amp=MODES[mode].amp)
            cells.append(cell(partial(enhance_photo, enhancer, pixels, **how), args)[0])
        print_row(f"{megapixels:g}", *cells)


def vocabulary(args: argparse.Namespace) -> None:
    """CLIP's vocabulary, embedded once."""
    set_tf32(False)
    clip, texts = load_both(args)[0].model, vocabulary_texts()
    texts = texts[: args.texts or None]
    embed_texts(clip, texts[:1000])
    synchronize(args.device)
    begun = time.perf_counter()
    embed_texts(clip, texts)
    print(f"\nVocabulary, fp32: {len(texts)} texts in {time.perf_counter() - begun:.1f} s")


def parity(args: argparse.Namespace) -> None:
    """Three steps of each method here and on the CPU, without TF32."""
    set_tf32(False)
    cpu = argparse.Namespace(**{**vars(args), "device": torch.device("cpu")})
    encoders = [load_both(each) for each in (args, cpu)]
    print_head(
        f"{STEPS_COMPARED} steps against the CPU's, {args.parity_batch} images of "
        f"{args.parity_size} pixels: largest relative difference",
        *["", "of the loss", f"of the gradients (at most {TOLERANCE:g} each)"],
    )
    for name in ("RAVE", "CLIP-LIT", "CLIP-LIT-Latent"):
        images = dark_images(args.parity_batch, args.parity_size, torch.device("cpu"))
        here, there = (
            Methods(both, Mode(), images.to(each.device))
            for both, each in zip(encoders, (args, cpu), strict=True)
        )
        losses, gradients = [], []
        for _ in range(STEPS_COMPARED):
            loss, expected = here.enhancer_step(name), there.enhancer_step(name)
            losses.append(abs(loss - expected) / abs(expected))
            own, others = gradients_of(here), gradients_of(there)
            gradients.append(float((own - others).norm() / others.norm()))
        print_row(name, f"{max(losses):.1e}", f"{max(gradients):.1e}")
        if not max(*losses, *gradients) <= TOLERANCE:
            args.failures.append(ValueError(f"{name} differs from the CPU's"))


def gradients_of(steps: Methods) -> Tensor:
    """The gradients of the enhancer's weights, in one vector on the CPU."""
    parameters = steps.enhancer.module.parameters()
    return torch.cat([parameter.grad.flatten().cpu() for parameter in parameters])


SECTIONS = {
    "methods": methods,
    "released": released,
    "photographs": photographs,
    "parity": parity,
    "vocabulary": vocabulary,
}


def main(args: argparse.Namespace) -> None:
    """Print the sections that were asked for; leave with status 1 if something failed."""
    keep_freed_memory()
    args.device = choose_device(args.device)
    args.failures = []
    device = "" if args.device.type != "cuda" else f" {torch.cuda.get_device_name(args.device)},"
    print(f"{args.device.type},{device} PyTorch {torch.__version__}, medians of {args.repeats}")
    begun = time.perf_counter()
    for name in args.sections:
        SECTIONS[name](args)
    print(f"\nAll of this took {time.perf_counter() - begun:.0f} s.")
    for error in args.failures:
        print(f"failed: {brief(error)}")
    if args.failures:
        raise SystemExit(1)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm_up", type=int, default=2, help="calls that are not timed")
    parser.add_argument("--image_size", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--prompt_batch_size", type=int, default=16)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[2, 24])
    parser.add_argument("--texts", type=int, default=0, help="of the vocabulary; 0: all")
    parser.add_argument("--parity_size", type=int, default=128)
    parser.add_argument("--parity_batch", type=int, default=2)
    add_weights_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse_arguments())
