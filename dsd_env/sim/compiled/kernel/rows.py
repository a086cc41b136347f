"""Rows of structured memory in compiled code: `server.ready`, `world.requests[q].committed`.

A :class:`~dsd_env.sim.compiled.records.Record` says which named fields lie where. In the kernel a row is a
bare pointer whose type knows its record, so that a call passes one word and a field is one load or store:

* a number reads as a float64 or, of whatever width it is stored, as an int64 (so that no function is compiled
  once for every width), a flag as a boolean;
* a record within a record reads as a row, an array of fixed length as rows;
* a block reads as rows too; where it begins, in bytes from its own record, is what the field holds.

Rows are indexed; nothing checks the bounds.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.imputils import (
    lower_builtin,
    lower_getattr_generic,
    lower_setattr_generic,
)
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    infer_getattr,
    infer_global,
    signature,
)
from numba.extending import intrinsic

from dsd_env.sim.compiled.records import Array, Block, Element, Record, Ref

_BYTE = ir.IntType(8)


class RowType(types.Type):
    """Pointer to one row of a record."""

    def __init__(self, record: Record) -> None:
        """Take the record."""
        self.record = record
        super().__init__(name=f"Row({record.name})")


class RowsType(types.Type):
    """Pointer to the first of many elements: rows of a record, or numbers of one width."""

    def __init__(self, element: Element) -> None:
        """Take what it points to."""
        self.element = element
        name = element.name if isinstance(element, Record) else str(element)
        super().__init__(name=f"Rows({name})")


@register_default(RowType)
@register_default(RowsType)
class _PointerModel(models.OpaqueModel):
    """Both are the address of a byte."""


def element_type(element: Element) -> types.Type:
    """Return what an element reads as."""
    if isinstance(element, Record):
        return RowType(element)
    if element.kind == "f":
        return types.float32 if element.itemsize == 4 else types.float64
    if element.kind == "b":
        return types.boolean
    return types.uint64 if element.kind == "u" and element.itemsize == 8 else types.int64


def _field_type(row: RowType, name: str) -> types.Type | None:
    field = row.record.fields.get(name)
    if field is None:
        return None
    if isinstance(field, Array | Block):
        return RowsType(field.element)
    if isinstance(field, Ref):
        return RowType(field.element)
    return element_type(field)


def _stored(element: np.dtype) -> ir.Type:
    if element.kind == "f":
        return ir.FloatType() if element.itemsize == 4 else ir.DoubleType()
    return ir.IntType(8 * element.itemsize)


def _address(builder, pointer, offset):
    return builder.gep(pointer, [offset])


def _load(builder, element: np.dtype, pointer):
    stored = _stored(element)
    value = builder.load(builder.bitcast(pointer, stored.as_pointer()), align=element.itemsize)
    if element.kind == "b":
        return builder.icmp_unsigned("!=", value, ir.Constant(stored, 0))
    if element.kind in "iu" and element.itemsize < 8:
        widen = builder.sext if element.kind == "i" else builder.zext
        return widen(value, ir.IntType(64))
    return value


def _store(builder, element: np.dtype, pointer, value):
    stored = _stored(element)
    if element.kind == "b":
        value = builder.zext(value, stored) if value.type.width < 8 else builder.trunc(value, stored)
    elif element.kind in "iu" and element.itemsize < 8:
        value = builder.trunc(value, stored)
    builder.store(value, builder.bitcast(pointer, stored.as_pointer()), align=element.itemsize)


# ---------------------------------------------------------------------- fields


@infer_getattr
class _RowAttribute(AttributeTemplate):
    key = RowType

    def generic_resolve(self, row, name):
        return _field_type(row, name)


@lower_getattr_generic(RowType)
def _get_field(context, builder, row, pointer, name):
    field = row.record.fields[name]
    at = _address(builder, pointer, ir.Constant(ir.IntType(64), row.record.offsets[name]))
    if isinstance(field, Block | Ref):
        begin = builder.load(builder.bitcast(at, ir.IntType(64).as_pointer()), align=8)
        return _address(builder, pointer, begin)
    if isinstance(field, Array | Record):
        return at
    return _load(builder, field, at)


@lower_setattr_generic(RowType)
def _set_field(context, builder, sig, arguments, name):
    pointer, value = arguments
    record = sig.args[0].record
    at = _address(builder, pointer, ir.Constant(ir.IntType(64), record.offsets[name]))
    _store(builder, record.fields[name], at, value)


# ---------------------------------------------------------------------- elements


@infer_global(operator.getitem)
class _GetElement(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], RowsType) and isinstance(args[1], types.Integer):
            return signature(element_type(args[0].element), args[0], types.int64)
        return None


@infer_global(operator.setitem)
class _SetElement(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 3 and isinstance(args[0], RowsType) and isinstance(args[1], types.Integer):
            return signature(types.none, args[0], types.int64, element_type(args[0].element))
        return None


def _element(builder, element: Element, pointer, index):
    return _address(builder, pointer, builder.mul(index, ir.Constant(ir.IntType(64), element.itemsize)))


@lower_builtin(operator.getitem, RowsType, types.int64)
def _get_element(context, builder, sig, arguments):
    element = sig.args[0].element
    at = _element(builder, element, *arguments)
    return at if isinstance(element, Record) else _load(builder, element, at)


@lower_builtin(operator.setitem, RowsType, types.int64, types.Any)
def _set_element(context, builder, sig, arguments):
    element = sig.args[0].element
    pointer, index, value = arguments
    _store(builder, element, _element(builder, element, pointer, index), value)
    return context.get_dummy_value()


@intrinsic
def tail(typing_context, rows, first):
    """Return the rows from the `first` one on."""

    def generate(context, builder, sig, arguments):
        return _element(builder, sig.args[0].element, *arguments)

    return rows(rows, types.int64), generate


def cast(record: Record):
    """Return a function of compiled code that takes the address of a byte as a row of a record."""
    row = RowType(record)

    @intrinsic
    def take(typing_context, pointer):
        def generate(context, builder, sig, arguments):
            return builder.bitcast(arguments[0], _BYTE.as_pointer())

        return row(pointer), generate

    return take


@intrinsic
def fetch(typing_context, row_or_rows, at, length):
    """Ask for the cache lines of `length` bytes from `at` on, without waiting for them."""

    def generate(context, builder, sig, arguments):
        flag = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [_BYTE.as_pointer()],
            ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), flag, flag, flag]),
        )
        pointer, begin, size = arguments
        end = builder.add(begin, size)
        with cgutils.for_range_slice(builder, begin, end, ir.Constant(begin.type, 64), begin.type) as (
            index,
            _,
        ):
            builder.call(function, [_address(builder, pointer, index), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(row_or_rows, types.int64, types.int64), generate


@intrinsic
def clear(typing_context, row):
    """Set every byte of a row to 0."""

    def generate(context, builder, sig, arguments):
        cgutils.memset(builder, arguments[0], ir.Constant(ir.IntType(64), sig.args[0].record.itemsize), 0)
        return context.get_dummy_value()

    return types.void(row), generate


@intrinsic
def assign(typing_context, to, row):
    """Copy a row of the same record."""

    def generate(context, builder, sig, arguments):
        size = ir.Constant(ir.IntType(64), sig.args[0].record.itemsize)
        cgutils.raw_memcpy(builder, arguments[0], arguments[1], size, 1)
        return context.get_dummy_value()

    if to != row:
        return None
    return types.void(to, row), generate


@intrinsic
def copy_words(typing_context, to, words, n):
    """Copy so many words of 64 bits to where a row begins."""

    def generate(context, builder, sig, arguments):
        cgutils.raw_memcpy(builder, arguments[0], arguments[1], arguments[2], 8)
        return context.get_dummy_value()

    return types.void(to, words, types.int64), generate
