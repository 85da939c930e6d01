"""The method, tensors in and tensors out; `load_enhancer` gives a network ready for use."""

from __future__ import annotations

__all__ = ["load_enhancer"]


def __getattr__(name: str) -> object:
    """Import what is exported when it is first asked for: importing the package loads nothing."""
    if name == "load_enhancer":
        from models.pretrained import load_enhancer

        return load_enhancer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
