"""Command-line arguments that scripts share; the published values are the defaults."""

import argparse
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch

from utils.errors import UserError

DEVICES = ("cpu", "cuda", "mps")
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86, x86 and ARM, as torch names them
LARGEST = {int: 2**31 - 1, float: 1e30}  # of options without a bound of their own
STRONGEST = 3  # power of the light map
LONGEST_ENDING = 100  # bytes of the 255 that a file's name may have
SHOWN = 40  # characters of what an option was given instead


def str2bool(text: str) -> bool:
    """Read True or False given as a word, as the published commands do.

    Raises:
        argparse.ArgumentTypeError: the word is neither.
    """
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected True or False, not {text!r}")
    return words[text.lower()]


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep a description's lines, and end each option's line with its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if "default" in text or action.default in (None, False, "", [], argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


class ArgumentParser(argparse.ArgumentParser):
    """Show defaults in the help; refuse `--option=--`, which argparse reads as an empty list."""

    def __init__(self, **options: object) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Read the command line; the arguments are argparse's."""
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("-") and word.endswith("=--"):
                self.error(f"{word.removesuffix('=--')} needs a value, and -- is none")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line; of several processes with the same one, the first says why."""
        if os.environ.get("RANK", "0") != "0":
            self.exit(UserError.status)
        super().error(message)


def number(
    kind: type[int] | type[float],
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Callable[[str], int | float]:
    """Make the type of an option that takes a finite number within bounds.

    Args:
        kind: int or float.
        least, most: the bounds, which the number may equal.
        above, below: bounds that it may not equal.

    Returns:
        A function of the option's text; it raises `argparse.ArgumentTypeError` with a sentence.
    """
    bounds = {"of at least": least, "above": above, "of at most": most, "below": below}
    told = [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]
    wanted = f"a {'whole ' if kind is int else ''}number {' and '.join(told)}"

    def read(text: str) -> int | float:
        """Read the number, or refuse it with a sentence."""
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (
            (least is None or value >= least)
            and (above is None or value > above)
            and (below is None or value < below)
            and value <= (LARGEST[kind] if most is None else most)
        ):
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            raise argparse.ArgumentTypeError(f"expected {wanted}, not {shown!r}")
        return value

    return read


def name(text: str) -> str:
    """Read the name of a folder, which may not be empty.

    Raises:
        argparse.ArgumentTypeError: it is.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a name, not an empty one")
    return text


def ending(text: str) -> str:
    """Read what the names of results are to end with.

    Raises:
        argparse.ArgumentTypeError: it has a separator of paths, or leaves names too little room.
    """
    if "/" in text or "\\" in text:
        raise argparse.ArgumentTypeError(f"expected an end of names without / or \\, not {text!r}")
    if len(os.fsencode(text)) > LONGEST_ENDING:
        raise argparse.ArgumentTypeError(f"expected at most {LONGEST_ENDING} bytes, not {text!r}")
    return text


positive_int = number(int, least=1)
count = number(int, least=0)
nonnegative = number(float, least=0)
strength = number(float, least=0, most=STRONGEST)  # as inference.py takes it
positive = number(float, above=0)
share = number(float, above=0, most=1)  # of a whole
seed = number(int, least=0, most=2**63 - 1)  # what torch takes, with room for restarts' numbers


def choose_device(name: str) -> torch.device:
    """Turn auto, cpu, cuda, cuda:1 or mps into a device; auto takes the fastest there is.

    Raises:
        UserError: the device is not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.partition(":")[0] not in DEVICES:
        raise UserError(f"no device {name} here; --device takes auto, {', '.join(DEVICES)}")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no device {name} here ({reason}); --device auto finds one") from error
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by instructions of its own: CUDA, and some CPUs.

    On a CPU without them PyTorch converts to float32 and back, which takes longer than float32.
    """
    if device.type != "cpu":
        return device.type == "cuda"
    if hasattr(torch.cpu, "get_capabilities"):  # newer than 2.4
        known = torch.cpu.get_capabilities()
        return any(known.get(name) for name in BF16_INSTRUCTIONS)
    if platform.machine().lower() in ("arm64", "aarch64"):
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in known)


def add_photo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two folders of photographs that training learns from, and how they are kept."""
    group = parser.add_argument_group("photographs")
    group.add_argument(
        "-b",
        "--lowlight_images_path",
        "--backlit_images_path",
        dest="backlit_images_path",
        required=True,
        metavar="FOLDER",
        help="backlit photographs",
    )
    group.add_argument(
        "-r",
        "--normallight_images_path",
        "--well_lit_images_path",
        dest="well_lit_images_path",
        required=True,
        metavar="FOLDER",
        help="well-lit photographs, of the same scenes (paired) or of others (unpaired)",
    )
    group.add_argument(
        "--image_size", type=number(int, least=1, most=8192), default=512, help="side in pixels"
    )
    group.add_argument(
        "--cache",
        choices=["auto", "memory", "disk", "none"],
        default="auto",
        help="where decoded, resized photographs are kept; auto: in memory while they fit into a "
        "quarter of what is free, else on disk",
    )
    group.add_argument(
        "--num_workers", type=number(int, least=0, most=256), default=4, help="loading processes"
    )


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the frozen encoders (docs/method.md 2)."""
    group = parser.add_argument_group("frozen encoders")
    group.add_argument(
        "--guidance_encoder",
        default="ViT-B-32",
        metavar="NAME",
        help="an open_clip model or timm/NAME",
    )
    group.add_argument(
        "--clip_weights", metavar="FILE", help="local weights of the guidance encoder"
    )
    group.add_argument(
        "--guidance_stages",
        type=count,
        nargs="+",
        metavar="K",
        help="feature maps, from 0, that make the embedding of a timm/NAME (default: strides 4, 8)",
    )
    group.add_argument(
        "--identity_encoder",
        default="RN101",
        metavar="NAME",
        help="an open_clip ResNet or timm/NAME",
    )
    group.add_argument(
        "--identity_weights", metavar="FILE", help="local weights of the identity encoder"
    )


def add_enhancer_arguments(parser: argparse.ArgumentParser, num_epochs: int) -> None:
    """Add the enhancer's schedule (docs/method.md 7)."""
    group = parser.add_argument_group("enhancer")
    group.add_argument("--train_lr", type=nonnegative, default=2e-5, help="Adam's learning rate")
    group.add_argument("--weight_decay", type=nonnegative, default=1e-3, help="of every optimiser")
    group.add_argument("--train_batch_size", type=positive_int, default=8, help="images in a step")
    group.add_argument(
        "--accumulate",
        type=positive_int,
        default=1,
        metavar="N",
        help="compute a step in N parts, for want of memory: the same result in more time",
    )
    group.add_argument(
        "--num_epochs", type=positive_int, default=num_epochs, help="passes over the backlit photos"
    )
    group.add_argument(
        "--num_reconstruction_iters", type=count, default=1000, help="length of the warm-up"
    )
    group.add_argument(
        "--round_iters", type=positive_int, default=2100, help="length of a round after the warm-up"
    )
    group.add_argument(
        "--thre_train",
        type=nonnegative,
        default=90.0,
        help="a round goes on while its last loss (RAVE: without the factor 6) exceeds this",
    )
    group.add_argument("--unet_pretrain_dir", metavar="FILE", help="enhancer weights to start from")
    group.add_argument(
        "--load_pretrain_unet",
        type=str2bool,
        metavar="True|False",
        help="False ignores --unet_pretrain_dir (default: load it if it is given)",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where a run goes, how long it is and where it computes."""
    run = parser.add_argument_group("run")
    run.add_argument(
        "--exp_name", type=name, required=True, help="the run's folder below --save_dir"
    )
    run.add_argument(
        "--save_dir", type=name, default="train_models", metavar="FOLDER", help="where runs go"
    )
    run.add_argument(
        "--resume", action="store_true", help="go on where the run of this --exp_name stopped"
    )
    run.add_argument(
        "--max_iters",
        type=positive_int,
        help="stop after so many iterations of the enhancer in all",
    )
    run.add_argument(
        "--display_iter",
        type=positive_int,
        default=20,
        help="iterations between checks for the best weights, log lines and resumable states",
    )
    run.add_argument(
        "--keep",
        type=positive_int,
        metavar="N",
        help="keep the newest N files iter_*.pth (default: all of them)",
    )
    run.add_argument(
        "--tensorboard", action="store_true", help="write the log for TensorBoard, too"
    )
    run.add_argument("--seed", type=seed, default=0, help="of weights, order and augmentation")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add_validation_arguments(parser)


def add_validation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the pairs that are held out to score the enhancer while it trains."""
    group = parser.add_argument_group("validation while training; it changes no trained weight")
    group.add_argument(
        "--val_input_path", type=name, metavar="FOLDER", help="backlit photographs held out"
    )
    group.add_argument(
        "--val_gt_path", type=name, metavar="FOLDER", help="their ground truth, of the same names"
    )
    group.add_argument(
        "--val_iter",
        type=positive_int,
        default=200,
        help="enhancer iterations between scores, which come with the next line of the log",
    )
    group.add_argument(
        "--val_size",
        type=number(int, least=7),
        default=256,
        metavar="PIXELS",
        help="side of the squares that both are resized to",
    )


def add_beyond_paper_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what the paper has not; all of it is off by default. Returns the group, for more."""
    group = parser.add_argument_group("beyond the paper")
    group.add_argument("--lr_warmup_iters", type=count, default=0, help="linear rise of the rate")
    group.add_argument("--lr_cosine", action="store_true", help="let the rate fall to 0 by the end")
    group.add_argument(
        "--clip_grad_norm",
        type=nonnegative,
        default=0.0,
        help="longest gradient; 0 leaves it as it is",
    )
    group.add_argument(
        "--ema_decay",
        type=number(float, least=0, below=1),
        default=0.0,
        help="average the weights, 0.98 for instance",
    )
    group.add_argument(
        "--start_light_map",
        type=positive,
        help="start from larger weights whose light map is this everywhere, instead of N(0, 0.02)",
    )
    group.add_argument(
        "--identity_scale", type=nonnegative, default=1.0, help="multiplies the identity loss"
    )
    group.add_argument("--amp", action="store_true", help="bf16 autocast: faster, not bit-exact")
    group.add_argument("--compile", action="store_true", help="torch.compile the enhancer")
    return group


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Read the command line, and keep the options' defaults by name as `defaults`."""
    args = parser.parse_args(argv)
    args.defaults = {name: parser.get_default(name) for name in vars(args)}
    return args
