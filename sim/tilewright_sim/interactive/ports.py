"""The plain ports of a component, and what their bits mean."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tilewright_hw.arch import InputError

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["Port", "ports_of"]


@dataclass(frozen=True)
class Port:
    """A port of plain Verilog, and the shape of its contents.

    Parameters
    ----------
    name : str
        As in `tilewright_hw.generate.plain_ports`.
    direction : {"input", "output"}
        Its direction.
    shape : shape-like
        Of the port, or of each element.
    dimensions : tuple of int
        The sizes of an array of ports, which lies in one vector, first element lowest; empty for a single one.
    """

    name: str
    direction: Literal["input", "output"]
    shape: Any
    dimensions: tuple[int, ...] = ()

    def pack(self, value: Any) -> int:
        """Return the bits of a value: nested sequences for an array, and in it what the shape has constants of.

        InputError where it does not fit.
        """
        return self._pack(value, self.dimensions)[0]

    def unpack(self, bits: int) -> Any:
        """Return the value of bits: lists for arrays, dictionaries for structs, integers and enumerators in them."""
        return self._unpack(bits, self.dimensions)[0]

    def _pack(self, value: Any, dimensions: tuple[int, ...]) -> tuple[int, int]:
        """Return bits and width of (a part of) an array."""
        if not dimensions:
            return self._pack_one(value)
        count, *rest = dimensions
        items = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(items, Sequence) or len(items) != count:
            raise InputError(f"{self.name} takes a sequence of {count}, not {value!r}")
        bits = at = 0
        for item in items:
            part, width = self._pack(item, tuple(rest))
            bits |= part << at
            at += width
        return bits, at

    def _pack_one(self, value: Any) -> tuple[int, int]:
        from amaranth.hdl import Const, Shape, ShapeCastable

        width = Shape.cast(self.shape).width
        if hasattr(value, "tolist"):
            value = value.tolist()  # NumPy's arrays and numbers
        if isinstance(self.shape, ShapeCastable) and isinstance(value, (Mapping, Sequence)):
            try:
                return Const.cast(self.shape.const(value)).value & ((1 << width) - 1), width
            except (TypeError, ValueError, KeyError, AttributeError) as e:
                raise InputError(f"{self.name} cannot be {value!r}: {e}") from e
        try:
            number = operator.index(Const.cast(value).value if isinstance(self.shape, ShapeCastable) else value)
        except TypeError as e:
            raise InputError(f"{self.name} takes an integer of {width} bits, not {value!r}") from e
        if not -(1 << width) // 2 <= number < 1 << width:
            raise InputError(f"{self.name} takes an integer of {width} bits, not {number}")
        return number & ((1 << width) - 1), width

    def _unpack(self, bits: int, dimensions: tuple[int, ...]) -> tuple[Any, int]:
        """Return the value of the lowest bits, and the bits above them."""
        if dimensions:
            items = []
            for _ in range(dimensions[0]):
                item, bits = self._unpack(bits, dimensions[1:])
                items.append(item)
            return items, bits
        from amaranth.hdl import Shape

        width = Shape.cast(self.shape).width
        return _value(self.shape, bits & ((1 << width) - 1)), bits >> width


def _value(shape: Any, bits: int) -> Any:
    """Return what bits mean: a dictionary for a struct, a list for an array, else an integer or enumerator."""
    from amaranth.hdl import Shape, ShapeCastable
    from amaranth.lib import data

    if isinstance(shape, data.Layout) or (isinstance(shape, type) and issubclass(shape, (data.Struct, data.Union))):
        layout = data.Layout.cast(shape)
        fields = {key: _value(field.shape, bits >> field.offset & ((1 << field.width) - 1)) for key, field in layout}
        return list(fields.values()) if isinstance(layout, data.ArrayLayout) else fields
    if isinstance(shape, ShapeCastable):
        return shape.from_bits(bits)
    plain = Shape.cast(shape)
    return bits - (1 << plain.width) if plain.signed and bits >> (plain.width - 1) else bits


def ports_of(component: Component) -> dict[str, Port]:
    """Return the ports of a component by the names that they have in plain Verilog; ports of no bits are left out."""
    from amaranth.hdl import Shape
    from amaranth.lib import wiring

    ports: dict[str, Port] = {}
    for path, member, _ in component.signature.flatten(component):
        if not Shape.cast(member.shape).width:
            continue
        depth = len(path)
        while isinstance(path[depth - 1], int):
            depth -= 1
        name = "_".join(map(str, path[:depth]))
        dimensions = tuple(int(index) + 1 for index in path[depth:])  # of an array, those of its last element stay
        ports[name] = Port(name, "output" if member.flow == wiring.Out else "input", member.shape, dimensions)
    return ports
