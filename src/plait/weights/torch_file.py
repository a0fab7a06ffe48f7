"""Files of `torch.save`, read without running what they hold: tensors and plain values, or an error."""

import io
import pickletools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from plait.errors import InputError
from plait.weights.safetensors_file import FileBytes, Shards, known, reason, shown

ZIP = b"PK\x03\x04"
OLD_PICKLES = 5  # that a file of before torch 1.6 begins with: magic number, protocol, system, the object, the keys of its storages
MOST_PARTS = 4096  # of a tuple with all in it; Python's own random state, the largest that checkpoints hold, has 630


class TorchFile:
    """One file of `torch.save` with a dictionary of tensors, which may lie one level deep (`{"model": {...}, "epoch": 3}`).

    Zip archives (torch 1.6 and later) are mapped, so a tensor's bytes come from the disk when it is read; older files are
    loaded whole. `metadata` is what stands beside the tensors. A pickle that asks for anything but tensors is refused unrun.
    """

    def __init__(self, path: str | Path):
        self._bytes = FileBytes(path)
        self.path = self._bytes.path
        is_zip = self._bytes.raw(0, min(4, self._bytes.size)) == ZIP
        records = self._records() if is_zip else self._scan_old()
        self.metadata: Mapping[str, Any]
        self._tensors, self.metadata = self._contents(self._load(mmap=is_zip))
        faults = [f"{shown(name)} {fault}" for name, tensor in self._tensors.items() for fault in tensor_faults(tensor, records)]
        if faults:
            raise self._broken("its tensors cannot be used", faults)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own even where the file lets two names share theirs."""
        tensor = known(self.path, self._tensors, name).detach()
        self._bytes.read(0, 0)  # InputError where the file has changed: a mapped one that was cut would kill the process
        there = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() > there:  # strides of 0: a few bytes could ask for all memory
            raise self._broken(f"{shown(name)} of shape {tuple(tensor.shape)} has only {there} bytes in the file")
        if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise self._broken(f"{shown(name)} is boolean and has bytes other than 0 and 1")
        return tensor.clone(memory_format=torch.contiguous_format)

    def _records(self) -> set[int]:
        """The sizes of the archive's data records. A mapped record is taken as it lies, so it must be neither packed nor cut off."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = archive.infolist()
        except Exception as error:  # zipfile lets many kinds through where bytes have flipped: struct.error, NotImplementedError ...
            raise self._broken(f"its archive has no directory that can be read ({reason(error)})") from None
        names = Counter(entry.filename for entry in entries)
        faults = [f"{shown(name)} stands there twice" for name, times in names.items() if times > 1]
        faults += [f"{shown(entry.filename)} is compressed" for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        for entry in entries:
            if entry.header_offset < 0 or entry.header_offset + entry.file_size > self._bytes.size:
                faults.append(f"{shown(entry.filename)} would have {entry.file_size} bytes from byte {entry.header_offset} on")
        if faults:
            raise self._broken("its archive is not one that torch writes", faults)
        if any(name.endswith("/constants.pkl") for name in names):
            raise InputError(
                f"{self.path}: is TorchScript, a program with its weights; save the model's state_dict() with torch.save instead"
            )
        try:
            with zipfile.ZipFile(self.path) as archive:
                for name in names:
                    if name.endswith("data.pkl"):
                        check_tuples(io.BytesIO(archive.read(name)))
        except Exception as error:  # as above, and all that broken bytes do to pickletools
            raise self._broken(f"its pickle cannot be followed ({reason(error)})") from None
        return {entry.file_size for entry in entries if "/data/" in entry.filename}

    def _scan_old(self) -> None:
        try:
            with open(self.path, "rb") as file:
                for _ in range(OLD_PICKLES):
                    check_tuples(file)
        except Exception as error:
            raise self._broken(f"its pickles cannot be followed ({reason(error)})") from None

    def _load(self, mmap: bool) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about torch's own past, which a user can do nothing about
                return torch.load(self.path, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as error:  # the unpickler lets through whatever broken bytes lead to: KeyError, AssertionError, MemoryError ...
            if asked := re.search(r"GLOBAL (\w+(\.\w+)+)\s", str(error)):
                raise InputError(
                    f"{self.path}: holds more than tensors: reading it would run {shown(asked[1])}, which was not done; "
                    "take the model's safetensors file, or save its state_dict() alone where you trust it"
                ) from None
            first = [*str(error).splitlines(), ""][0]
            raise self._broken(f"torch cannot read it ({type(error).__name__}: {first[:160]})") from None

    def _contents(self, found: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        top = {"": found}
        if isinstance(found, Mapping) and not any(isinstance(value, Tensor) for value in found.values()):
            top = dict(found)  # no tensors here: they may lie one level deeper
        inner = {
            name: value for name, value in top.items() if isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())
        }
        if not inner:
            raise self._broken(f"it holds {describe(found)}, not a dictionary of tensors")
        if len(inner) > 1:
            raise InputError(
                f"{self.path}: holds several models; save one of them alone",
                [f"{shown(name)}: {len(value)} entries" for name, value in inner.items()],
            )
        [(name, table)] = inner.items()
        if odd := [key for key in table if not isinstance(key, str)]:
            raise self._broken("the names of its tensors are not texts", [shown(key) for key in odd])
        tensors = {key: value for key, value in table.items() if isinstance(value, Tensor)}
        beside = {key: value for key, value in table.items() if not isinstance(value, Tensor)}
        return tensors, beside | {str(key): value for key, value in top.items() if key != name}

    def _broken(self, why: str, faults: Iterable[str] = ()) -> InputError:
        return InputError(f"{self.path}: is not a whole file of torch.save: {why}; download it again, best as safetensors", faults)


def torch_shards(index: str | Path) -> Shards:
    """The shards that a `pytorch_model.bin.index.json` lists."""
    return Shards(index, TorchFile)


def check_tuples(file: BinaryIO) -> None:
    """ValueError where a pickle builds a tuple of tuples so deep that Python dies of hashing it, or so often shared that it never ends.

    Nothing is built: each place of the pickle's stack is the number of parts that hashing it would visit.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for code, argument, _ in pickletools.genops(file):
        if code.name == "MARK":
            marks.append(len(stack))
        elif code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            takes = [kind.name for kind in code.stack_before]
            taken = stack[marks[-1] :] if "mark" in takes else stack[len(stack) - len(takes) :]
            if "mark" in takes:
                del stack[marks.pop() :]
                takes = takes[: takes.index("mark")]  # what lies below the mark, as the list of APPENDS
            del stack[len(stack) - len(takes) :]
            if (parts := 1 + sum(taken)) > MOST_PARTS and code.name.startswith(("TUPLE", "REDUCE")):
                raise ValueError(f"it builds a tuple of more than {MOST_PARTS} parts")
            stack += [parts if code.name.startswith(("TUPLE", "REDUCE", "BINPERSID")) else 1] * len(code.stack_after)


def tensor_faults(tensor: Tensor, records: set[int] | None) -> list[str]:
    """`records`: the sizes of the archive's data records, None where the file is none."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else f"stored as {tensor.layout}"
        return [f"is {kind}, not a plain tensor"]
    if tensor.device.type != "cpu":
        return [f"has no values: it was saved from the device {shown(tensor.device.type)}"]
    there = tensor.untyped_storage().nbytes()
    if records is not None and there and there not in records:
        return [f"should have {there} bytes in the file, and no record there is so long"]
    return []


def describe(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"a dictionary of {', '.join(shown(key) for key in list(found)[:8])}" if found else "an empty dictionary"
    return f"a {type(found).__name__}"
