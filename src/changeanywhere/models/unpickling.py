"""What a pickle would make, read without making it.

A pickle is a program: Python's own reader imports what it names and calls it. Here the program is followed by an
interpreter of our own that can do three things alone: plain containers (dicts, lists, tuples, text, numbers), tensors,
which it notes as places in the file, and for all else :class:`Passed`, an object that takes anything and does nothing.
Nothing is imported and nothing is called but the functions of :data:`BUILDERS`, all of this module.

What trainers store beside weights (callbacks keyed by their class, configurations, counters of numpy) is passed over.
Names of the standard library that are no data (``os.system``, ``builtins.eval``) belong to no trainer: the file is
refused, though nothing would come of them.
"""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_BYTES = 512 * 2**20
"""Of a pickle without its tensors: training logs of a million steps stay below it."""
MAX_OPERATIONS = 5_000_000
"""Objects are made one by an operation, a few dozen bytes each."""
MAX_DIMENSIONS = 16
PYTHON_2 = frozenset({"__builtin__", "commands", "popen2", "copy_reg"})
"""Modules of the standard library under names that it had once."""
DATA: dict[str, str] = {
    "builtins": "set frozenset dict list tuple int float str bool bytes bytearray complex slice range object type "
    "getattr",
    "collections": "OrderedDict defaultdict Counter deque",
    "_codecs": "encode",
    "copyreg": "_reconstructor __newobj__ __newobj_ex__",
    "datetime": "date datetime time timedelta timezone",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "functools": "partial",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "uuid": "UUID SafeUUID",
    "time": "struct_time",
    "array": "array _array_reconstructor",
}
"""Names of the standard library that trainers store as data: passed over, like all that is third-party."""
DATA |= {"__builtin__": DATA["builtins"] + " unicode long xrange", "copy_reg": DATA["copyreg"]}
STORAGES = {
    f"torch.{kind}Storage": dtype
    for kind, dtype in {
        "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
        "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    }.items()
}  # fmt: skip
STORAGES |= {name.replace("torch.", "torch.cuda."): dtype for name, dtype in STORAGES.items()}
DTYPES = {f"torch.{dtype}": dtype for dtype in STORAGES.values()}
UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")


class UnreadableError(ValueError):
    """The pickle is damaged, too large, or no pickle."""


class ForbiddenError(ValueError):
    """The pickle names something of the standard library that is no data. The text is its name."""


@dataclass(frozen=True, eq=False)
class Passed:
    """Stands for an object that is not made; ``name`` of what would have made it."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers in the file."""

    key: str
    dtype: str
    """Of torch; empty where the tensor says it."""
    count: int
    """Elements; bytes where the storage has no dtype."""


@dataclass(frozen=True)
class TensorPlace:
    """A tensor as it lies in the file."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class Trace:
    """What was met on the way."""

    passed: list[str] = field(default_factory=list)
    """Names of what was not made, in order."""
    storages: dict[str, Storage] = field(default_factory=dict)
    """All that were named, those of what was passed over among them."""


class Reader:
    """A file of which no more than ``limit`` bytes are read."""

    def __init__(self, file: BinaryIO, limit: int = MAX_BYTES) -> None:
        self._file, self._left = file, limit

    def read(self, count: int = -1) -> bytes:
        """As of a file; :class:`UnreadableError` beyond the limit."""
        if count < 0 or count > self._left:
            raise UnreadableError(f"more than {MAX_BYTES // 2**20} MiB beside the tensors")
        content = self._file.read(count)
        self._left -= len(content)
        return content

    def readline(self) -> bytes:
        """As of a file; :class:`UnreadableError` beyond the limit."""
        content = self._file.readline(self._left + 1)
        self._left -= len(content)
        if self._left < 0:
            raise UnreadableError(f"more than {MAX_BYTES // 2**20} MiB beside the tensors")
        return content


def follow(file: Any, trace: Trace) -> Any:
    """What the pickle at the position of ``file`` would make, of plain containers, :class:`TensorPlace` and
    :class:`Passed`. Raises :class:`UnreadableError` and :class:`ForbiddenError`.
    """
    machine = _Machine(trace)
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if number > MAX_OPERATIONS:
                raise UnreadableError(f"more than {MAX_OPERATIONS} objects")
            if operation.name == "STOP":
                return machine.stack.pop()
            machine.do(operation.name, argument)
    except (UnreadableError, ForbiddenError):
        raise
    except Exception as error:  # a damaged program fails anywhere, pickletools' own checks among them
        raise UnreadableError(f"no sound pickle: {type(error).__name__}") from error
    raise UnreadableError("no sound pickle: it has no end")


class _Machine:
    """Stack and memo of a pickle's program."""

    def __init__(self, trace: Trace) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._trace = trace

    def do(self, name: str, argument: Any) -> None:
        """One operation."""
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _NUMBERS or name in _TEXTS:
            self.stack.append(argument)
        elif name in _BYTES:  # arrays of numpy and the like: never needed
            self.stack.append(self._pass("bytes"))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise UnreadableError(f"operation {name} is not supported")

    def _pass(self, name: str) -> Passed:
        if name != "bytes" and (not self._trace.passed or self._trace.passed[-1] != name):
            self._trace.passed.append(name)
        return Passed(name)

    def mark(self, _: Any) -> None:
        """Begin a list of what follows."""
        self._below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """What followed the last mark."""
        found, self.stack = self.stack, self._below.pop()
        return found

    def drop(self, _: Any) -> None:
        """POP: the last object, or an empty mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def drop_marked(self, _: Any) -> None:
        """POP_MARK."""
        self.marked()

    def name(self, argument: str) -> None:
        """GLOBAL: what is named ``module name``."""
        module, _, name = argument.partition(" ")
        self.stack.append(named(module, name))

    def name_of_stack(self, _: Any) -> None:
        """STACK_GLOBAL."""
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise UnreadableError("no sound pickle: a name that is no text")
        self.stack.append(named(module, name))

    def call(self, made_by: Any, arguments: Any) -> None:
        """What ``made_by`` would make: something only for :data:`BUILDERS`."""
        name = made_by.name if isinstance(made_by, Passed) else type(made_by).__name__
        builder = BUILDERS.get(name) if isinstance(made_by, Passed) else None
        arguments = arguments if isinstance(arguments, tuple) else ()
        made = builder(arguments) if builder else None
        self.stack.append(self._pass(name) if made is None else made)

    def reduce(self, _: Any) -> None:
        """REDUCE and NEWOBJ."""
        arguments = self.stack.pop()
        self.call(self.stack.pop(), arguments)

    def new_with_names(self, _: Any) -> None:
        """NEWOBJ_EX."""
        self.stack.pop()
        self.reduce(None)

    def instance(self, argument: str) -> None:
        """INST."""
        arguments = tuple(self.marked())
        module, _, name = argument.partition(" ")
        self.call(named(module, name), arguments)

    def object(self, _: Any) -> None:
        """OBJ."""
        kind, *arguments = self.marked()
        self.call(kind, tuple(arguments))

    def persistent(self, argument: Any) -> None:
        """PERSID and BINPERSID: torch's storages."""
        storage = storage_of(argument if argument is not None else self.stack.pop())
        self._trace.storages[storage.key] = storage
        self.stack.append(storage)

    def collect(self, kind: Callable[[list[Any]], Any]) -> None:
        """LIST, TUPLE, DICT, FROZENSET."""
        found = self.marked()
        self.stack.append(kind(found))

    def gather(self, count: int) -> None:
        """TUPLE1 to TUPLE3."""
        found = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(found)

    def append(self, values: list[Any]) -> None:
        """APPEND and APPENDS."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        """SETITEM and SETITEMS. Keys that are neither text nor numbers (classes of callbacks) are passed over."""
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_pairs(values))

    def build(self, _: Any) -> None:
        """BUILD: the state of an object, or attributes of a dict of weights."""
        self.stack.pop()


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return {
        key: value
        for key, value in zip(values[::2], values[1::2], strict=True)
        if key is None or isinstance(key, str | int | float)
    }


def named(module: str, name: str) -> Passed:
    """What a pickle names; :class:`ForbiddenError` for what of the standard library is no data."""
    root = module.partition(".")[0]
    whole = f"{module}.{name}"
    of_library = (root in sys.stdlib_module_names or root in PYTHON_2) and root != "typing"
    if of_library and name not in DATA.get(module, "").split():
        raise ForbiddenError(whole)
    return Passed(whole)


def storage_of(identity: Any) -> Storage:
    """Of a persistent id ``("storage", kind, key, location, count, …)``."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise UnreadableError("no sound pickle: a persistent id that is no storage")
    kind, key, count = identity[1], identity[2], identity[4]
    if not isinstance(kind, Passed) or (kind.name not in STORAGES and kind.name not in UNTYPED):
        raise UnreadableError(f"storages of kind {getattr(kind, 'name', kind)!r:.80} are not supported")
    if len(identity) > 5 and identity[5] is not None:
        raise UnreadableError("a storage that is a view of another one (torch before 0.4) is not supported")
    if not isinstance(key, str) or not _is_size(count):
        raise UnreadableError("no sound pickle: a storage without key and size")
    return Storage(key, STORAGES.get(kind.name, ""), count)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _tensor(arguments: tuple[Any, ...], dtype: str = "") -> TensorPlace:
    """``(storage, offset, size, stride, …)``."""
    storage, offset, size, stride = arguments[:4]
    sound = isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not sound or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise UnreadableError("no sound pickle: a tensor without storage, size and stride")
    if not all(map(_is_size, (offset, *size, *stride))):
        raise UnreadableError("no sound pickle: sizes of a tensor that are no sizes")
    if dtype:
        storage = Storage(storage.key, dtype, storage.count)
    return TensorPlace(storage, offset, size, stride)


def _tensor_of_bytes(arguments: tuple[Any, ...]) -> TensorPlace | None:
    """``_rebuild_tensor_v3``: the storage counts bytes, the tensor says its dtype."""
    kind = arguments[6]
    dtype = DTYPES.get(kind.name) if isinstance(kind, Passed) else None
    return _tensor(arguments, dtype) if dtype else None


def _first(arguments: tuple[Any, ...]) -> Any:
    """A parameter is its tensor."""
    return arguments[0] if isinstance(arguments[0], TensorPlace) else None


def _typed(arguments: tuple[Any, ...]) -> Any:
    """``_rebuild_from_type_v2(function, type, arguments, state)``: a tensor of a subclass."""
    function, inner = arguments[0], arguments[2]
    builder = BUILDERS.get(function.name) if isinstance(function, Passed) else None
    return builder(inner) if builder and isinstance(inner, tuple) else None


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """An empty one, or of a list of pairs (Python 2 wrote them so)."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    flat = [each for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2 for each in pair]
    return _pairs(flat)


BUILDERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda _: {},
    "builtins.dict": _dict,
}
"""All that is built; each takes the arguments that the pickle holds and gives plain data."""

_IGNORED = frozenset({"PROTO", "FRAME"})
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NUMBERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"})
_TEXTS = frozenset({"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING"})
_TEXTS |= {"SHORT_BINSTRING"}
_BYTES = frozenset({"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"})
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_marked,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(Passed("builtins.set")),
    "LIST": lambda machine, _: machine.collect(list),
    "TUPLE": lambda machine, _: machine.collect(tuple),
    "DICT": lambda machine, _: machine.collect(_pairs),
    "FROZENSET": lambda machine, _: machine.collect(lambda _: Passed("builtins.frozenset")),
    "TUPLE1": lambda machine, _: machine.gather(1),
    "TUPLE2": lambda machine, _: machine.gather(2),
    "TUPLE3": lambda machine, _: machine.gather(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.append(machine.marked()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_stack,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_names,
    "INST": _Machine.instance,
    "OBJ": _Machine.object,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.persistent,
}
