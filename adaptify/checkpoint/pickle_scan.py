"""Following the operations of a pickle without doing what they say: what it names, what it could take.

The stack of the unpickler holds stand-ins here: texts, numbers, tuples and lists stand for themselves, a
`Name` for a function, a `Made` for whatever a call makes. All in all they are no larger than the file.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from adaptify.checkpoint.pickle_costs import Costs, Made, Name


def scan(file: IO[bytes], pickles: int, limit: int) -> Iterator[str]:
    """Yield the full names of the functions and classes in so many pickles, one after the other in a file.

    Raises:
        UnboundedError: Calls could take more than `limit` bytes.
        Exception: It is no pickle, or takes something from the stack or the memo that is not there.
    """
    costs = Costs(limit)
    for _ in range(pickles):
        stack = _Stack(costs)
        steps = stack.steps()
        for opcode, argument, _ in pickletools.genops(file):
            steps[opcode.name](argument)
            if stack.named:
                yield stack.named
                stack.named = ""


class _Stack:
    """The stack and the memo of an unpickler; what an operation does to them is the method of its name."""

    def __init__(self, costs: Costs) -> None:
        self.named = ""
        self._costs = costs
        self._items: list[Any] = []
        self._below: list[list[Any]] = []  # the items under each mark
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Any] = {}

    def steps(self) -> dict[str, Callable[[Any], None]]:
        """What each operation does, given the argument that follows it in the file."""
        return {opcode.name: self._step(opcode) for opcode in pickletools.opcodes}

    def _step(self, opcode: pickletools.OpcodeInfo) -> Callable[[Any], None]:
        special: Callable[[Any], None] | None = getattr(self, f"do_{opcode.name.lower()}", None)
        if special is not None:
            return special
        # The others put down a value, or do nothing that matters here.
        return self._push if len(opcode.stack_after) > len(opcode.stack_before) else lambda argument: None

    def _push(self, value: Any) -> None:
        self._items.append(value)

    def _take(self, count: int) -> list[Any]:
        taken = self._items[-count:]
        if len(taken) < count:
            raise ValueError("an operation takes more from the stack than there is")
        del self._items[-count:]
        return taken

    def _unmark(self) -> list[Any]:
        items, self._items = self._items, self._below.pop()
        return items

    # Stack and memo

    def do_mark(self, argument: Any) -> None:
        self._below.append(self._items)
        self._items = []

    def do_pop_mark(self, argument: Any) -> None:
        self._unmark()

    def do_pop(self, argument: Any) -> None:
        if self._items:
            self._items.pop()
        else:
            self._unmark()

    def do_dup(self, argument: Any) -> None:
        self._push(self._items[-1])

    def do_stop(self, argument: Any) -> None:
        self._take(1)

    def do_put(self, argument: Any) -> None:
        self._memo[argument] = self._items[-1]

    do_binput = do_long_binput = do_put

    def do_memoize(self, argument: Any) -> None:
        self.do_put(len(self._memo))

    def do_get(self, argument: Any) -> None:
        self._items.append(self._memo[argument])

    do_binget = do_long_binget = do_get

    # Tuples, lists, dictionaries and sets

    def do_empty_tuple(self, argument: Any) -> None:
        self._push(())

    def do_tuple(self, argument: Any) -> None:
        self._push(tuple(self._unmark()))

    def do_tuple1(self, argument: Any) -> None:
        self._push(tuple(self._take(1)))

    def do_tuple2(self, argument: Any) -> None:
        self._push(tuple(self._take(2)))

    def do_tuple3(self, argument: Any) -> None:
        self._push(tuple(self._take(3)))

    def do_empty_list(self, argument: Any) -> None:
        self._push([])

    def do_list(self, argument: Any) -> None:
        self._push(self._unmark())

    def do_append(self, argument: Any) -> None:
        self._extend(self._take(1))

    def do_appends(self, argument: Any) -> None:
        self._extend(self._unmark())

    def _extend(self, items: list[Any]) -> None:
        if type(self._items[-1]) is list:  # what a call made may be extended as well, by its own methods
            self._items[-1].extend(items)
        else:
            self._enter(items)

    def do_empty_dict(self, argument: Any) -> None:
        self._push(Made())

    do_empty_set = do_empty_dict

    def do_dict(self, argument: Any) -> None:
        items = self._unmark()
        self._push(Made())
        self._enter(items[::2])

    def do_frozenset(self, argument: Any) -> None:
        items = self._unmark()
        self._push(Made())
        self._enter(items)

    def do_setitem(self, argument: Any) -> None:
        self._enter(self._take(2)[:1])

    def do_setitems(self, argument: Any) -> None:
        self._enter(self._unmark()[::2])

    def do_additems(self, argument: Any) -> None:
        self._enter(self._unmark())

    def _enter(self, keys: Sequence[Any]) -> None:
        """Put keys into what is on top of the stack; a tuple is gone through for its hash, each time."""
        made = self._items[-1]
        if type(made) is not Made:
            raise ValueError("something is put into what can hold nothing")
        made.size += 8 * len(keys)
        for key in keys:
            if type(key) is tuple or type(key) is Made:
                made.size += self._costs.spend("a key made of tuples", (key,), looks=True)

    # Functions and calls

    def do_global(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        # Python 2 had other names for these, which are still understood.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.named = f"{module}.{name}"
        self._push(Name(self.named))

    def do_stack_global(self, argument: Any) -> None:
        self.do_global(" ".join(map(str, self._take(2))))

    def do_reduce(self, argument: Any) -> None:
        self._push(self._costs.call(*self._take(2)))

    do_newobj = do_reduce

    def do_newobj_ex(self, argument: Any) -> None:
        function, arguments, _ = self._take(3)
        self._push(self._costs.call(function, arguments))

    def do_inst(self, argument: Any) -> None:
        arguments = tuple(self._unmark())
        self.do_global(argument)
        (function,) = self._take(1)
        self._push(self._costs.call(function, arguments))

    def do_obj(self, argument: Any) -> None:
        function, *arguments = self._unmark()
        self._push(self._costs.call(function, tuple(arguments)))

    def do_build(self, argument: Any) -> None:
        (state,) = self._take(1)
        made = self._items[-1]
        if type(made) is not Made:
            raise ValueError("a state is given to what has none")
        self._costs.build(made, state)

    def do_persid(self, argument: Any) -> None:
        self._push(Made())

    def do_binpersid(self, argument: Any) -> None:
        """A storage, of which PyTorch takes the name in any case of letters, and makes one for each."""
        (key,) = self._take(1)
        elements = 0
        if type(key) is tuple and len(key) > 4:
            _, _, name, _, elements, *_ = key
            if type(name) is not str or type(elements) is not int:
                raise ValueError("a storage has no name, or no number of elements")
            if self._storages.setdefault(name.lower(), name) != name:
                raise ValueError(f"a storage is named '{name}' and otherwise")
        self._push(Made(elements=elements, tensor=True))
