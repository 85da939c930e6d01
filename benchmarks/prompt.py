"""Seconds of CLIP-LIT's guidance steps with a full-size ViT-B/32, against the plain form.

The plain form decodes, augments and embeds the images of a batch one by one and computes all 77
positions of the prompts. Weights are random; the arithmetic is not.

python -m benchmarks.prompt [--rounds 5] [--photos 32] [--threads 2]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data import make_photos
from data.augment import GUIDANCE_ZOOM, apply_draw, generator_for, random_draw
from data.datasets import GUIDANCE_SIZE, GuidanceImages, stream_batches, to_unit
from data.photo_store import PhotoStore, decode
from models.encoders import CLIPEncoder
from models.losses import guidance_logits
from models.prompt_learner import PromptLearner
from training.encoder_weights import load_encoder
from training.stages import embed

MODEL = "ViT-B-32-quickgelu"  # OpenAI's architecture
BATCH_SIZE = 16
PROMPT_LR = 5e-6
WEIGHT_DECAY = 1e-3


def full_length_vectors(learner: PromptLearner, clip: nn.Module) -> Tensor:
    """Compute the prompts' features at all positions, as open_clip's `encode_text` does."""
    x = learner.prompt_embedding + clip.positional_embedding
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    return x[:, learner.length_prompt + 1] @ clip.text_projection


def prompt_step(
    learner: PromptLearner, vectors: Callable[[], Tensor], embeddings: Tensor, labels: Tensor
) -> None:
    """Take one step of cross-entropy; the optimiser's state does not matter to its speed."""
    optimizer = torch.optim.Adam(learner.parameters(), lr=PROMPT_LR, weight_decay=WEIGHT_DECAY)
    F.cross_entropy(guidance_logits(embeddings, vectors()), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def embed_one_by_one(clip: nn.Module, encoder: CLIPEncoder, paths: list[Path]) -> Tensor:
    """Decode, augment and embed photographs one after the other, as (N, D)."""
    embeddings = []
    for index, path in enumerate(paths):
        image = to_unit(torch.from_numpy(decode(path, GUIDANCE_SIZE)))
        image = apply_draw(random_draw(generator_for(index), GUIDANCE_ZOOM), image)
        embeddings.append(F.normalize(clip.encode_image(encoder.prepare(image[None])), dim=-1))
    return torch.cat(embeddings)


def compare(title: str, forms: dict[str, Callable[[], object]], rounds: int) -> None:
    """Time each form in turn, so that a busy machine slows all alike, and print the medians.

    Beside the wall clock's seconds stand the processor's, which other programs disturb less.
    """
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    times: dict[tuple[str, str], list[float]] = {
        (name, clock): [] for name in forms for clock in clocks
    }
    for _ in range(1 + rounds):
        for name, form in forms.items():
            starts = {clock: read() for clock, read in clocks.items()}
            form()
            for clock, read in clocks.items():
                times[name, clock].append(read() - starts[clock])
    medians = {key: statistics.median(seconds[1:]) for key, seconds in times.items()}
    first = next(iter(forms))
    print(title)
    for name in forms:
        columns = [
            f"{clock} {medians[name, clock] * 1000:8.1f} ms "
            f"{medians[first, clock] / medians[name, clock]:6.2f} x"
            for clock in clocks
        ]
        print(f"  {name:40} {'   '.join(columns)}", flush=True)


def main(args: argparse.Namespace) -> None:
    """Compare the prompt step, the embedding of a batch, and the whole initialisation step."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    plain = open_clip.create_model(MODEL).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(plain.state_dict(), folder / "random.pt")
        encoder = load_encoder(MODEL, folder / "random.pt")
        learner = PromptLearner(encoder)
        paths = make_photos(folder, args.photos)
        half = len(paths) // 2
        stores = [PhotoStore(part, GUIDANCE_SIZE) for part in (paths[:half], paths[half:])]
        dataset = GuidanceImages(*stores)
        if len(dataset) % BATCH_SIZE:  # a smaller last batch would be timed as if it were whole
            raise SystemExit(f"--photos must be a multiple of {BATCH_SIZE}")
        batches = stream_batches(dataset, BATCH_SIZE)
        ((_, (images, labels)),) = next(batches)
        with torch.no_grad():
            embeddings = encoder.embed(images)

        def plain_initialisation() -> None:
            found = embed_one_by_one(plain, encoder, paths[:BATCH_SIZE])
            prompt_step(learner, lambda: full_length_vectors(learner, plain), found, labels)

        def initialisation() -> None:
            ((_, (images, labels)),) = next(batches)
            prompt_step(learner, learner.vectors, embed(encoder, images), labels)

        steps = {
            "77 positions": lambda: full_length_vectors(learner, plain),
            "18 positions (ours)": learner.vectors,
        }
        compare(
            "prompt step",
            {
                form: lambda vectors=vectors: prompt_step(learner, vectors, embeddings, labels)
                for form, vectors in steps.items()
            },
            4 * args.rounds,
        )
        compare(
            "sixteen image embeddings (one by one: decoded and augmented too)",
            {
                "one by one": lambda: embed_one_by_one(plain, encoder, paths[:BATCH_SIZE]),
                "in a batch": torch.no_grad()(lambda: encoder.embed(images)),
            },
            args.rounds,
        )
        compare(
            "initialisation step, clip-lit",
            {
                "one by one, 77 positions": plain_initialisation,
                "in a batch, 18 positions (ours)": initialisation,
            },
            args.rounds,
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=32, help="a multiple of 16: no half batches")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
