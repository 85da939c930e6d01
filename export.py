"""Export the enhancer for other programs: an image in, the enhanced image out.

    python export.py --kind onnx --output rave.onnx

The exported network maps an image (1, 3, H, W) in [0, 1] to the enhanced one, whole, with the
reflect padding of inference. Height and width are free, from 2 pixels on. `--kind torch` writes a
program that `torch.export.load` reads.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from models import load_enhancer
from models.enhancer import UNetEnhancer, enhance
from utils.checkpoint import DEFAULT_WEIGHTS
from utils.errors import UserError, tell
from utils.files import atomic_path
from utils.options import ArgumentParser
from utils.script import exit_with

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript")  # that torch's exporter writes with
EXAMPLE = (1, 3, 48, 64)  # what the network is traced with; other sizes work as well


class ImageEnhancer(nn.Module):
    """The network and the division by its light map in one: image to enhanced image."""

    def __init__(self, enhancer: UNetEnhancer) -> None:
        super().__init__()
        self.enhancer = enhancer

    def forward(self, image: Tensor) -> Tensor:
        """Map an image (1, 3, H, W) in [0, 1] to the enhanced one, of the same shape and range."""
        return enhance(image, self.enhancer(image))


def main(args: argparse.Namespace) -> None:
    """Export the weights in the format asked for.

    Raises:
        UserError: an argument is wrong, or a package is missing.
    """
    output = Path(args.output or f"rave{SUFFIXES[args.kind]}")
    if output.suffix != SUFFIXES[args.kind]:
        raise UserError(f"--output {output} should end in {SUFFIXES[args.kind]}; rename it")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if args.kind == "onnx" and missing:
        raise UserError(
            f"--kind onnx needs {' and '.join(missing)}; pip install -r requirements-dev.txt has it"
        )
    enhancer = load_enhancer(args.unet_pretrain_dir, "cpu")
    program = trace(ImageEnhancer(enhancer.to(memory_format=torch.contiguous_format)).eval())
    with atomic_path(output) as temporary:
        if args.kind == "onnx":
            save_onnx(program, temporary)
        else:
            torch.export.save(program, temporary)
    tell(f"exported to {output}")


def trace(network: ImageEnhancer) -> torch.export.ExportedProgram:
    """Record what the network computes, for any height and width from 2 pixels on."""
    sizes = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    with torch.no_grad():
        return torch.export.export(network, (torch.rand(EXAMPLE),), dynamic_shapes={"image": sizes})


def save_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a recorded network as one ONNX file, whose input is `image` and output `enhanced`."""
    torch.onnx.export(
        program,
        f=path,
        input_names=["image"],
        output_names=["enhanced"],
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kind", choices=list(SUFFIXES), required=True, help="what to write; onnx needs torch 2.6"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where (default: rave.onnx or rave.pt2)"
    )
    parser.add_argument(
        "-c",
        "--unet_pretrain_dir",
        metavar="FILE",
        help="enhancer weights: a path, or the name of a file in pretrained_models/ "
        f"(default: {DEFAULT_WEIGHTS} there)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
