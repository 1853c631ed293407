"""Programs to machine code: compiled once by LLVM, kept on disk, called without the interpreter's lock.

A kernel is position-independent object code for this processor, stored under the digest of everything it depends on.
A cached file that is damaged or was written by someone else is not used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from merganser.engine.program import Program
from merganser.errors import MerganserError

FORMAT = 1
"""Raised whenever emitted code for an unchanged program changes."""
EMITTERS = ("elements.py", "loops.py", "writing.py", "product.py", "ranks.py", "divergence.py", "finite.py")
"""The files that emit code."""
Kernel = Callable[..., None]

_lock = threading.Lock()
_engines: list[Any] = []
_loaded: dict[Program | str, Kernel] = {}
_KINDS: dict[str, Any] = {
    "i64": ctypes.c_int64,
    "i32": ctypes.c_int32,
    "f32": ctypes.c_float,
    "f64": ctypes.c_double,
}


def kernel(program: Program) -> Kernel:
    """The callable for a program, from memory, from the disk cache, or compiled now."""
    found = _loaded.get(program)
    if found is None:
        with _lock:
            found = _loaded.get(program)
            if found is None:
                code = _object_code(program.key, lambda triple: _emit(program, triple))
                found = _loaded[program] = _load(
                    code, ["i64", "i64"] + ["*"] * (_argument_count(program) - 2)
                )
    return found


def routine(name: str, arguments: Sequence[str], emit: Callable[[str], str]) -> Kernel:
    """The callable for a kernel written by hand: `emit(triple)` is the assembly of its function `pass`.

    Arguments are `i64`, `i32`, `f32`, `f64`, or end in `*` for addresses.
    """
    found = _loaded.get(name)
    if found is None:
        with _lock:
            found = _loaded.get(name)
            if found is None:
                found = _loaded[name] = _load(_object_code(name, emit), arguments)
    return found


def _emit(program: Program, triple: str) -> str:
    from merganser.engine.kernels import loops

    return loops.emit(program, triple)


def cache_directory() -> Path:
    """Where kernels are kept: $MERGANSER_CACHE, else merganser/ in the user's cache directory."""
    chosen = os.environ.get("MERGANSER_CACHE")
    if chosen:
        return Path(chosen) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merganser" / "kernels"


def compiled_count() -> int:
    """How many kernels this process has loaded or compiled."""
    return len(_loaded)


def _argument_count(program: Program) -> int:
    return 4 + len(program.loads) + len(program.having("store")) + 2 + len(program.having("histogram")) + 2


def _object_code(key: str, emit: Callable[[str], str]) -> bytes:
    name = hashlib.sha256(
        f"{FORMAT}|{llvmlite.__version__}|{_processor()}|{_source_digest()}|{key}".encode()
    ).hexdigest()
    path = cache_directory() / f"{name}.o"
    stored = _read(path)
    if stored is not None:
        return stored
    code = _compile(emit)
    _write(path, code)
    return code


def _read(path: Path) -> bytes | None:
    """The code in a cache file, if it is whole and ours."""
    try:
        with path.open("rb") as file:
            if hasattr(os, "getuid") and os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            raw = file.read()
    except OSError:
        return None
    digest, code = raw[:32], raw[32:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Keep the code; a cache that cannot be written (read-only home, full disk) only costs time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)
    except OSError:
        return


def _compile(emit: Callable[[str], str]) -> bytes:
    machine = _machine()
    module = llvm.parse_assembly(emit(llvm.get_default_triple()))
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    options.loop_interleaving = options.loop_unrolling = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def _load(code: bytes, arguments: Sequence[str]) -> Kernel:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    kinds = [_KINDS.get(argument, ctypes.c_void_p) for argument in arguments]
    return ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("pass"))


@cache
def _processor() -> str:
    return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"


@lru_cache(1)
def _source_digest() -> str:
    """The digest of the emitting code, so that an edited emitter never meets an old kernel."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / f).read_bytes() for f in EMITTERS)).hexdigest()


@lru_cache(1)
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    if platform.machine() in ("x86_64", "AMD64") and not features.get("f16c"):
        raise MerganserError(
            "this processor lacks F16C (every x86-64 processor since 2013 has it); it is not supported"
        )
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3, codemodel="jitdefault", jit=True
    )
