"""Prove that the tests notice a wrong method: change one place at a time, and a test must fail.

    python -m tests.mutations [FILE ...]

Each mutation is made in a copy of the checkout, in a folder of its own, so that only tests which
run on any clone count. A named file chooses the mutations of that file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "train_models", "enhanced", "output")
PASSED, FAILED = 0, 1  # pytest's exit statuses


@dataclass(frozen=True)
class Mutation:
    """One wrong place: `old`, found once in `file`, becomes `new`; one of `tests` must fail."""

    file: str
    old: str
    new: str
    tests: str  # separated by spaces, as pytest takes them


GOLDEN = "tests/test_golden.py"
STEPS = " ".join(
    f"{GOLDEN}::test_figure_is_the_released_one[steps.{kind}.loss.2]"
    for kind in ("warmup", "prompt", "rave")
)
LATENT = f"{GOLDEN}::test_figure_is_the_released_one[latent.ce.loss.1]"
CLOSED = "tests/test_criteria.py"
PARTNERS = "tests/test_train_rave.py::test_an_image_that_equals_its_partner_has_no_guidance_left"
CRITERIA, LOSSES, RESIDUAL = "models/criteria.py", "models/losses.py", "models/residual.py"
ENCODERS, LEARNER, STAGES = "models/encoders.py", "training/learner.py", "training/stages.py"
GUIDANCE, SCHEDULE = "training/guidance.py", "tests/test_stages.py"
SHARED = "tests/test_distributed.py::test_gradients_of_processes_and_parts_add_up"
OLDER = "tests/test_train.py::test_refinement_sees_the_older_round_before_the_newer"
MUTATIONS = [
    # Weights of the totals
    Mutation(CRITERIA, "IDENTITY_WEIGHT = 25.0", "IDENTITY_WEIGHT = 24.9", STEPS),
    Mutation(CRITERIA, "IDENTITY_IN_ROUNDS = 0.9", "IDENTITY_IN_ROUNDS = 1.0", STEPS),
    Mutation(CRITERIA, "GUIDANCE_WEIGHT = 320.0", "GUIDANCE_WEIGHT = 321.0", STEPS),
    Mutation(CRITERIA, "RESIDUAL_FACTOR = 6.0", "RESIDUAL_FACTOR = 5.9", STEPS),
    Mutation(CRITERIA, "backlit), WARM_UP_MAPS)", "backlit), ROUND_MAPS)", STEPS),
    Mutation(CRITERIA, "backlit), ROUND_MAPS)", "backlit), WARM_UP_MAPS)", STEPS),
    Mutation(
        CRITERIA,
        '"extension": guidance + identity',
        '"extension": factor * guidance + identity',
        CLOSED,
    ),
    Mutation(CRITERIA, "embed(partners)", "embed(backlit)", CLOSED),
    Mutation(LOSSES, "torch.where(own, (", "torch.where(~own, (", CLOSED),
    Mutation(LOSSES, "- partners).square().sum", "- partners).square().mean", CLOSED),
    Mutation("train_rave.py", "if args.paired_guidance else []", "if False else []", PARTNERS),
    Mutation("training/stages.py", "backlit, *partners, share", "backlit, share", PARTNERS),
    Mutation(CRITERIA, "square().mean(dim=(1, 2))", "square().mean()", CLOSED),
    # Refinement
    Mutation(CRITERIA, "RANKING_WEIGHT = 200.0", "RANKING_WEIGHT = 199.0", GOLDEN),
    Mutation(CRITERIA, "3: (0.9, 0.2)", "3: (0.9, 0.1)", GOLDEN),
    Mutation(CRITERIA, "4: (0.9, 0.1)", "4: (0.9, 0.2)", GOLDEN),
    Mutation(
        CRITERIA,
        "worst, *better = p_backlit(logits).unbind(dim=1)",
        "worst, *older, best = p_backlit(logits).unbind(dim=1)\n"
        "        better = [*reversed(older), best]",
        GOLDEN,
    ),
    # Terms
    Mutation(LOSSES, "weight * len(y) * F.mse_loss", "weight * F.mse_loss", GOLDEN),
    Mutation(LOSSES, "softmax(dim=-1)[..., 0]", "softmax(dim=-1)[..., 1]", GOLDEN),
    Mutation(ENCODERS, "antialias=False", "antialias=True", GOLDEN),
    # Residual vector
    Mutation(
        RESIDUAL,
        "for ends in (order[-n:], order[:n])",
        "for ends in (order[-15:], order[:15])",
        GOLDEN,
    ),
    Mutation(RESIDUAL, "r=r, t=residual.p @ r)", "r=r)", "tests/test_residual.py"),
    # Schedule
    Mutation(
        STAGES, "has_collapsed(schedule.since_restart,", "has_collapsed(schedule.done,", SCHEDULE
    ),
    Mutation(STAGES, 'terms["extension"] > args', 'terms["loss"] > args', SCHEDULE),
    Mutation(STAGES, "run.extend(EXTRA_PROMPT_ITERS)", "pass", SCHEDULE),
    Mutation(STAGES, "run.extend(EXTRA_ITERS)", "pass", SCHEDULE),
    Mutation(
        STAGES,
        'score=-terms["loss"], window=1',
        'score=-terms["loss"], window=2',
        SCHEDULE,
    ),
    Mutation(
        "data/datasets.py",
        "self.well_lit_order[key[1] % len(self.well_lit)]",
        "backlit % len(self.well_lit)",
        "tests/test_datasets.py",
    ),
    Mutation(
        "training/guidance.py", "sorted(rounds)[-LEVELS_KEPT:]}", "sorted(rounds)[:-3:-1]}", OLDER
    ),
    # Batches in parts
    Mutation(CRITERIA, "share * prompt_guidance_loss", "prompt_guidance_loss", CLOSED),
    Mutation(CRITERIA, "share * distance", "distance", CLOSED),
    Mutation(CRITERIA, "share * luma_psnr", "luma_psnr", CLOSED),
    Mutation(CRITERIA, "share * F.cross_entropy", "F.cross_entropy", CLOSED),
    Mutation(CRITERIA, "RANKING_WEIGHT * share *", "RANKING_WEIGHT *", CLOSED),
    Mutation(LEARNER, "loss * distributed.world_size()", "loss", f"{SHARED}[rave]"),
    Mutation("training/run.py", "if self._stands_in:", "if False:", f"{SHARED}[rave]"),
    # Training
    Mutation(STAGES, "        args.train_lr,\n", "        1.01 * args.train_lr,\n", STEPS),
    Mutation(LEARNER, "module.parameters(), lr=lr", "module.parameters(), lr=1.01 * lr", LATENT),
    Mutation(
        LEARNER,
        "self.best = copy.deepcopy(self.result().state_dict())",
        "self.best = self.result().state_dict()",
        "tests/test_learner.py",
    ),
    Mutation(
        LEARNER,
        "return self.module if self.average is None else self.average.module",
        "return self.module",
        "tests/test_learner.py",
    ),
]


def run_tests(copy: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a copy of the checkout until one fails, with an empty cache folder."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", *tests.split()]
    with tempfile.TemporaryDirectory() as cache:  # a mutation must not fill or find the user's
        environment = {
            **os.environ,
            "XDG_CACHE_HOME": cache,
            # Byte code of the file before a mutation may look up to date: its time counts seconds.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)


def try_mutation(copy: Path, mutation: Mutation) -> str:
    """Mutate the copy, run the tests, restore it; return what is wrong, "" if a test failed."""
    path = copy / mutation.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        return f"{mutation.old!r} is found {source.count(mutation.old)} times, not once"
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    done = run_tests(copy, mutation.tests)
    path.write_text(source, encoding="utf-8")
    if done.returncode == PASSED:
        return f"survived {mutation.tests}"
    if done.returncode != FAILED:
        return f"{mutation.tests} did not run:\n{done.stdout}{done.stderr}"
    return ""


def main(files: list[str]) -> int:
    """Try all mutations, or those of the files named; return 1 if anything is wrong."""
    chosen = [mutation for mutation in MUTATIONS if not files or mutation.file in files]
    if not chosen:
        print(f"there is no mutation of {' or '.join(files)}")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        # Tests that fail anyway would prove nothing.
        unchanged = run_tests(copy, " ".join(dict.fromkeys(m.tests for m in chosen)))
        if unchanged.returncode != PASSED:
            print(f"tests fail without any mutation:\n{unchanged.stdout}{unchanged.stderr}")
            return 1
        wrong = 0
        for mutation in chosen:
            problem = try_mutation(copy, mutation)
            wrong += bool(problem)
            name = f"{mutation.file}: {mutation.old} -> {mutation.new}"
            print(f"{name}: {problem or 'caught'}", flush=True)
    print(f"{len(chosen)} mutations, {wrong} not caught")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
