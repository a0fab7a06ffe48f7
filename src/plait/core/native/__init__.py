"""Native kernels: the C files beside this one, built with the system's compiler at first use, kept in the cache, never needed.

They have a plain C interface and know nothing of torch. Where no compiler is, torch does the same in more time.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import sysconfig
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from plait.errors import InputError, choices
from plait.places import cache_dir

# Instruction sets, the best first: what the CPU must have (names of `torch.cpu.get_capabilities`), and how the compiler is told.
AVX2 = ("avx2", "fma3", "f16c")
LEVELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "vnni": ((*AVX2, "avx512_vl", "avx512_vnni"), ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512vl", "-mavx512vnni")),
    "avx2": (AVX2, ("-mavx2", "-mfma", "-mf16c")),
    "plain": ((), ()),
}
# errno and traps of the floating point would keep loops from becoming vectors; nothing here lets numbers differ.
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
SWITCH = "PLAIT_NATIVE"


class CannotBuild(Exception):
    """Why there is no native library: one sentence for the user."""


def possible() -> list[str]:
    """The instruction sets of `LEVELS` that this CPU has, the best first."""
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return [level for level, (needs, _) in LEVELS.items() if all(has.get(need) for need in needs)]


def level() -> str:
    """The instruction set that is used: the best one, or what PLAIT_NATIVE names; "off" there leaves everything to torch."""
    wanted, there = os.environ.get(SWITCH, ""), possible()
    if wanted and wanted not in (*there, "off"):
        raise InputError(f"{SWITCH}={wanted}: expected {choices([*there, 'off'])}, which this CPU has; unset it for the best")
    return wanted or there[0]


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The built C file `name` at the present `level()`, or None, which is said once with the reason."""
    if (at := level()) == "off":
        return None
    try:
        return ctypes.CDLL(str(build(name, at)))
    except (CannotBuild, OSError) as why:
        warnings.warn(f"no native kernels, torch does their work, slower: {why}. {SWITCH}=off leaves this line out", RuntimeWarning)
        return None


@cache
def product() -> Callable[..., int] | None:
    """`plait_product` of product.c, or None."""
    if (found := library("product")) is None:
        return None
    found.plait_product.argtypes = [*[ctypes.c_void_p] * 6, *[ctypes.c_int64] * 3, *[ctypes.c_int] * 3]
    return found.plait_product


def described(name: str) -> str:
    """What does the work of a C file, in words: the instruction set, or torch."""
    return "torch" if library(name) is None else f"native, {level()}"


def build(name: str, at: str) -> Path:
    """The shared library of a C file for one instruction set, from the cache or compiled into it."""
    source = Path(__file__).with_name(f"{name}.c")
    compiler = shlex.split(os.environ.get("CC") or "cc")
    try:
        version = _run([*compiler, "--version"])
        flags = [*FLAGS, *LEVELS[at][1]]
        texts = [file.read_text("utf-8") for file in (source, *sorted(source.parent.glob("*.h")))]
        text = "\n".join([*texts, version, *compiler, *flags, platform.machine(), torch.__version__])
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = cache_dir() / "native" / f"{name}-{at}-{key}{sysconfig.get_config_var('SHLIB_SUFFIX')}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
                _compile(compiler, flags, source, Path(folder) / "made")
                os.replace(Path(folder) / "made", path)
    except OSError as error:
        raise CannotBuild(f"{error.filename or name}: {error.strerror or error}") from None
    return path


def _compile(compiler: list[str], flags: list[str], source: Path, made: Path) -> None:
    """Threads are OpenMP's, and torch's own: the library is linked with no runtime and finds the one that torch has loaded for all.

    A second runtime would have threads of its own, which wait for work while the first one's do it. Where torch has none that others
    can see, the library does not load, and is made again for one thread.
    """
    objects = made.with_suffix(".o")
    for threads in (["-fopenmp"], []):
        try:
            _run([*compiler, *flags, *threads, "-c", str(source), "-o", str(objects)])
            _run([*compiler, "-shared", str(objects), "-lm", "-o", str(made)])
            ctypes.CDLL(str(made))
            return
        except (CannotBuild, OSError):
            if not threads:
                raise


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        raise CannotBuild(f"{command[0]} ended with {done.returncode}: {said}")
    return done.stdout
