"""Fixtures that several test files share."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs, released checkpoints and golden numbers beside the repo."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the photographs and golden numbers of {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict:
    """Numbers that the released code computes with the tiny CLIP."""
    return torch.load(shared / "golden" / "golden.pt", weights_only=True)
