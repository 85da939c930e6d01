"""Embed CLIP's vocabulary in batches cut to length, against one text at a time at full length.

    python -m benchmarks.vocabulary [--texts 0] [--singles 40]

with two text transformers of random weights: a tiny one, and ViT-B/32's full size. One text at a
time takes over an hour for the vocabulary, so that a few texts are timed and multiplied
("extrapolated"); so are the batches if `--texts` says that only a sample of the vocabulary is
embedded. The two take turns, so that a busy machine slows both; rows give medians.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import open_clip
import torch
from torch import Tensor

from models.pointwise import use_pointwise
from models.vocabulary import VOCABULARY_SIZE, embed_texts, tokenize, vocabulary_texts

CONTEXT = 77
ROUNDS = 3
TRANSFORMERS = (("tiny (width 64, 2 layers)", 64, 2), ("ViT-B/32 (width 512, 12 layers)", 512, 12))
TOLERANCE = 1e-5  # of the same embedding computed both ways


def build_clip(width: int, layers: int, dim: int = 512) -> open_clip.CLIP:
    """A CLIP of random weights with the smallest of image towers; the text side is measured."""
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


def tokenize_singly(texts: list[str]) -> list[Tensor]:
    """Tokenise one text after another, (1, 77) each."""
    return [open_clip.tokenize([text]) for text in texts]


@torch.no_grad()
def embed_singly(clip: open_clip.CLIP, tokens: list[Tensor]) -> Tensor:
    """Embed one text after another at full length, (V, D)."""
    return torch.cat([clip.encode_text(text) for text in tokens])


def seconds(call: Callable[..., object], *args: object) -> float:
    """Time one call."""
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def row(what: str, slow: float, fast: float) -> str:
    """One line of the table, of two times in seconds."""
    return f"  {what:8} one by one {slow:8.1f} s, in batches {fast:6.1f} s: {slow / fast:.0f} times"


def main(args: argparse.Namespace) -> None:
    """Print a row for each text transformer."""
    torch.set_num_threads(args.threads)
    everything = vocabulary_texts()
    draw = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [everything[index] for index in draw[: args.texts or None]]
    singles = texts[: args.singles]
    single_tokens = tokenize_singly(singles)
    how = "all measured" if len(texts) == len(everything) else f"extrapolated from {len(texts)}"
    print(f"{len(everything)} texts; batches {how}, singles extrapolated from {len(singles)}")
    for name, width, layers in TRANSFORMERS:
        clip = build_clip(width, layers)
        encoder_clip = copy.deepcopy(clip)
        use_pointwise(encoder_clip)  # as every encoder does
        difference = embed_texts(encoder_clip, singles) - embed_singly(clip, single_tokens)
        if difference.abs().max() > TOLERANCE:
            raise SystemExit(f"the two differ by {difference.abs().max():.1e}")
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(args.rounds):
            times["tokens, one"].append(seconds(tokenize_singly, singles) / len(singles))
            single = seconds(embed_singly, clip, single_tokens) / len(singles)
            times["features, one"].append(single)
            tokens = seconds(tokenize, texts, CONTEXT) / len(texts)
            times["tokens, all"].append(tokens)
            both = seconds(embed_texts, encoder_clip, texts) / len(texts)
            times["features, all"].append(both - tokens)
        print(name)
        total = {key: len(everything) * statistics.median(each) for key, each in times.items()}
        for what in ("tokens", "features"):
            print(row(what, total[f"{what}, one"], total[f"{what}, all"]))
        sums = (total[f"tokens, {way}"] + total[f"features, {way}"] for way in ("one", "all"))
        print(row("together", *sums))
        print(f"  largest difference {difference.abs().max():.1e}")


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
