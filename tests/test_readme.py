"""Every command of the documents: its arguments are read, and what is cheap enough is run."""

import re
import shutil
import subprocess

import pytest
from PIL import Image

import train
from data.images import IMAGE_SUFFIXES
from models import vocabulary
from models.enhancer import new_enhancer
from tests.commands import ROOT, bash_commands, help_of, parse, words_of
from tests.forks import DRAWINGS, stand_in
from utils import checkpoint
from utils.errors import UserError

DOCUMENTS = ("README.md", "pretrained_models/README.md", "docs/method.md", "docs/published.md")
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
COMMANDS = [(name, command) for name, text in TEXTS.items() for command in bash_commands(text)]
INLINE = [
    (name, " ".join(code.split()))
    for name, text in TEXTS.items()
    for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
]
SCRIPTS = ("train.py", "train_rave.py", "inference.py", "compute_metrics.py", "reproduce.py")
PUBLISHED = [
    *(f"{method}_paired.pth" for method in ("clip_lit", "clip_lit_latent", "rave")),
    *(f"{method}_unpaired.pth" for method in ("clip_lit", "clip_lit_latent", "rave")),
    *("rave_unpaired_shifted.pth", "clip_lit_original.pth"),
]
# Arguments that stand for photographs of the reader's.
PHOTOS = (
    *("input", "gt_images_path", "enhanced_images_path", "input_images_path"),
    *("backlit_images_path", "well_lit_images_path", "val_input_path", "val_gt_path"),
    *("pairs", "simulate", "backlit"),
)
# Weights that stand for the reader's; any others must be there.
OWN_WEIGHTS = r"weights\.pth|train_models/\w+/snapshots_model/(best_model_round\d+|final)\.pth"
TINY = dict(
    device="cpu",
    compile=False,
    image_size=16,
    train_batch_size=2,
    num_workers=0,
    num_reconstruction_iters=1,
    start_light_map=1.0,
    display_iter=1,
    max_iters=2,
    thre_train=1e9,
)
TINY_GUIDANCE = dict(
    num_clip_pretrained_iters=1, prompt_batch_size=2, prompt_display_iter=1, thre_prompt=1e9
)
LOADED = {}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folder pretrained_models of a reader who has put the published files there."""
    folder = tmp_path_factory.mktemp("weights") / "pretrained_models"
    shutil.copytree(checkpoint.PRETRAINED, folder)
    for name in PUBLISHED:
        checkpoint.save_weights(new_enhancer(1.0), folder / name)
    return folder


@pytest.fixture
def workspace(tmp_path, weights, monkeypatch):
    """A folder to work in that is empty but for the weights."""
    (tmp_path / "pretrained_models").symlink_to(weights)
    monkeypatch.setattr(checkpoint, "PRETRAINED", weights)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def reader(workspace, training_folders, request, monkeypatch):
    """Someone who follows the documents; does what a command says, on photographs of theirs."""
    return Reader(workspace, training_folders, request, monkeypatch)


class Reader:
    def __init__(self, workspace, photos, request, monkeypatch):
        self.workspace, self.photos = workspace, photos
        self.request, self.monkeypatch = request, monkeypatch

    def follow(self, command):
        """Check a command, and run it if it is one of our scripts."""
        match words_of(command):
            case ["make", *targets]:
                subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)
            case ["git", "clone", address]:
                assert address.startswith("https://")
            case ["cd", _] | ["source", ".venv/bin/activate"]:
                pass
            case ["mkdir" | "cp", *_]:  # photographs are provided where they are read
                pass
            case ["python" | "python3" | ".venv/bin/python", "-m", "venv", ".venv"]:
                pass
            case ["python", "-m", "pip", "install", "torch", "torchvision", "--index-url", address]:
                assert address.startswith("https://download.pytorch.org/whl/")
            case ["pip" | "python" | ".venv/bin/python", *rest] if "install" in rest:
                assert rest[-2] == "-r" and (ROOT / rest[-1]).is_file()
            case ["python", "-m", "pytest", *tests]:
                assert all((ROOT / test).exists() for test in tests)
            case ["python", *arguments]:
                self.run(*parse(arguments))
            case ["torchrun", number, script, *arguments]:
                assert re.fullmatch(r"--nproc_per_node=\d+", number)
                self.run(*parse([script, *arguments]))  # as the only process
            case _:
                raise ValueError(f"nobody has said how to test {command}")

    def run(self, module, args):
        """Run a script on small photographs under the names that its arguments have."""
        if args is None:
            return
        self.provide(args)
        match module.__name__:
            case "train" | "train_rave":
                self.train(module, args)
            case "compute_metrics":
                named = set(args.metrics or ()) & {"lpips", "fid"}
                self.request.getfixturevalue("random_hub" if named else "empty_hub")
                if "niqe" in (args.metrics or ()):
                    args.niqe_parameters = self.request.getfixturevalue("niqe_parameters")
                    self.enlarge(args.enhanced_images_path, args.input_images_path)
                assert not module.main(args)
            case "inference" | "data.prepare" | "data.demo":
                assert not module.main(args)
            case "export":
                assert args.output in ("rave.onnx", "rave.pt2")  # tests/test_export.py writes them
            case "reproduce":  # tests/test_reproduce.py goes its whole way
                assert set(args.systems) <= set(module.NAMES)
            case "utils.download":
                assert f"{args.name}.pth" in PUBLISHED  # tests/test_download.py does the rest
            case "pretrained_models.train_default":
                assert not args.held_out  # its own tests go its whole way
            case name:
                assert name.startswith("benchmarks."), f"nobody has said how to run {name}"

    def provide(self, args):
        """Put photographs and weights where the arguments look for them."""
        for argument in PHOTOS:
            for path in flat(getattr(args, argument, None)):
                place = self.workspace / path
                assert not path.startswith(("/", "~", "..")), f"{path} is no relative path"
                kind = (
                    "backlit"
                    if argument in ("input", "backlit_images_path", "val_input_path")
                    else "well_lit"
                )
                if place.suffix in IMAGE_SUFFIXES:
                    shutil.copy(self.photos / kind / "0.png", place)
                else:
                    shutil.copytree(self.photos / kind, place, dirs_exist_ok=True)
        weights = getattr(args, "unet_pretrain_dir", None)
        if weights and re.fullmatch(OWN_WEIGHTS, weights):
            checkpoint.save_weights(new_enhancer(1.0), self.workspace / weights)

    def enlarge(self, *folders):
        """Make photographs large enough for NIQE."""
        for folder in folders:
            for path in (self.workspace / folder).iterdir():
                Image.open(path).resize((240, 192), Image.Resampling.BICUBIC).save(path)

    def train(self, module, args):
        """Train for two iterations on tiny images, with a small CLIP where it has to be CLIP."""
        vars(args).update(TINY)
        if module is train:
            vars(args).update(TINY_GUIDANCE)
            self.monkeypatch.setattr(train, "GUIDANCE_SIZE", 16)
        for name, weights, small in (
            ("guidance_encoder", "clip_weights", "small_vit"),
            ("identity_encoder", "identity_weights", "small_resnet"),
        ):
            if not getattr(args, name).startswith("timm/"):
                setattr(args, weights, str(self.request.getfixturevalue(small)))
        for drawing in DRAWINGS:
            self.monkeypatch.setattr(drawing, stand_in(drawing))
        texts = [f"word {number}" for number in range(50)]
        self.monkeypatch.setattr(vocabulary, "vocabulary_texts", lambda: texts)
        self.monkeypatch.setenv("XDG_CACHE_HOME", str(self.workspace / "cache"))
        load = module.load_encoders
        self.monkeypatch.setattr(module, "load_encoders", lambda *how: load_once(load, *how))
        folder = self.workspace / args.save_dir / args.exp_name
        if args.resume:
            vars(args).update(resume=False, max_iters=1)
            assert not module.main(args)
            vars(args).update(resume=True, max_iters=2)
        assert not module.main(args)
        written = "residual.pt" if getattr(args, "interpret_only", False) else "snapshots_model"
        assert (folder / written).exists()


def load_once(load, *how):
    """Load encoders, which takes longer than a tiny run, once for all commands."""
    if repr(how) not in LOADED:
        LOADED[repr(how)] = load(*how)
    return LOADED[repr(how)]


def flat(value):
    """The strings of an argument: one, a list, or a list of lists."""
    if value is None or isinstance(value, str):
        return [value] if value else []
    return [text for item in value for text in flat(item)]


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_command(document, command, reader):
    reader.follow(command)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_does_what_it_says(document, workspace, training_folders):
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXTS[document], re.M | re.S)
    assert blocks or document != "README.md"
    for block in blocks:
        Image.open(training_folders / "backlit" / "0.png").save(workspace / "photo.jpg")
        exec(block, {})
        assert Image.open(workspace / "enhanced.png").size == (40, 32)


def test_there_are_commands_of_every_script():
    text = "\n".join(command for _, command in COMMANDS)
    assert all(f"python {script}" in text for script in SCRIPTS)
    assert "make demo" in text and "make test" in text


def test_no_shell_block_escapes_under_another_name():
    for text in TEXTS.values():
        assert not re.search(r"^\s*(```|~~~)(sh|shell|console|zsh)\b|^\s*~~~", text, re.M)


@pytest.mark.parametrize(
    "code", sorted({code for _, code in INLINE if re.match(r"(python|make) ", code)})
)
def test_what_a_sentence_tells_to_run_exists(code, reader):
    words = words_of(code)
    if words[0] == "python" and len(words) <= 3 - (words[1] != "-m"):
        parse([*words[1:], "--help"])  # a script by its name alone
    else:
        reader.follow(code)


def test_flags_that_sentences_mention_exist():
    scripts = (*SCRIPTS, "data/prepare.py", "pretrained_models/train_default.py")
    known = set(re.findall(r"--\w+", "".join(map(help_of, scripts))))
    mentioned = {flag for _, code in INLINE for flag in re.findall(r"--\w+", code)}
    assert mentioned <= known | {"--nproc_per_node"}  # torchrun's


@pytest.mark.parametrize(
    "address",
    [
        *("arxiv.org/abs/2404.01889", "github.com/Atmyre/RAVE"),
        *("arxiv.org/abs/2303.17569", "github.com/ZhexinLiang/CLIP-LIT"),
    ],
)
def test_papers_and_repositories_are_linked(address):
    for document in ("README.md", "pretrained_models/README.md"):
        assert f"](https://{address}" in TEXTS[document]


@pytest.mark.parametrize("data", ["BAID", "DIV2K", "LOL-v1", "Backlit300"])
def test_data_sets_are_linked(data):
    link = r"\]\(https://\S+\)"
    own, page = rf"\[{data}{link}", rf"{link} links its test photographs and {data}\b"
    assert re.search(f"{own}|{page}", " ".join(TEXTS["README.md"].split()))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#\s]+)", TEXTS[document])
    missing = [
        link
        for link in links
        if not link.startswith("https://") and not (ROOT / document).parent.joinpath(link).exists()
    ]
    assert not missing


@pytest.mark.parametrize(
    "wrong",
    [
        "python inference.py -i photos/ -o enhanced/ --no_such_flag",
        "python train.py -b backlit/ -r well_lit/",
        "python -m data.nothing there",
        "python nothing.py",
        "python inference.py -i photos/ -o enhanced/ && ls",
        "python inference.py -i photos/ -o enhanced/ -c no_such_weights",
        "torchrun inference.py -i photos/ -o enhanced/",
        "torchrun --nproc_per_node=2 inference.py -i photos/ --no_such_flag",
        "make no_such_target",
        "pip install -r nothing.txt",
        "pip install something",
        "curl https://example.org",
    ],
)
def test_wrong_commands_are_found(wrong, reader):
    with pytest.raises((ValueError, AssertionError, subprocess.CalledProcessError, UserError)):
        reader.follow(wrong)


def test_commands_are_found_in_blocks():
    text = """
```bash
python train.py \\
    -b x  # here
# no command

make demo
```
```text
no command
```
1. item
   ```bash
   A=1 make test
   ```
"""
    assert bash_commands(text) == ["python train.py -b x # here", "make demo", "A=1 make test"]
    assert words_of("A=1 make test # so") == ["make", "test"]
