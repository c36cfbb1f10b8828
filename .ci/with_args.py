"""Run Python with the words of the environment variable ARGS added: `.ci/with_args.py -m pytest`.

Quotes in ARGS hold words together, as in a shell; nothing in it is run.
"""

import os
import shlex
import subprocess
import sys

try:
    words = shlex.split(os.environ.get('ARGS', ''))
except ValueError as err:
    sys.exit(f'ARGS={os.environ["ARGS"]}: {err}')
command = [sys.executable, *sys.argv[1:], *words]
if os.name == 'nt':
    sys.exit(subprocess.run(command).returncode)
os.execv(sys.executable, command)
