"""Writing kernels by hand: functions over arrays, with loops, in LLVM instructions.

For what is no program of elements: rows that are ranked, sums over a third index. As everywhere, nothing may be
re-associated or contracted unless the kernel writes it so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from llvmlite import ir

from merganser.engine.kernels.elements import F32, F64, I8, I16, I32, I64

Value = Any
Type: TypeAlias = Any
TYPES = {"f32": F32, "f64": F64, "i8": I8, "i16": I16, "i32": I32, "i64": I64}


def module(triple: str) -> Any:
    """An empty module."""
    made = ir.Module("merganser")
    made.triple = triple
    return made


def assembly(made: Any) -> str:
    """The text of a module."""
    # A loop's metadata must name itself first, which llvmlite cannot write.
    return re.sub(r'^(!\d+) = !{ !"loop"', r"\1 = distinct !{ \1", str(made), flags=re.MULTILINE)


class Writer:
    """A function that is being written. Arguments are named types, those ending in `*` pointers that share nothing."""

    def __init__(self, made: Any, name: str, arguments: Sequence[str], result: str = "") -> None:
        self.module = made
        types = [_type(argument) for argument in arguments]
        kind = ir.FunctionType(TYPES[result] if result else ir.VoidType(), types)
        self.function = ir.Function(made, kind, name)
        if result:
            self.function.linkage = "internal"
        self.arguments = list(self.function.args)
        for argument, text in zip(self.arguments, arguments, strict=True):
            if text.endswith("*"):
                argument.add_attribute("noalias")
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))

    def loop(self, first: Value, last: Value, body: Callable[[Value], None], step: int = 1) -> None:
        """`for i in range(first, last, step): body(i)`."""
        b = self.b
        before = b.block
        head, after = (self.function.append_basic_block(name) for name in ("loop", "done"))
        b.cbranch(b.icmp_signed("<", first, last), head, after)
        b.position_at_end(head)
        i = b.phi(I64)
        i.add_incoming(first, before)
        body(i)
        following = b.add(i, I64(step), flags=["nsw"])
        i.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, last), head, after)
        b.position_at_end(after)

    def at(self, pointer: Value, index: Value) -> Value:
        """The address of an element."""
        return self.b.gep(pointer, [index], inbounds=True)

    def get(self, pointer: Value, index: Value) -> Value:
        """An element."""
        return self.b.load(self.at(pointer, index))

    def put(self, pointer: Value, index: Value, value: Value) -> None:
        """Store an element."""
        self.b.store(value, self.at(pointer, index))

    def get_lanes(self, pointer: Value, index: Value, lanes: int) -> Value:
        """Neighbouring elements as a vector."""
        kind = ir.VectorType(pointer.type.pointee, lanes).as_pointer()
        return self.b.load(self.b.bitcast(self.at(pointer, index), kind), align=_size(pointer.type.pointee))

    def put_lanes(self, pointer: Value, index: Value, vector: Value) -> None:
        """Store a vector to neighbouring elements."""
        place = self.b.bitcast(self.at(pointer, index), vector.type.as_pointer())
        self.b.store(vector, place, align=_size(pointer.type.pointee))

    def splat(self, value: Value, lanes: int) -> Value:
        """A vector of one value."""
        vector = ir.VectorType(value.type, lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        one = self.b.insert_element(undefined, value, I32(0))
        return self.b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, lanes), None))

    def sum_of(self, vector: Value) -> Value:
        """The sum of a vector of integers."""
        kind = vector.type
        name = f"llvm.vector.reduce.add.v{kind.count}i{kind.element.width}"
        function = self.module.globals.get(name) or ir.Function(
            self.module, ir.FunctionType(kind.element, [kind]), name
        )
        return self.b.call(function, [vector])

    def variable(self, initial: Value) -> Value:
        """Memory for one value, made where the function begins."""
        with self.b.goto_entry_block():
            place = self.b.alloca(initial.type)
        self.b.store(initial, place)
        return place

    def add(self, variable: Value, value: Value) -> None:
        """Add to a variable."""
        self.b.store(self.b.add(self.b.load(variable), value), variable)

    def larger(self, x: Value, y: Value) -> Value:
        """The larger of two signed integers."""
        return self.b.select(self.b.icmp_signed(">", x, y), x, y)

    def smaller(self, x: Value, y: Value) -> Value:
        """The smaller of two signed integers."""
        return self.b.select(self.b.icmp_signed("<", x, y), x, y)


def _type(text: str) -> Type:
    kind = TYPES[text.rstrip("*")]
    return kind.as_pointer() if text.endswith("*") else kind


def _size(kind: Type) -> int:
    return {F32: 4, F64: 8, I8: 1, I16: 2, I32: 4, I64: 8}[kind]
