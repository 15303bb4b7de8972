"""The shapes that are measured, as a mapping from stage to dependencies."""

from __future__ import annotations

__all__ = ["Shape", "chain", "fan_out", "layers"]

Shape = dict[str, tuple[str, ...]]


def chain(size: int) -> Shape:
    """Each stage after the one before it."""
    return {f"s{n}": (f"s{n - 1}",) if n else () for n in range(size)}


def fan_out(size: int) -> Shape:
    """One stage, and all others after it."""
    return {"s0": (), **{f"s{n}": ("s0",) for n in range(1, size)}}


def layers(width: int, depth: int) -> Shape:
    """Layers of stages, each stage after all of the layer before it."""
    shape: Shape = {}
    for layer in range(depth):
        before = tuple(f"s{layer - 1}_{n}" for n in range(width)) if layer else ()
        shape.update({f"s{layer}_{n}": before for n in range(width)})
    return shape
