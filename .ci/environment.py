"""Make .venv, or mend it: `python3 .ci/environment.py run` or `dev`.

`run` installs what `make tune` needs, `dev` also what `make test` needs.

Only the standard library: this runs before anything is installed. A .venv that is whole and was
made from this settings.ini and setup.py is left alone (a tenth of a second); one that is broken,
half made or moved is made anew.
"""

import configparser
import hashlib
import json
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, '.venv')
BIN = os.path.join(VENV, 'Scripts' if os.name == 'nt' else 'bin')
PYTHON = os.path.join(BIN, 'python')
STAMP = os.path.join(VENV, 'moe_expert-ready.json')
BUSY = os.path.join(
    VENV, 'moe_expert-installing'
)  # there while an installation is under way, and after one that was killed
OLD = VENV + '.old'

# Run by the venv's own python: is each distribution installed, with its package's first file?
PROBE = """
import importlib.metadata as m, sys
if sys.prefix == sys.base_prefix: sys.exit('not a virtual environment')
for name in sys.argv[1:]:
    dist = m.distribution(name)
    tops = [f for f in dist.files or () if len(f.parts) == 2 and f.name == '__init__.py']
    if not all(dist.locate_file(f).exists() for f in tops): sys.exit(name + ' is damaged')
import moe_expert, pip
"""


def settings():
    config = configparser.ConfigParser(delimiters=['='])
    config.read(os.path.join(ROOT, 'settings.ini'))
    return config['DEFAULT']


def check_python(minimum):
    if sys.version_info[:2] < tuple(int(n) for n in minimum.split('.')):
        sys.exit(
            f'moe_expert needs Python {minimum} or newer, and {sys.executable} is Python '
            f'{sys.version.split()[0]}.\n'
            'Name a newer one, for example: make tune PYTHON=python3.12'
        )


def key():
    "Changes with the requirements and with the place: a virtual environment cannot be moved."
    digest = hashlib.sha256(VENV.encode())
    for name in ('settings.ini', 'setup.py'):
        with open(os.path.join(ROOT, name), 'rb') as f:
            digest.update(f.read())
    return digest.hexdigest()


def stamps():
    try:
        with open(STAMP) as f:
            return json.load(f)
    except (OSError, ValueError):
        return {}


def names(kind, cfg):
    "Distributions that the kind of environment needs, without version bounds and extras."
    wanted = cfg['requirements'].split() + (
        cfg['dev_requirements'].split() if kind == 'dev' else []
    )
    cut = str.maketrans({c: ' ' for c in '<>=!~[;'})
    return [w.translate(cut).split()[0] for w in wanted] + [cfg['lib_name']]


def whole(kind, cfg):
    "Does the environment start, and has it all its packages?"
    try:
        done = subprocess.run(
            [PYTHON, '-c', PROBE] + names(kind, cfg),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return False
    return done.returncode == 0


def usable():
    "Can pip be run in what is there, and was it made here and never interrupted?"
    if os.path.exists(BUSY):
        return False
    try:
        with open(os.path.join(BIN, 'pip')) as f:
            here = PYTHON in f.read(4096)  # the scripts name their python by its full path
        done = subprocess.run(
            [PYTHON, '-m', 'pip', '--version'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError:
        return False
    return here and done.returncode == 0


def mark():
    with open(BUSY, 'w'):
        pass


def create():
    print(f'Making .venv with {sys.executable}', flush=True)
    shutil.rmtree(OLD, ignore_errors=True)
    if os.path.lexists(VENV):
        os.rename(
            VENV, OLD
        )  # in one step: a kill during the slow deletion leaves no half environment
    os.mkdir(VENV)
    mark()
    shutil.rmtree(OLD, ignore_errors=True)
    if subprocess.run([sys.executable, '-m', 'venv', VENV]).returncode:
        sys.exit(
            'Python could not make a virtual environment (see above). '
            'On Debian and Ubuntu: apt install python3-venv'
        )


def install(kind):
    what = ROOT + ('[dev]' if kind == 'dev' else '')
    print(
        f'Installing moe_expert and what it needs into .venv ({kind}; '
        'about 3 minutes the first time)',
        flush=True,
    )
    mark()
    done = subprocess.run([PYTHON, '-m', 'pip', 'install', '--quiet', '--editable', what])
    os.remove(BUSY)
    if done.returncode:
        sys.exit('The installation failed (see above); the same command tries again.')


def lock():
    "Lock for as long as this process lives: no two commands install over each other."
    try:
        import fcntl
    except ImportError:  # not on this system: go on without
        return None
    held = open(os.path.join(ROOT, '.venv.lock'), 'w')
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


def main(kind):
    cfg = settings()
    check_python(cfg['min_python'])
    held = lock()
    now = key()
    finished = stamps().get(kind) == now
    if finished and whole(kind, cfg):
        return
    fresh = (
        finished or not usable()
    )  # finished, yet not whole: damaged. Not finished: changed requirements, pip sees to them
    if fresh:
        create()
    install(kind)
    if not whole(kind, cfg):
        if fresh:
            sys.exit('.venv is incomplete after a fresh installation: look at the messages above.')
        create()
        install(kind)
    ready = dict.fromkeys(['run', 'dev'] if kind == 'dev' else ['run'], now)
    with open(STAMP + '.new', 'w') as f:
        json.dump(ready, f)
    os.replace(STAMP + '.new', STAMP)
    if held:
        held.close()


if __name__ == '__main__':
    main(sys.argv[1])
