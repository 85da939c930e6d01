"""Command-line arguments that scripts share; the published values are the defaults."""

import argparse
import math

import torch

from utils.errors import UserError

DEVICES = ("cpu", "cuda", "mps")


def str2bool(text: str) -> bool:
    """Read True or False given as a word, as the published commands do.

    Raises:
        argparse.ArgumentTypeError: the word is neither.
    """
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected True or False, not {text!r}")
    return words[text.lower()]


def positive_int(text: str) -> int:
    """Read a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is smaller.
        ValueError: it is not a whole number.
    """
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, not {text}")
    return int(text)


def count(text: str) -> int:
    """Read a whole number of at least 0.

    Raises:
        argparse.ArgumentTypeError: it is smaller.
        ValueError: it is not a whole number.
    """
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0, not {text}")
    return int(text)


def nonnegative(text: str) -> float:
    """Read a number of at least 0.

    Raises:
        argparse.ArgumentTypeError: it is negative or not finite.
        ValueError: it is not a number.
    """
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, not {text}")
    return float(text)


def positive(text: str) -> float:
    """Read a number above 0.

    Raises:
        argparse.ArgumentTypeError: it is not above 0, or not finite.
        ValueError: it is not a number.
    """
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text}")
    return float(text)


def share_below_one(text: str) -> float:
    """Read a number from 0 up to, but not, 1.

    Raises:
        argparse.ArgumentTypeError: it is outside.
        ValueError: it is not a number.
    """
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, not {text}")
    return float(text)


def share(text: str) -> float:
    """Read a number above 0 and up to 1.

    Raises:
        argparse.ArgumentTypeError: it is outside.
        ValueError: it is not a number.
    """
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, not {text}")
    return float(text)


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
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no device {name} here ({reason}); --device auto finds one") from error
    return torch.device(name)


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
    group.add_argument("--image_size", type=positive_int, default=512, help="side in pixels")
    group.add_argument(
        "--cache",
        choices=["memory", "disk", "none"],
        default="memory",
        help="where decoded, resized photographs are kept (default: %(default)s)",
    )
    group.add_argument("--num_workers", type=count, default=4, help="loading processes")


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the frozen encoders (method.md, 2)."""
    group = parser.add_argument_group("frozen encoders")
    group.add_argument(
        "--guidance_encoder",
        default="ViT-B-32",
        metavar="NAME",
        help="an open_clip model or timm/NAME (default: %(default)s)",
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
        help="an open_clip ResNet or timm/NAME (default: %(default)s)",
    )
    group.add_argument(
        "--identity_weights", metavar="FILE", help="local weights of the identity encoder"
    )


def add_training_arguments(parser: argparse.ArgumentParser, num_epochs: int) -> None:
    """Add the enhancer's schedule and the run's housekeeping (method.md, 7)."""
    group = parser.add_argument_group("enhancer")
    group.add_argument("--train_lr", type=nonnegative, default=2e-5, help="Adam's learning rate")
    group.add_argument("--weight_decay", type=nonnegative, default=1e-3, help="of every optimiser")
    group.add_argument("--train_batch_size", type=positive_int, default=8)
    group.add_argument(
        "--num_epochs", type=positive_int, default=num_epochs, help="passes over the backlit photos"
    )
    group.add_argument(
        "--num_reconstruction_iters", type=count, default=1000, help="length of the warm-up"
    )
    group.add_argument(
        "--thre_train", type=float, default=90.0, help="a round goes on while its loss exceeds this"
    )
    group.add_argument("--unet_pretrain_dir", metavar="FILE", help="enhancer weights to start from")
    group.add_argument(
        "--load_pretrain_unet",
        type=str2bool,
        metavar="True|False",
        help="False ignores --unet_pretrain_dir (default: load it if it is given)",
    )
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
        type=share_below_one,
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
    run = parser.add_argument_group("run")
    run.add_argument("--exp_name", required=True, help="the run's folder below --save_dir")
    run.add_argument("--save_dir", default="train_models", metavar="FOLDER")
    run.add_argument(
        "--resume", action="store_true", help="go on where the run of this --exp_name stopped"
    )
    run.add_argument("--max_iters", type=positive_int, help="stop after so many iterations in all")
    run.add_argument(
        "--display_iter",
        type=positive_int,
        default=20,
        help="iterations between checks for the best weights, log lines and resumable states",
    )
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    run.add_argument("--amp", action="store_true", help="bf16 autocast: faster, not bit-exact")
    run.add_argument("--compile", action="store_true", help="torch.compile the enhancer")


# Arguments that a resumed run may change: they decide where and how long, not what is computed.
FREE_ON_RESUME = frozenset(
    {"device", "resume", "save_dir", "exp_name", "num_workers", "cache", "max_iters", "num_epochs"}
)


def deciding(args: argparse.Namespace) -> dict:
    """The arguments that decide a run's result, which a resumed run must repeat."""
    free = FREE_ON_RESUME - {"max_iters", "num_epochs"} if args.lr_cosine else FREE_ON_RESUME
    return {name: value for name, value in vars(args).items() if name not in free}
