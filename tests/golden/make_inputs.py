"""Build every input of the golden numbers bit for bit, and summarise arrays as released.json does (see RECIPE.md).

Every step is exact by IEEE 754 or in whole numbers, and RandomState's stream is frozen: any machine gets the same.
"""

from math import fsum, sqrt

import numpy as np
import torch
from skimage import data

WIDTH, LAYERS, DIM, CONTEXT, VOCABULARY, PATCH, POSITIONS, STEM = 64, 2, 512, 77, 49408, 32, 50, 8
SEEDS = dict(projections=0, vit=1, resnet=2, enhancer=3, features=4, vectors=1086, prompts=6)
LABELS = (0, 1, 0, 1, 1, 0)  # of the six pictures in `features`
LEVELS = {
    2: (0, 3),
    3: (0, 1, 3),
    4: (0, 1, 2, 3),
}  # the levels of `features` that each ranking loss takes
CROPS = {  # scikit-image's picture, top, left, height, width, and the side of the boxes that are averaged
    "backlit": "astronaut 64 64 224 224 2, coffee 80 250 224 300 1, chelsea 60 0 224 224 1, camera 64 0 224 224 2",
    "well_lit": "astronaut 0 0 224 224 2, coffee 100 150 224 300 1, chelsea 40 60 224 351 1, camera 0 32 224 224 2",
    "resized": "astronaut 256 0 256 512 1, coffee 0 100 400 300 1",
    "x": "astronaut 128 112 256 288 1, coffee 72 160 256 288 1",
    "steps": "astronaut 0 56 80 100 4, coffee 40 100 80 100 4, chelsea 30 75 80 100 3, camera 96 56 80 100 4, "
    "astronaut 192 0 80 100 4, coffee 80 200 80 100 4",
}


def uniform(random, shape, half_width, offset=0.0):
    return offset + half_width * (2.0 * random.random_sample(shape) - 1.0)


def draw(seed, dtype, entries):
    """Draw tensors one after another from one stream; entries of (name, shape, half width[, offset])."""
    random = np.random.RandomState(SEEDS[seed])
    return {name: torch.from_numpy(uniform(random, *how).astype(dtype)) for name, *how in entries}


def linear(name, outputs, inputs, joint="."):
    return [
        (f"{name}{joint}weight", (outputs, inputs), sqrt(3 / inputs)),
        (f"{name}{joint}bias", (outputs,), 0.1),
    ]


def conv(name, outputs, inputs, kernel, gain=1.0):
    return [
        (
            f"{name}.weight",
            (outputs, inputs, kernel, kernel),
            gain * sqrt(6 / (inputs * kernel * kernel)),
        )
    ]


def norm(name, width, batch=False):
    batch_entries = [
        (f"{name}.running_mean", (width,), 0.1),
        (f"{name}.running_var", (width,), 0.5, 1.0),
    ]
    return [
        (f"{name}.weight", (width,), 0.25, 1.0),
        (f"{name}.bias", (width,), 0.1),
        *(batch_entries if batch else []),
    ]


def conv_norm(block, names, *sizes):
    return conv(f"{block}.{names[0]}", *sizes) + norm(f"{block}.{names[1]}", sizes[0], batch=True)


def transformer(prefix):
    for block in (f"{prefix}transformer.resblocks.{layer}" for layer in range(LAYERS)):
        yield from linear(f"{block}.attn.in_proj", 3 * WIDTH, WIDTH, "_")
        yield from linear(f"{block}.attn.out_proj", WIDTH, WIDTH) + norm(f"{block}.ln_1", WIDTH)
        yield from linear(f"{block}.mlp.c_fc", 4 * WIDTH, WIDTH)
        yield from linear(f"{block}.mlp.c_proj", WIDTH, 4 * WIDTH) + norm(f"{block}.ln_2", WIDTH)


def vit_image_side():
    yield "visual.class_embedding", (WIDTH,), 1.0
    yield "visual.positional_embedding", (POSITIONS, WIDTH), 0.5
    yield "visual.proj", (WIDTH, DIM), sqrt(3 / WIDTH)
    yield "visual.conv1.weight", (WIDTH, 3, PATCH, PATCH), sqrt(3 / (3 * PATCH * PATCH))
    yield from [
        *norm("visual.ln_pre", WIDTH),
        *transformer("visual."),
        *norm("visual.ln_post", WIDTH),
    ]


def resnet_image_side():
    for index, outputs, inputs in (
        (1, STEM // 2, 3),
        (2, STEM // 2, STEM // 2),
        (3, STEM, STEM // 2),
    ):
        yield from conv_norm("visual", (f"conv{index}", f"bn{index}"), outputs, inputs, 3)
    inputs = STEM
    for layer, number in ((1, 0), (2, 0), (2, 1), (3, 0), (4, 0)):
        block, planes = f"visual.layer{layer}.{number}", STEM * 2 ** (layer - 1)
        yield from conv_norm(block, ("conv1", "bn1"), planes, inputs, 1)
        yield from conv_norm(block, ("conv2", "bn2"), planes, planes, 3)
        yield from conv_norm(block, ("conv3", "bn3"), 4 * planes, planes, 1)
        yield from (
            conv_norm(f"{block}.downsample", "01", 4 * planes, inputs, 1) if number == 0 else []
        )
        inputs = 4 * planes
    yield "visual.attnpool.positional_embedding", (POSITIONS, inputs), 0.1
    for name, outputs in (
        ("k_proj", inputs),
        ("q_proj", inputs),
        ("v_proj", inputs),
        ("c_proj", DIM),
    ):
        yield from linear(f"visual.attnpool.{name}", outputs, inputs)


def tiny_clip(kind):
    """A CLIP in OpenAI's state-dict format, halves: kind "vit" (guidance encoder) or "resnet" (identity encoder)."""
    entries = [*{"vit": vit_image_side, "resnet": resnet_image_side}[kind]()]
    entries += [
        ("positional_embedding", (CONTEXT, WIDTH), 0.5),
        ("text_projection", (WIDTH, DIM), sqrt(3 / WIDTH)),
    ]
    entries += [
        *transformer(""),
        ("token_embedding.weight", (VOCABULARY, WIDTH), 1.0),
        *norm("ln_final", WIDTH),
    ]
    counts = [
        name.replace("running_var", "num_batches_tracked")
        for name, *_ in entries
        if "running_var" in name
    ]
    constants = {"logit_scale": torch.tensor(2.65625).half()} | {
        name: torch.tensor(0) for name in counts
    }
    return draw(kind, np.float16, entries) | constants


def enhancer_weights():
    """The enhancer's 30 tensors, fp32, without the prefix `module.`."""
    entries = []
    for name, outputs, inputs in (
        ("cond1", 32, 3),
        ("cond_add1", 1, 32),
        ("condx", 64, 32),
        ("condy", 32, 64),
    ):
        gain, offset = (0.4, 0.7) if name == "cond_add1" else (1.0, 0.0)
        entries += [
            *conv(name, outputs, inputs, 3, gain),
            (f"{name}.bias", (outputs,), 0.1, offset),
        ]
    for block, width in enumerate((32, 32, 64, 64, 32, 32), 1):
        entries += conv(f"ResidualBlock{block}.conv1", width, width, 3)
        entries += conv(f"ResidualBlock{block}.conv2", width, width, 3, 0.3)
    for i in range(4):
        entries += conv(f"PPM1.features.{i}.1", 8, 32, 1) + [
            (f"PPM1.features.{i}.2.weight", (1,), 0.15, 0.25)
        ]
    entries += conv("PPM1.fuse.0", 32, 64, 3) + [("PPM1.fuse.1.weight", (1,), 0.15, 0.25)]
    return draw("enhancer", np.float32, entries)


def guidance_inputs():
    """features (4, 6, 512), of unit length; vectors (2, 512); prompt_noise (2, 77, 64); all fp32."""
    values = uniform(np.random.RandomState(SEEDS["features"]), (4 * len(LABELS), DIM), 1.0)
    lengths = np.sqrt([[fsum(row * row)] for row in values])
    features = torch.from_numpy((values / lengths).astype(np.float32)).reshape(4, len(LABELS), DIM)
    drawn = draw("vectors", np.float32, [("vectors", (2, DIM), 1.5)])
    return (
        drawn
        | draw("prompts", np.float32, [("prompt_noise", (2, CONTEXT, WIDTH), 1.0)])
        | {"features": features}
    )


def crop(name, top, left, height, width, box, dark):
    """Average boxes of pixels in a crop, half up; dark ones but for a frame times 40/256: (height, width, 3) uint8."""
    area = getattr(data, name)()[top : top + height * box, left : left + width * box].astype(
        np.int64
    )
    means = (area.reshape(height, box, width, box, -1).sum((1, 3)) + box * box // 2) // (box * box)
    rows, columns = (abs(2 * np.arange(n) + 1 - n) * 256 // n for n in (height, width))
    factor = (
        (4 * np.maximum(rows[:, None], columns) - 640).clip(40, 256)[..., None] if dark else 256
    )
    return np.repeat(
        ((means * factor + 128) // 256).astype(np.uint8), 3 // means.shape[-1], axis=-1
    )  # grey to RGB


def pictures():
    """Lists of (H, W, 3) uint8 to embed (backlit, well_lit, resized); x, y and steps are fp32 batches in [0, 1]."""
    split = {group: [line.split() for line in lines.split(", ")] for group, lines in CROPS.items()}
    made = {
        g: [crop(n, *map(int, sizes), g != "well_lit") for n, *sizes in lines]
        for g, lines in split.items()
    }
    x, steps = (
        torch.from_numpy(np.stack(made[group]).transpose(0, 3, 1, 2).copy())
        for group in ("x", "steps")
    )
    y = (3 * x.int() // 2 + 5).clamp(max=255)
    return made | {
        "x": x.float() / 255,
        "y": y.float() / 255,
        "steps": steps.reshape(3, 2, 3, 80, 100).float() / 255,
    }


def summary(array):
    """What is kept of an array: four projections, its norm, largest magnitude, first eight values and size."""
    flat = torch.as_tensor(array).detach().double().reshape(-1).numpy()
    directions = uniform(np.random.RandomState(SEEDS["projections"]), (4, flat.size), 1.0)
    kept = dict(
        dots=(directions @ flat).tolist(),
        norm=float(np.linalg.norm(flat)),
        max=float(abs(flat).max()),
    )
    return kept | dict(first=flat[:8].tolist(), size=flat.size)


def distance(found, expected):
    """How far apart two summaries are, relative to the array: an estimate of |found - expected| / |expected|."""
    gap = {
        key: float(np.abs(np.subtract(found[key], expected[key])).max())
        for key in expected
        if key != "size"
    }
    relative = [gap["dots"] * sqrt(3) / expected["norm"], gap["norm"] / expected["norm"]]
    return max(*relative, gap["max"] / expected["max"], gap["first"] / expected["max"])
