"""Ids of the Hugging Face Hub, on a cache laid out as its own library lays it out, and with a hub of our own in its place."""

import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import plait as library
from plait import cli
from plait.errors import InputError
from plait.hub import cache, place
from plait.models import gpt2
from plait.weights import config as keys
from plait.weights.rules import export

OLD, NEW = "1f" + "0" * 38, "2e" + "0" * 38
SIZES = dict(vocab_size=11, max_length=16, d_model=8, n_heads=2, n_layers=1)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty cache, nothing else here, and no network wanted."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "hf" / "hub"


def files(seed: int = 0) -> dict[str, bytes]:
    """A tiny GPT-2 as a repository has it."""
    torch.manual_seed(seed)
    config = gpt2.Config(**SIZES)
    tensors = {name: t.clone() for name, t in export(gpt2.build(config), gpt2.RULES).items()}
    save_file(tensors, "made.safetensors")
    weights = Path("made.safetensors").read_bytes()
    Path("made.safetensors").unlink()
    return {"config.json": json.dumps(keys.write(gpt2.KEYS, vars(config))).encode(), "model.safetensors": weights}


def put(home: Path, commit: str, made: dict[str, bytes], ref: str | None = "main") -> Path:
    """As huggingface_hub stores it: blobs once, a folder of links for each commit, names of branches and tags in refs."""
    repo = home / "models--org--name"
    folder = repo / "snapshots" / commit
    for name, content in made.items():
        blob = repo / "blobs" / f"{abs(hash(content)):x}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        (folder / name).symlink_to(os.path.relpath(blob, (folder / name).parent))
    if ref:
        (repo / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    return folder


def test_a_cached_model_is_opened_by_its_id(home):
    old, new = put(home, OLD, files(1), "v1/first"), put(home, NEW, files(2))
    for name, folder in {"": new, "@main": new, "@v1/first": old, "@1f0": old, f"@{NEW}": new}.items():
        found = library.load(f"org/name{name}")
        assert found.parts.folder == folder
        assert (found.logits([1, 2]) == library.load(folder).logits([1, 2])).all()
    assert not (library.load("org/name").logits([1, 2]) == library.load(old).logits([1, 2])).all()


def test_without_a_main_the_only_one_is_meant(home):
    old = put(home, OLD, files(), None)
    assert place("org/name") == old
    put(home, NEW, files(), None)
    with pytest.raises(InputError, match="which of its revisions") as error:
        place("org/name")
    assert error.value.faults == [OLD, NEW]


@pytest.mark.parametrize(
    ("variables", "where"),
    [
        ({"HF_HUB_CACHE": "a"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "b", "HF_HOME": "c"}, "b"),
        ({"HF_HOME": "c", "XDG_CACHE_HOME": "d"}, "c/hub"),
        ({"XDG_CACHE_HOME": "d"}, "d/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_hubs_own_library_has_it(variables, where, home, tmp_path, monkeypatch):
    import subprocess

    monkeypatch.delenv("HF_HOME")
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert cache.cache_dir() == tmp_path / where
    code = "import huggingface_hub.constants as c; print(c.HF_HUB_CACHE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    if done.returncode == 0:  # it is installed
        assert Path(done.stdout.strip()) == cache.cache_dir()


def test_a_path_comes_first(home):
    put(home, NEW, files())
    Path("org/name").mkdir(parents=True)
    assert place("org/name") == Path("org/name")
    Path("org/name").rmdir()
    assert place("org/name").parent.name == "snapshots"  # cached: found, though `org` is a folder here
    assert place("org/mine") == Path("org/mine")  # no download of what is rather a run mistyped
    with pytest.raises(InputError, match="there is no such folder"):
        library.load("org/mine")


@pytest.mark.parametrize("offline", [True, False])
def test_what_is_not_there_says_what_to_do(offline, home, monkeypatch, capsys):
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["run", "org/name", "a"]) == 2
    told = capsys.readouterr().err
    assert "org/name: is no folder here, and not in the cache" in told and str(home) in told and "give that folder" in told
    assert ("HF_HUB_OFFLINE is set" in told) == offline and ("pip install huggingface_hub" in told) == (not offline)


def test_a_name_that_is_nothing_shows_what_there_is(home, capsys):
    assert cli.main(["run", "MiniML", "a"]) == 2
    told = capsys.readouterr().err
    assert "did you mean minilm?" in told and "smollm2: " in told and "Traceback" not in told


def broken(how: str, folder: Path) -> None:
    match how:
        case "blob":
            (folder / "model.safetensors").resolve().unlink()
        case "weights":
            (folder / "model.safetensors").unlink()
        case "config":
            (folder / "config.json").unlink()
        case "shard":
            (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
            shards = {f"{i}.weight": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


BROKEN = {
    "blob": "model.safetensors: is a link to nothing",
    "weights": "its weights: none of model.safetensors",
    "config": "config.json: is not there",
    "shard": "model-00002-of-00002.safetensors: is not there",
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_interrupted_download_is_said_and_done_again(how, home, monkeypatch):
    folder = put(home, NEW, files())
    broken(how, folder)
    with pytest.raises(InputError, match="is not whole, as a download that was interrupted") as error:
        library.load("org/name")
    assert error.value.faults == [BROKEN[how]] or error.value.faults[0].startswith(BROKEN[how])
    asked = hub(monkeypatch, home, files())
    assert library.load("org/name").parts.folder.name == OLD and asked


def hub(monkeypatch, home, made: dict[str, bytes], error: Exception | None = None) -> list:
    """A `huggingface_hub` that serves these files; what it was asked for."""
    asked: list = []

    class HfApi:
        def list_repo_files(self, repo, revision=None):
            if error:
                raise error
            return list(made)

    def snapshot_download(repo, revision=None, allow_patterns=()):
        asked.append((repo, revision, sorted(allow_patterns)))
        return str(put(home, OLD, {name: made[name] for name in allow_patterns}))

    module = types.ModuleType("huggingface_hub")
    module.HfApi, module.snapshot_download = HfApi, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    return asked


MORE = ("merges.txt", "tokenizer.json", "1_Pooling/config.json", "chat_template.jinja", "tokenizer_config.json")
UNREAD = ("README.md", "onnx/model.onnx", "onnx/config.json", "consolidated.safetensors", "tf_model.h5", "training_args.bin")


@pytest.mark.parametrize("safe", [True, False])
def test_only_what_is_read_is_downloaded_and_once(safe, home, monkeypatch):
    made = dict.fromkeys((*MORE, *UNREAD), b"x") | {"pytorch_model.bin": b"pickle"} | files()
    if not safe:
        del made["model.safetensors"]
    asked = hub(monkeypatch, home, made)
    folder = place("org/name@v2")
    taken = sorted([*MORE, "config.json", "model.safetensors" if safe else "pytorch_model.bin"])
    assert asked == [("org/name", "v2", taken)]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == taken
    assert place("org/name") == folder and len(asked) == 1


def test_a_failed_download_is_one_message(home, monkeypatch, capsys):
    hub(monkeypatch, home, {}, RuntimeError("401 Client Error.\nRepository Not Found"))
    assert cli.main(["run", "org/name", "a"]) == 2
    told = capsys.readouterr().err
    assert "RuntimeError: 401 Client Error." in told and "Traceback" not in told
    hub(monkeypatch, home, {"README.md": b"", "model.gguf": b""})
    with pytest.raises(InputError, match=r"has no config\.json with model"):
        place("org/name")
