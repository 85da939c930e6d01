"""Embed CLIP's vocabulary in rows of texts of equal length, against one text at a time.

    python -m benchmarks.vocabulary [--texts 0] [--singles 40]

with two text transformers of random weights: a tiny one, and ViT-B/32's full size. One text at a
time, at full length, takes over an hour, so that a few texts are timed and multiplied; so are the
batches if `--texts` limits them to a sample of the vocabulary, in which fewer texts have equal
tokens, so that it understates the ratio by a sixth. Both include tokenising. The two take turns,
so that a busy machine slows both; rows give medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import open_clip
import torch
from torch import Tensor

from models.vocabulary import VOCABULARY_SIZE, embed_texts, vocabulary_texts

CONTEXT = 77
ROUNDS = 3
TRANSFORMERS = (("tiny (width 64, 2 layers)", 64, 2), ("ViT-B/32 (width 512, 12 layers)", 512, 12))
TOLERANCE = 1e-5  # of the same embedding computed both ways


def build_clip(width: int, layers: int, dim: int = 512) -> open_clip.CLIP:
    """Build a CLIP of random weights with the smallest of image towers."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, patch_size=32, image_size=32)
    text = open_clip.CLIPTextCfg(
        context_length=CONTEXT,
        vocab_size=VOCABULARY_SIZE,
        width=width,
        heads=width // 64,
        layers=layers,
    )
    clip = open_clip.CLIP(dim, vision, text, quick_gelu=True)
    return clip.eval().requires_grad_(False)


@torch.no_grad()
def embed_singly(clip: open_clip.CLIP, texts: list[str]) -> Tensor:
    """Embed one text after another at full length, (V, D)."""
    return torch.cat([clip.encode_text(open_clip.tokenize([text])) for text in texts])


def seconds_each(
    embed: Callable[[open_clip.CLIP, list[str]], Tensor], clip: open_clip.CLIP, texts: list[str]
) -> float:
    """Time one call; divide by the number of texts."""
    start = time.perf_counter()
    embed(clip, texts)
    return (time.perf_counter() - start) / len(texts)


def main(args: argparse.Namespace) -> None:
    """Print a row for each text transformer."""
    torch.set_num_threads(args.threads)
    everything = vocabulary_texts()
    draw = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [everything[index] for index in draw[: args.texts or None]]
    singles = texts[: args.singles]
    print(
        f"seconds for {len(everything)} texts, from {len(singles)} one by one and {len(texts)} in "
        "batches"
    )
    for name, width, layers in TRANSFORMERS:
        clip = build_clip(width, layers)
        difference = (embed_texts(clip, singles) - embed_singly(clip, singles)).abs().max()
        if difference > TOLERANCE:
            raise SystemExit(f"the two differ by {difference:.1e}")
        times = []
        for _ in range(args.rounds):
            single = seconds_each(embed_singly, clip, singles)
            times.append((single, seconds_each(embed_texts, clip, texts)))
        slow, fast = (
            len(everything) * statistics.median(column) for column in zip(*times, strict=True)
        )
        print(
            f"{name}: one by one {slow:.0f} s, in batches {fast:.1f} s: {slow / fast:.0f} times; "
            f"largest difference {difference:.1e}",
            flush=True,
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=0, help="embedded in batches; 0: all")
    parser.add_argument("--singles", type=int, default=40, help="embedded one at a time")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
