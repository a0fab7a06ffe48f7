"""Exit codes, what goes to which stream, and how a verb may end."""

import errno
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import plait
from plait import cli
from plait.cli import show
from plait.errors import InputError
from plait.verbs import VERBS, Rows, Verb, stdin_lines

TOOL = [sys.executable, "-m", "plait.cli"]


@pytest.fixture
def toy(monkeypatch):
    """Puts a verb `toy` in the list whose run() is the given function."""

    def put(run, fields=()):
        made = dataclass(type("Toy", (), {"__annotations__": dict(fields), "__doc__": "A toy.", "run": run}))
        monkeypatch.setitem(VERBS, "toy", Verb("toy", "Toy", "A toy."))
        monkeypatch.setattr(Verb, "load", lambda self: made)

    return put


def fails(error):
    def run(self):
        raise error

    return run


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_loads_has_a_page_and_its_line_is_its_docstring(name, capsys):
    verb = VERBS[name].load()
    assert (verb.__doc__ or "").partition("\n")[0] == VERBS[name].line
    assert callable(verb.run)
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: plait {name}")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_goes_to_stdout(words, capsys):
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert all(name in said.out for name in VERBS) and not said.err


def test_no_verb_is_wrong_input_and_shows_the_page(capsys):
    assert cli.main([]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("usage: plait")


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"plait {plait.__version__}\n"


def test_an_unknown_verb_suggests_a_near_one(capsys):
    assert cli.main(["modles"]) == 2
    said = capsys.readouterr()
    assert not said.out and "did you mean models?" in said.err


def test_an_unknown_option_suggests_a_near_one(capsys):
    assert cli.main(["models", "--jso"]) == 2
    said = capsys.readouterr()
    assert not said.out and "did you mean --json?" in said.err and "plait models --help" in said.err


def test_wrong_input_has_no_traceback(toy, capsys):
    toy(fails(InputError("this will not do", ["line 3", "line 7"])))
    assert cli.main(["toy"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == "plait: this will not do\n  - line 3\n  - line 7\n"


def test_a_bug_keeps_its_traceback(toy):
    toy(fails(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["toy"])


def test_the_traceback_of_wrong_input_can_be_had(toy, monkeypatch):
    monkeypatch.setenv("PLAIT_TRACEBACK", "1")
    toy(fails(InputError("no")))
    with pytest.raises(InputError):
        cli.main(["toy"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), "the disk is full (writing a.bin)"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.txt"), "x.txt: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "/root"), "/root: Permission denied"),
    ],
)
def test_what_the_user_can_mend_has_no_traceback(toy, capsys, error, said):
    toy(fails(error))
    assert cli.main(["toy"]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_extra_is_named(toy, capsys, monkeypatch):
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["torch>=2", "Matplotlib>=3 ; extra == 'plot'"])
    toy(fails(ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib.pyplot")))
    assert cli.main(["toy"]) == 2
    assert "pip install 'plait[plot]'" in capsys.readouterr().err


def test_a_missing_module_of_ours_is_a_bug(toy, monkeypatch):
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["torch>=2"])
    toy(fails(ModuleNotFoundError("No module named 'plait.x'", name="plait.x")))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["toy"])


def test_an_interrupt_keeps_what_was_said(toy, capsys):
    def run(self):
        yield "first"
        raise KeyboardInterrupt("stopped at step 7")

    toy(run)
    assert cli.main(["toy"]) == 130
    said = capsys.readouterr()
    assert said.out == "first\n" and said.err == "\nstopped at step 7\n"


def test_results_by_their_type(capsys):
    show.results(None)
    show.results("text")
    show.results({"loss": float("nan"), "path": Path("a"), "name": "ß"})
    show.results(Rows([{"a": 1, "b": "x"}, {"a": 22, "b": None}]))
    show.results(iter(["one", {"two": 2}]))
    show.results(Rows([{"a": 1}]), as_json=True)
    assert capsys.readouterr().out.splitlines() == [
        "text",
        '{"loss": null, "path": "a", "name": "ß"}',
        "1   x",
        "22",
        "one",
        '{"two": 2}',
        '[{"a": 1}]',
    ]


def test_a_verb_with_json_prints_json(toy, capsys):
    toy(lambda self: ["a"], {"json": bool})
    assert cli.main(["toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["a"]


def test_what_has_no_form_in_json_is_our_bug():
    with pytest.raises(TypeError, match="object"):
        show.plain(object())


@pytest.mark.parametrize(
    ("raw", "lines"),
    [(b"one\r\ntwo\n", ["one", "two"]), (b"\xef\xbb\xbf\xc3\xa4\nx", ["ä", "x"]), (b"", []), (b"\n\n", ["", ""]), (b"a\x85b\n", None)],
)
def test_lines_of_stdin(monkeypatch, raw, lines):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="ascii"))
    if lines is None:
        with pytest.raises(InputError, match="line 1, byte 2: not UTF-8"):
            list(stdin_lines())
    else:
        assert list(stdin_lines()) == lines


def test_the_module_runs_as_a_command():
    done = subprocess.run([*TOOL, "models", "--json"], capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and isinstance(json.loads(done.stdout), list) and not done.stderr


def test_pipes_are_utf8_whatever_the_locale():
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env.pop("PYTHONIOENCODING", None)
    done = subprocess.run([*TOOL, "ä字"], capture_output=True, env=env, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    code = "import sys; from plait.cli import show; show.streams(); show.results('\\u00e4\\u5b57')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**env, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.decode("utf-8").strip() == "ä字"


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*TOOL, "--help"], stdout=writer, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    os.close(writer)
    assert done.returncode == cli.READER_GONE and done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_under_stdout_is_said():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*TOOL, "data"], stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert done.returncode == 2 and done.stderr == "plait: the disk is full: free some space, or write somewhere else\n"
