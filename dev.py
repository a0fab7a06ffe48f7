#!/usr/bin/env python
"""Sets up Plait and runs a job, on Linux, macOS and Windows, with nothing but Python.

    python dev.py demo          train a small translator from spelling to sound, and look at what it learned
    python dev.py test [...]    everything that must pass; further words go to pytest
    python dev.py check [...]   the quick part of it: ruff, format, pyright, fast (all of them, or those named)
    python dev.py env           only the set-up, for work on Plait
    python dev.py bench [...]   timings against named peers

The environment is `.venv` beside this file, made on first use; an active environment with a fitting torch is used as it is.
PLAIT_TORCH names another torch to install there ("torch==2.12.1", or any words that pip takes).
"""

# This file is to parse on any Python, so that an old one gets a sentence and no SyntaxError: no f-strings, no annotations.
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time

if sys.version_info < (3, 11):
    sys.stderr.write("Plait needs Python 3.11 or later; this one (%s) is %d.%d.\n" % ((sys.executable,) + sys.version_info[:2]))
    sys.exit(2)

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "Scripts", "python.exe") if os.name == "nt" else os.path.join(VENV, "bin", "python")
PROJECT = os.path.join(ROOT, "pyproject.toml")
CONSTRAINTS = os.path.join(ROOT, "constraints.txt")
TORCH, TORCH_AT_LEAST = "torch==2.13.0", "2.11"
STAMP = "plait-dev.json"  # in the environment: what was installed there from which files
PLAIT = ["-m", "plait.cli"]

# ---- the jobs: commands of the environment's Python, run one after another until one fails ----

DEMO_RUN = "runs/pronounce"
DEMO_TRAIN = PLAIT + ["train", "translation", "--data", "cmudict", "--minutes", "5", "--out", DEMO_RUN]
DEMO = [
    PLAIT + ["eval", DEMO_RUN],
    PLAIT + ["run", DEMO_RUN, "plait", "tokenizer", "softmaxes", "backpropagation", "chatbots"],
    PLAIT + ["inspect", DEMO_RUN, "transformer", "--out", DEMO_RUN + "/attention.html"],
]
DEMO_END = """
The model is in runs/pronounce: look at attention.html there in a browser (the diagonal of letters and sounds) and at curves.png.
More words:               plait run runs/pronounce WORD ...
Your own sentence pairs:  plait train translation --data pairs.tsv --minutes 60 --out runs/mine     (source, tab, target on each line)
                          plait eval runs/mine --data test.tsv
                          plait run runs/mine "A sentence."
(`plait` is in the environment: %s)
"""
CHECKS = {
    "ruff": ["-m", "ruff", "check", "."],
    "format": ["-m", "ruff", "format", "--check", "."],
    "pyright": ["-m", "pyright"],
    "fast": ["-m", "pytest", "-q", "tests/test_house.py", "tests/test_files.py", "tests/test_dev.py", "tests/cli"],
}
STATIC = ["ruff", "format", "pyright"]
TESTS = ["-m", "pytest", "-n", "2"]
BENCH = PLAIT + ["bench"]
EXTRAS = {"demo": "demo", "test": "test", "check": "test", "env": "test", "bench": "bench"}


def job(name, words):
    """The commands of a job: (title, arguments of Python)."""
    if name == "demo":
        return [(" ".join(["plait"] + command[len(PLAIT) :]), command) for command in demo_training() + DEMO]
    if name == "test":
        return [(step, CHECKS[step]) for step in STATIC] + [("pytest", TESTS + words)]
    if name == "check":
        return [(step, CHECKS[step]) for step in words or CHECKS]
    return [("plait bench", BENCH + words)] if name == "bench" else []


def demo_training():
    """Train, go on with what was interrupted, or use what is there."""
    folder = os.path.join(ROOT, *DEMO_RUN.split("/"))
    if os.path.exists(os.path.join(folder, "model.safetensors")):
        say("%s is trained already: using it (delete the folder to train anew)" % DEMO_RUN)
        return []
    return [DEMO_TRAIN + (["--resume"] if os.path.exists(os.path.join(folder, "config.json")) else [])]


# ---- the environment ----


class Failed(Exception):
    """A step that cannot go on: (what to say, exit code)."""


def environment(extra):
    """The Python to use, with Plait and what `extra` needs installed: (its path, variables to add)."""
    digest = hashlib.sha256()
    for path in (PROJECT, CONSTRAINTS):
        with open(path, "rb") as file:
            digest.update(file.read())
    state = {"of": digest.hexdigest(), "torch": os.environ.get("PLAIT_TORCH", "")}
    if os.path.exists(VENV_PYTHON):
        stamp = read_stamp(VENV)
        if extra in stamp.get("extras", []) and all(stamp.get(key) == value for key, value in state.items()):
            return VENV_PYTHON, {}
        python, seen = VENV_PYTHON, probe(VENV_PYTHON)
        if seen is None:
            raise Failed(".venv is there but its Python does not run: delete the folder .venv and start again", 2)
    else:
        python, seen = sys.executable, probe(sys.executable) or {}
        fitting = at_least(seen.get("versions", {}).get("torch"), TORCH_AT_LEAST) and not os.environ.get("PLAIT_TORCH")
        if fitting and not missing(extra, seen["versions"]):
            say("using %s as it is: it has torch %s and all that is needed" % (python, seen["versions"]["torch"]))
            return python, {} if seen["plait"] == ROOT else {"PYTHONPATH": joined(os.path.join(ROOT, "src"), os.environ.get("PYTHONPATH"))}
        if not (fitting and seen["virtual"]):  # an active environment with a fitting torch gets what it lacks; a system's Python nothing
            make_venv(with_system=bool(fitting))
            python, seen = VENV_PYTHON, probe(VENV_PYTHON) or {}
    install(python, seen, extra)
    home = (probe(python) or {}).get("home", VENV)
    stamp = read_stamp(home)
    same = all(stamp.get(key) == value for key, value in state.items())
    state["extras"] = sorted(set(stamp.get("extras", []) if same else []) | {extra} | ({"demo"} if extra == "test" else set()))
    with open(os.path.join(home, STAMP), "w") as file:
        json.dump(state, file)
    return python, {}


def make_venv(with_system):
    title = "making .venv" + (" that sees this Python's torch" if with_system else "")
    why = "this Python cannot make environments: install its venv module (Debian and Ubuntu: python3-venv), delete .venv and start again"
    step(title, [sys.executable, "-m", "venv", VENV] + (["--system-site-packages"] if with_system else []), why)


def install(python, seen, extra):
    versions = seen.get("versions", {})
    if "pip" not in versions:
        step("pip", [python, "-m", "ensurepip", "--upgrade"])
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"] + ([] if sys.stdout.isatty() else ["--quiet"])
    wanted = os.environ.get("PLAIT_TORCH")
    if wanted or not at_least(versions.get("torch"), TORCH_AT_LEAST):
        if sys.platform.startswith("linux") and not wanted:
            say("torch: on Linux the plain package brings gigabytes of CUDA; PyTorch's install page has the command for a CPU build.")
        step(wanted or TORCH, pip + ["-c", CONSTRAINTS] + (shlex.split(wanted) if wanted else [TORCH]))
        versions = (probe(python) or {}).get("versions", {})
    with tempfile.TemporaryDirectory() as folder:  # whatever torch is there now stays
        frozen = os.path.join(folder, "torch.txt")
        with open(frozen, "w") as file:
            file.write("torch==%s\n" % versions.get("torch", TORCH.partition("==")[2]))
        step("plait[%s] and what it needs" % extra, pip + ["-c", CONSTRAINTS, "-c", frozen, "-e", ".[%s]" % extra])


PROBE = """
import importlib.metadata as m, json, os, sys, urllib.parse, urllib.request
versions, plait = {}, None
for d in m.distributions():
    name = (d.metadata["Name"] or "").lower().replace("_", "-").replace(".", "-")
    versions.setdefault(name, d.version)
    if name == "plait" and d.read_text("direct_url.json"):
        url = json.loads(d.read_text("direct_url.json")).get("url", "")
        plait = os.path.abspath(urllib.request.url2pathname(urllib.parse.urlparse(url).path))
print(json.dumps({"versions": versions, "plait": plait, "home": sys.prefix, "virtual": sys.prefix != sys.base_prefix}))
"""


def probe(python):
    """What is installed there, or None when it does not run."""
    try:
        return json.loads(subprocess.check_output([python, "-c", PROBE], stdin=subprocess.DEVNULL, cwd=ROOT).decode("utf-8"))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def missing(extra, versions):
    """Requirements of Plait with this extra that are not there, or too old."""
    import tomllib

    with open(PROJECT, "rb") as file:
        project = tomllib.load(file)["project"]
    waiting, seen, lacking = list(project["dependencies"]) + ["plait[%s]" % extra], set(), []
    while waiting:
        name, extras, bound = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?(?:[=>]=([\w.]+))?", waiting.pop()).groups()
        if name == "plait":
            new = set(extras.split(",")) - seen
            seen |= new
            waiting += [need for one in new for need in project["optional-dependencies"][one]]
        elif not at_least(versions.get(name.lower()), bound or "0"):
            lacking.append(name)
    return lacking


def at_least(version, bound):
    def numbers(text):
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3]]

    return version is not None and numbers(version) >= numbers(bound)


def read_stamp(home):
    try:
        with open(os.path.join(home, STAMP)) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


# ---- running ----


def say(text):
    """A line on standard output, at once (what the steps print goes there too)."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def wait(command, **how):
    """Runs a command to its end. It gets the same Ctrl-C as we do, and may have something to save: only a second one kills it."""
    child = subprocess.Popen(command, cwd=ROOT, **how)
    try:
        return child.wait()
    except KeyboardInterrupt:
        try:
            child.wait()
        except KeyboardInterrupt:
            child.kill()
        raise


def step(title, command, why=""):
    """Runs one step of the set-up, and says how long it took."""
    say("%s ..." % title)
    began = time.time()
    code = wait(command, stdin=subprocess.DEVNULL)
    if code:
        raise Failed(why or "%s failed (exit code %d); what went wrong stands above" % (title, code), 1)
    say("%s: %.1f s" % (title, time.time() - began))


def run(python, commands, variables, keep_going):
    """Runs the commands of a job in turn; the exit code is that of the first that failed."""
    env = dict(os.environ, PYRIGHT_PYTHON_IGNORE_WARNINGS="1", **variables)
    if any("-n" in command for _, command in commands):
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))  # two workers share the machine
    done, first = [], 0
    for title, command in commands:
        say("\n> %s" % title)
        if "pyright" in command:
            command = command + ["--pythonpath", python]
        began = time.time()
        code = wait([python] + command, env=env)
        done.append((title, code, time.time() - began))
        first = first or code
        if code and not keep_going:
            break
    say("")
    for title, code, seconds in done:
        say("%-8s %7.1f s  %s" % ("ok" if code == 0 else "exit %d" % code, seconds, title))
    return first


def joined(*paths):
    return os.pathsep.join(path for path in paths if path)


def main(words):
    name, words = (words[0], words[1:]) if words else ("help", [])
    if name not in EXTRAS:
        (sys.stdout if name in ("-h", "--help", "help") else sys.stderr).write(__doc__)
        return 0 if name in ("-h", "--help") else 2
    odd = [word for word in words if name in ("demo", "env") or (name == "check" and word not in CHECKS)]
    if odd:
        sys.stderr.write("%s: not expected here%s\n" % (" ".join(odd), "; there is " + ", ".join(CHECKS) if name == "check" else ""))
        return 2
    began = time.time()
    try:
        python, variables = environment(EXTRAS[name])
        ready = time.time() - began
        if ready > 2 or name == "env":
            say("set-up: %.1f s, Python %s" % (ready, python))
        commands = job(name, words)
        if name in ("test", "check"):  # the workers of the tests share the cores; threads of theirs would only wait for each other
            variables = dict(variables, OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
        code = run(python, commands, variables, keep_going=name in ("test", "check")) if commands else 0
        if name == "demo" and not code:
            say(DEMO_END % os.path.dirname(python))
        return code
    except Failed as failed:
        sys.stderr.write("%s\n" % failed.args[0])
        return failed.args[1]
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
