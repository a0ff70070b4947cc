"""One loop, compiled for this machine by LLVM: sums of products over the surviving weights only.

Vectors run over images (and, where a layer's outputs lie side by side in memory, over those too), so that a weight that
is somewhere in a matrix costs one load and one vector of products, however irregular the mask is. The same loop, with a
maximum in place of the sum, is a max-pool.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib import import_module
from itertools import product
from typing import Any

from lth_scale.errors import UserError

WIDTHS = (64, 32, 16, 8, 4, 1)  # floats of one vector; LLVM splits what is wider than the machine's
TOGETHER, NARROW = 4, 16  # positions whose sums are held in registers at a time, if vectors are no wider than that

Kernel = Callable[..., None]

_ARGUMENTS = (
    *[("i64", ctypes.c_int64, name) for name in ("positions", "rows", "step")],
    *[("ptr", ctypes.c_void_p, name) for name in ("at_in", "at_out", "first", "place", "value", "bias")],
    *[("ptr", ctypes.c_void_p, name) for name in ("in", "added", "out")],
    ("float", ctypes.c_float, "floor"),
)

_SUM = """
  %product# = fmul contract {vector} %v.all, %x#
  %next# = fadd contract {vector} %so.far#, %product#"""

_MAX = """
  %above# = fcmp ugt {vector} %x#, %so.far#
  %next# = select <{width} x i1> %above#, {vector} %x#, {vector} %so.far#"""

# For each position and row: out[at_out + row * step] = max(floor, bias + added + sum of value * in[at_in + place]).
# All places count floats. `added` lies as `out` does, or is null. A line with # is there once for each of the positions
# that are taken together, which share the loads of places and values.
_LOOP = """
define void @{name}({arguments}) {{
entry:
  %floor.one = insertelement {vector} poison, float %floor, i64 0
  %low = shufflevector {vector} %floor.one, {vector} poison, <{width} x i32> zeroinitializer
  %alone = icmp eq ptr %added, null
  br label %position
position:
  %n = phi i64 [0, %entry], [%n.next, %moved]
  %n.next = add i64 %n, {together}
  %n# = add i64 %n, #
  %at_in.at# = getelementptr i32, ptr %at_in, i64 %n#
  %from# = load i32, ptr %at_in.at#
  %base# = getelementptr float, ptr %in, i32 %from#
  %at_out.at# = getelementptr i32, ptr %at_out, i64 %n#
  %to# = load i32, ptr %at_out.at#
  %to.wide# = sext i32 %to# to i64
  br label %row
row:
  %r = phi i64 [0, %position], [%r.next, %done]
  %r.next = add i64 %r, 1
  %begin.at = getelementptr i32, ptr %first, i64 %r
  %end.at = getelementptr i32, ptr %first, i64 %r.next
  %begin.narrow = load i32, ptr %begin.at
  %end.narrow = load i32, ptr %end.at
  %begin = sext i32 %begin.narrow to i64
  %end = sext i32 %end.narrow to i64
  %bias.at = getelementptr float, ptr %bias, i64 %r
  %b = load float, ptr %bias.at
  %b.one = insertelement {vector} poison, float %b, i64 0
  %b.all = shufflevector {vector} %b.one, {vector} poison, <{width} x i32> zeroinitializer
  %row.offset = mul i64 %r, %step
  %offset# = add i64 %row.offset, %to.wide#
  br i1 %alone, label %ready, label %adding
adding:
  %added.at# = getelementptr float, ptr %added, i64 %offset#
  %more# = load {vector}, ptr %added.at#, align 4
  %both# = fadd {vector} %b.all, %more#
  br label %ready
ready:
  %start# = phi {vector} [%b.all, %row], [%both#, %adding]
  %some = icmp slt i64 %begin, %end
  br i1 %some, label %weight, label %done
weight:
  %p = phi i64 [%begin, %ready], [%p.next, %weight]
  %so.far# = phi {vector} [%start#, %ready], [%next#, %weight]
  %p.next = add i64 %p, 1
  %place.at = getelementptr i32, ptr %place, i64 %p
  %k = load i32, ptr %place.at
  %value.at = getelementptr float, ptr %value, i64 %p
  %v = load float, ptr %value.at
  %v.one = insertelement {vector} poison, float %v, i64 0
  %v.all = shufflevector {vector} %v.one, {vector} poison, <{width} x i32> zeroinitializer
  %x.at# = getelementptr float, ptr %base#, i32 %k
  %x# = load {vector}, ptr %x.at#, align 4{combine}
  %last = icmp eq i64 %p.next, %end
  br i1 %last, label %done, label %weight
done:
  %all# = phi {vector} [%start#, %ready], [%next#, %weight]
  %under# = fcmp olt {vector} %all#, %low
  %kept# = select <{width} x i1> %under#, {vector} %low, {vector} %all#
  %out.at# = getelementptr float, ptr %out, i64 %offset#
  store {vector} %kept#, ptr %out.at#, align 4
  %rows.over = icmp eq i64 %r.next, %rows
  br i1 %rows.over, label %moved, label %row
moved:
  %over = icmp eq i64 %n.next, %positions
  br i1 %over, label %exit, label %position
exit:
  ret void
}}
"""


@cache
def kernels() -> dict[tuple[str, int, int], Kernel]:
    """("sum" or "max", floats of a vector, positions together) -> the loop, compiled once a process for its processor.

    Raises:
        UserError: llvmlite is not installed.
    """
    try:
        llvm: Any = import_module("llvmlite.binding")
    except ModuleNotFoundError:
        raise UserError("sparse inference needs llvmlite: pip install 'lth_scale[export]'") from None
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    keys = (key for key in product(("sum", "max"), WIDTHS, (1, TOGETHER)) if key[2] == 1 or key[1] <= NARROW)
    names = {key: "_".join(map(str, key)) for key in keys}
    module = llvm.parse_assembly("".join(_source(name, *key) for key, name in names.items()))
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(None, *(kind for _, kind, _ in _ARGUMENTS))
    found: dict[tuple[str, int, int], Kernel] = {
        key: signature(engine.get_function_address(name)) for key, name in names.items()
    }
    _engines.append(engine)
    return found


_engines: list[Any] = []  # compiled code lives as long as its engine


def _source(name: str, how: str, width: int, together: int) -> str:
    words = {"vector": f"<{width} x float>", "width": width, "together": together}
    kinds = {"ptr": "ptr noalias"}  # what is written is never what is read
    arguments = ", ".join(f"{kinds.get(kind, kind)} %{called}" for kind, _, called in _ARGUMENTS)
    combine = {"sum": _SUM, "max": _MAX}[how].format(**words)
    lines = _LOOP.format(name=name, arguments=arguments, combine=combine, **words).splitlines()
    return "\n".join(line.replace("#", str(n)) for line in lines for n in range(together if "#" in line else 1))
