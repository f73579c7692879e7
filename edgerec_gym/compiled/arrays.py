"""Named tuples of arrays as arguments of kernels: one address instead of seventy arrays.

A kernel reads `feed.slot[row]` as Python does. Underneath is a table of addresses and shapes that never
changes, so the compiler may keep what it has read (LLVM's invariant loads). The arrays that a kernel sees are
bare C-contiguous memory without reference counts or negative indices. With numba's own arrays, possible
negative indices prevent vectorisation wherever an index is computed.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, get_type_hints

import numba as nb
import numpy as np
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_global, signature
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_builtin,
    lower_getattr,
    lower_getattr_generic,
    models,
    register_model,
)
from numba.np.numpy_support import as_dtype

from edgerec_gym.compiled.jit import CHECKED


class BareArrayType(types.Type):
    """C-contiguous memory of `ndim` dimensions; indices must not be negative.

    They are checked only where `EDGEREC_CHECK=1` is set (compiled/jit.py).
    """

    def __init__(self, dtype: types.Type, ndim: int) -> None:
        self.dtype, self.ndim = dtype, ndim
        self.numpy_dtype = as_dtype(dtype)
        super().__init__(f"BareArray({dtype}, {ndim})")


BoolVector = Annotated[np.ndarray, BareArrayType(nb.boolean, 1)]
BoolMatrix = Annotated[np.ndarray, BareArrayType(nb.boolean, 2)]
Int8Matrix = Annotated[np.ndarray, BareArrayType(nb.int8, 2)]
Int32Vector = Annotated[np.ndarray, BareArrayType(nb.int32, 1)]
Int32Matrix = Annotated[np.ndarray, BareArrayType(nb.int32, 2)]
Int64Vector = Annotated[np.ndarray, BareArrayType(nb.int64, 1)]
Int64Matrix = Annotated[np.ndarray, BareArrayType(nb.int64, 2)]
Int32Cube = Annotated[np.ndarray, BareArrayType(nb.int32, 3)]
UInt64Vector = Annotated[np.ndarray, BareArrayType(nb.uint64, 1)]
UInt64Matrix = Annotated[np.ndarray, BareArrayType(nb.uint64, 2)]
Float32Vector = Annotated[np.ndarray, BareArrayType(nb.float32, 1)]
Float32Matrix = Annotated[np.ndarray, BareArrayType(nb.float32, 2)]
Float32Cube = Annotated[np.ndarray, BareArrayType(nb.float32, 3)]
Float64Vector = Annotated[np.ndarray, BareArrayType(nb.float64, 1)]
Float64Matrix = Annotated[np.ndarray, BareArrayType(nb.float64, 2)]
Float64Cube = Annotated[np.ndarray, BareArrayType(nb.float64, 3)]


class TableType(types.Type):
    """Numba type of a named tuple of numbers, arrays and further such named tuples.

    Args:
        owner: a NamedTuple class whose annotations are int, float, the aliases above, or such classes.
    """

    def __init__(self, owner: type) -> None:
        self.members: dict[str, types.Type] = {}
        self.first_word: dict[str, int] = {}
        self.words = 0
        for name, hint in get_type_hints(owner, include_extras=True).items():
            kind = _numba_type(hint)
            self.members[name], self.first_word[name] = kind, self.words
            self.words += 1 + (kind.ndim if isinstance(kind, BareArrayType) else 0)
        super().__init__(f"AddressTable({owner.__module__}.{owner.__qualname__})")


def _numba_type(hint: Any) -> types.Type:
    if hint in (int, float):
        return types.int64 if hint is int else types.float64
    return hint.__metadata__[0] if hasattr(hint, "__metadata__") else table_type(hint)


@lru_cache
def table_type(owner: type) -> TableType:
    """Return the numba type of a NamedTuple class."""
    return TableType(owner)


class AddressTable:
    """A named tuple as kernels read it: numbers, addresses and shapes; keeps the arrays alive.

    A copy is a table of the copied arrays.

    Attributes:
        values: the named tuple.
        address: address of the table, for an entry point, which calls the class's :func:`reader` on it.
    """

    def __init__(self, values: NamedTuple) -> None:
        kind = table_type(type(values))
        self.values, self._nested = values, []  # type: tuple[Any, list[AddressTable]]
        self._words = np.zeros(kind.words, np.int64)
        for name, member in kind.members.items():
            self._write(kind.first_word[name], name, member, getattr(values, name))
        self.address = self._words.ctypes.data

    def __reduce__(self) -> tuple[Any, ...]:
        return AddressTable, (self.values,)

    def _write(self, at: int, name: str, member: types.Type, value: Any) -> None:
        if isinstance(member, BareArrayType):
            fits = value.dtype == member.numpy_dtype and value.ndim == member.ndim
            if not (fits and value.flags.c_contiguous):
                raise TypeError(f"{name} is {nb.typeof(value)}, not {member}")
            self._words[at] = value.ctypes.data
            self._words[at + 1 : at + 1 + member.ndim] = value.shape
        elif isinstance(member, TableType):
            self._nested.append(AddressTable(value))
            self._words[at] = self._nested[-1].address
        else:
            self._words[at : at + 1].view(np.float64 if member == types.float64 else np.int64)[0] = value


def read_only(values: np.ndarray) -> np.ndarray:
    """Return a view that refuses to be written."""
    view = values.view()
    view.flags.writeable = False
    return view


def owned(value: Any) -> Any:
    """Return an array, or a named tuple of arrays, that owns its memory; a pickle may lend that of others."""
    if isinstance(value, np.ndarray):
        return value if value.flags.owndata and value.flags.writeable else value.copy()
    return type(value)(*map(owned, value)) if hasattr(value, "_fields") else value


def reader(owner: type) -> Any:
    """Return the intrinsic that turns the address of a table into the arrays of `owner`."""
    kind = table_type(owner)

    @intrinsic
    def read(typing_context, address):
        def codegen(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(types.intp), codegen

    return read


# --- numba extension ----------------------------------------------------------------------------------------

register_model(TableType)(models.OpaqueModel)


@register_model(BareArrayType)
class _BareArrayModel(models.StructModel):
    def __init__(self, manager, kind):
        shape = types.UniTuple(types.intp, kind.ndim)
        super().__init__(manager, kind, [("data", types.CPointer(kind.dtype)), ("shape", shape)])


@infer_getattr
class _TableMembers(AttributeTemplate):
    key = TableType

    def generic_resolve(self, kind, name):  # type: ignore[override]
        return kind.members.get(name)


@infer_getattr
class _BareArrayMembers(AttributeTemplate):
    key = BareArrayType

    def resolve_shape(self, kind):
        return types.UniTuple(types.intp, kind.ndim)


@lower_getattr(BareArrayType, "shape")
def _lower_shape(context, builder, kind, value):
    return cgutils.create_struct_proxy(kind)(context, builder, value).shape


@lower_getattr_generic(TableType)
def _lower_member(context, builder, kind, table, name):
    member, first = kind.members[name], kind.first_word[name]
    words = builder.bitcast(table, context.get_value_type(types.int64).as_pointer())

    def word(k):
        value = builder.load(builder.gep(words, [context.get_constant(types.intp, first + k)]))
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
        return value

    if isinstance(member, BareArrayType):
        array = cgutils.create_struct_proxy(member)(context, builder)
        array.data = builder.inttoptr(word(0), array.data.type)
        array.shape = cgutils.pack_array(builder, [word(1 + k) for k in range(member.ndim)])
        return array._getvalue()
    if isinstance(member, TableType):
        return builder.inttoptr(word(0), context.get_value_type(member))
    return builder.bitcast(word(0), context.get_value_type(member))


def _element_of(kind, index):
    """Return the type of kind[index], or None if the index does not fit."""
    indices: Any = index if isinstance(index, types.BaseTuple) else [index]
    if not isinstance(kind, BareArrayType) or not all(isinstance(i, types.Integer) for i in indices):
        return None
    left = kind.ndim - len(indices)
    return None if left < 0 else kind.dtype if left == 0 else BareArrayType(kind.dtype, left)


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, arguments, keywords):
        element = _element_of(*arguments)
        return None if element is None else signature(element, *arguments)


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, arguments, keywords):
        element = _element_of(*arguments[:2])
        if element is None or isinstance(element, BareArrayType):
            return None
        return signature(types.none, *arguments[:2], element)


def _locate(context, builder, kind, array, index_kind, index):
    """Return the pointer to array[index] and the sizes of the remaining dimensions."""
    kinds: Any = index_kind if isinstance(index_kind, types.BaseTuple) else [index_kind]
    values = cgutils.unpack_tuple(builder, index) if isinstance(index_kind, types.BaseTuple) else [index]
    array = cgutils.create_struct_proxy(kind)(context, builder, array)
    sizes = cgutils.unpack_tuple(builder, array.shape)
    offset = context.get_constant(types.intp, 0)
    for k in range(kind.ndim):
        if k > 0:
            offset = builder.mul(offset, sizes[k], flags=["nsw"])
        if k < len(values):
            step = context.cast(builder, values[k], kinds[k], types.intp)
            if CHECKED:
                cgutils.do_boundscheck(context, builder, step, sizes[k], k)
            offset = builder.add(offset, step, flags=["nsw"])
    return builder.gep(array.data, [offset], inbounds=True), sizes[len(values) :]


@lower_builtin(operator.getitem, BareArrayType, types.Any)
def _lower_getitem(context, builder, sig, arguments):
    kind, index_kind = sig.args
    pointer, sizes = _locate(context, builder, kind, arguments[0], index_kind, arguments[1])
    if not sizes:
        return context.unpack_value(builder, kind.dtype, pointer)
    row = cgutils.create_struct_proxy(sig.return_type)(context, builder)
    row.data, row.shape = pointer, cgutils.pack_array(builder, sizes)
    return row._getvalue()


@lower_builtin(operator.setitem, BareArrayType, types.Any, types.Any)
def _lower_setitem(context, builder, sig, arguments):
    kind, index_kind, value_kind = sig.args
    pointer, _ = _locate(context, builder, kind, arguments[0], index_kind, arguments[1])
    context.pack_value(
        builder, kind.dtype, context.cast(builder, arguments[2], value_kind, kind.dtype), pointer
    )
    return context.get_dummy_value()


@intrinsic
def move(typing_context, row, to, start, count):
    """Move `count` elements of a vector from position `start` to position `to`; they may overlap."""

    def codegen(context, builder, sig, arguments):
        kind = sig.args[0]
        if CHECKED:
            size = cgutils.create_struct_proxy(kind)(context, builder, arguments[0]).shape
            for first in arguments[1:3]:
                last = builder.sub(builder.add(first, arguments[3]), context.get_constant(types.intp, 1))
                cgutils.do_boundscheck(context, builder, last, cgutils.unpack_tuple(builder, size)[0])
        to, _ = _locate(context, builder, kind, arguments[0], types.intp, arguments[1])
        start, _ = _locate(context, builder, kind, arguments[0], types.intp, arguments[2])
        size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
        cgutils.raw_memmove(builder, to, start, arguments[3], size)
        return context.get_dummy_value()

    return types.void(row, types.intp, types.intp, types.intp), codegen
