"""One door to all readers of weights: a file or a folder in, a `Source` out."""

import os
from pathlib import Path

from plait.errors import InputError, choices
from plait.weights.ctranslate2_file import VERSIONS, Ctranslate2File
from plait.weights.gguf import GgufFile
from plait.weights.onnx_file import OnnxFile
from plait.weights.safetensors_file import HEADER_LIMIT, FileBytes, SafetensorsFile, Shards
from plait.weights.source import Source
from plait.weights.torch_file import ZIP, TorchFile, torch_shards

# What a folder of Hugging Face's or CTranslate2's layout may hold, the first that is there being taken: safetensors before pickles.
LAYOUT = {
    "model.safetensors": SafetensorsFile,
    "model.safetensors.index.json": Shards,
    "pytorch_model.bin": TorchFile,
    "pytorch_model.bin.index.json": torch_shards,
    "model.bin": Ctranslate2File,
    "model.onnx": OnnxFile,
}
ENDINGS = {".gguf": GgufFile, ".onnx": OnnxFile, ".bin": TorchFile, ".pt": TorchFile, ".pth": TorchFile, ".ckpt": TorchFile}
WEIGHTS = (".safetensors", ".index.json", *ENDINGS)  # names that are listed where a folder has no file that can be taken
POINTER = b"version https://git-lfs"


def open_source(path: str | Path) -> Source:
    """The weights of a file (safetensors, torch, GGUF or an index of shards) or of a folder of Hugging Face's layout.

    What a file is its first bytes say, where its name does not end in `.safetensors`: such a file is never taken for a pickle.
    Raises `InputError` saying what is missing.
    """
    path = Path(path)
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_folder(folder: Path) -> Source:
    for name, opened_by in LAYOUT.items():
        if os.path.lexists(folder / name):  # lexists: a link to nothing is a fault to name, not to step over
            _not_a_pointer(folder / name, FileBytes(folder / name))
            return opened_by(folder / name)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); give a folder that you may read") from None
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return _of_file(folder / ggufs[0])
    if ggufs:
        raise InputError(f"{folder}: has {len(ggufs)} GGUF files, one is read at a time; give the path of one", ggufs)
    there = [name for name in names if name.endswith(WEIGHTS)]
    wanted = f"{folder}: has none of {choices([*LAYOUT, '*.gguf'])}"
    if any("-of-" in name for name in there):
        raise InputError(f"{wanted}; its shards need their index: download {choices(n for n in LAYOUT if 'index' in n)}", there)
    if there:
        raise InputError(f"{wanted}; give the path of one of its files of weights", there)
    raise InputError(f"{wanted}, and nothing else with weights; download one of them into it, or give another folder")


def _of_file(path: Path) -> Source:
    data = FileBytes(path)
    begin = _not_a_pointer(path, data)
    if path.name.endswith(".index.json"):
        return torch_shards(path) if path.name.endswith(".bin.index.json") else Shards(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if begin[:4] == b"GGUF":
        return GgufFile(path)
    # Before pickles: the length of one header in 256 begins with a pickle's first byte, and no pickle has this ninth byte there.
    if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= min(data.size, HEADER_LIMIT):
        return SafetensorsFile(path)
    if begin[:4] == ZIP or begin[:1] == b"\x80":
        return TorchFile(path)
    if int.from_bytes(begin[:4], "little") in VERSIONS:  # no pickle begins so
        return Ctranslate2File(path)
    if path.suffix in ENDINGS:
        return ENDINGS[path.suffix](path)
    raise InputError(
        f"{path}: is no file of weights that can be read: it begins with {begin[:12]!r}; "
        "give a safetensors, torch or GGUF file, an index of shards (*.index.json), or a folder with one of them"
    )


def _not_a_pointer(path: Path, data: FileBytes) -> bytes:
    """The file's first bytes, when they are not those that git leaves in place of a large file."""
    begin = data.raw(0, min(32, data.size))
    if begin.startswith(POINTER):
        raise InputError(f"{path}: is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder")
    return begin
