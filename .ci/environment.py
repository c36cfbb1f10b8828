"""Make .venv, or mend it: `python3 .ci/environment.py run` or `dev`.

`run` installs what `make tune` needs, `dev` also what `make test` needs. The environment variable
VENV names another folder than .venv.

Only the standard library: this runs before anything is installed. A .venv that is whole and was
made from this settings.ini and setup.py is left alone (a tenth of a second); one that is broken,
half made or moved is made anew. One that was not made here is never touched: it has no stamp.
"""

import configparser
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAMED = os.environ.get('VENV') or '.venv'  # relative to ROOT
VENV = os.path.abspath(os.path.join(ROOT, NAMED))
BIN = os.path.join(VENV, 'Scripts' if os.name == 'nt' else 'bin')
PYTHON = os.path.join(BIN, 'python')
STAMP = os.path.join(VENV, 'moe_expert-ready.json')
BUSY = os.path.join(
    VENV, 'moe_expert-installing'
)  # there while an installation is under way, and after one that was killed
OLD = VENV + '.moe_expert-old'  # what is being deleted; nobody else chooses this name


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


def foreign():
    "Is something there that was not made here: a different environment, a link, a file?"
    if not os.path.isdir(VENV) or os.path.islink(VENV):
        return os.path.lexists(VENV)
    return bool(os.listdir(VENV)) and not (os.path.exists(STAMP) or os.path.exists(BUSY))


def refuse_foreign():
    "End with a message where something foreign has the place."
    if not foreign():
        return
    named = shlex.quote(NAMED)
    kind = 'a link' if os.path.islink(VENV) else 'there, and was not made by this command'
    sys.exit(
        f'{named} is {kind}, so it is left as it is.\n'
        f'Use another folder: make VENV={shlex.quote(another())} ...\n'
        f'Or move {named} away, and run the same command again.'
    )


def another():
    "A folder that is free, named after the one that is not."
    free = (f'{NAMED.rstrip("/")}-moe{n}' for n in ('', *range(2, 1000)))
    return next(n for n in free if not os.path.lexists(os.path.join(ROOT, n)))


def settings():
    config = configparser.ConfigParser(delimiters=['='])
    config.read(os.path.join(ROOT, 'settings.ini'), encoding='utf-8')
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
    digest = hashlib.sha256(os.fsencode(VENV))
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


def write_stamp(ready):
    with open(STAMP + '.new', 'w') as f:
        json.dump(ready, f)
    os.replace(STAMP + '.new', STAMP)


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
        with open(os.path.join(BIN, 'pip'), 'rb') as f:
            # the scripts name their python by its full path
            here = os.fsencode(PYTHON) in f.read(4096)
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
    print(f'Making {NAMED} with {sys.executable}', flush=True)
    shutil.rmtree(OLD, ignore_errors=True)
    if os.path.lexists(VENV) and os.listdir(VENV):
        # in one step: a kill during the slow deletion leaves no half environment
        os.rename(VENV, OLD)
    os.makedirs(VENV, exist_ok=True)
    mark()
    shutil.rmtree(OLD, ignore_errors=True)
    if subprocess.run([sys.executable, '-m', 'venv', VENV]).returncode:
        sys.exit(
            'Python could not make a virtual environment (see above). '
            'On Debian and Ubuntu: apt install python3-venv'
        )


def install(kind):
    what = '.[dev]' if kind == 'dev' else '.'  # not ROOT: its name may hold a bracket
    print(
        f'Installing moe_expert and what it needs into {NAMED} ({kind}; '
        'about 3 minutes the first time)',
        flush=True,
    )
    mark()
    pip = [PYTHON, '-m', 'pip', 'install', '--quiet', '--editable', what]
    done = subprocess.run(pip, cwd=ROOT)
    if not os.path.exists(STAMP):
        write_stamp({})  # made here, nothing ready yet
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
    refuse_foreign()
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
            sys.exit(f'{NAMED} is incomplete after a fresh installation: see the messages above.')
        create()
        install(kind)
    ready = dict.fromkeys(['run', 'dev'] if kind == 'dev' else ['run'], now)
    write_stamp(ready)
    if held:
        held.close()


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='backslashreplace')  # as of stderr: names of folders are printed
    main(sys.argv[1])
