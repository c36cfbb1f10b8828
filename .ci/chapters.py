"""Run the chapters and keep their outputs: `python .ci/chapters.py [--check] [notebook ...]`.

A chapter is a numbered notebook or a tutorial. Its outputs are made to be the same on every run:
pictures are small, and times, paths, addresses and random ids are taken out. The notebook's
metadata keep a hash of the code cells, so that a test can say, without running anything, that the
code changed after the outputs were made. With --check nothing is written: each chapter is run, and
outputs that differ from the kept ones are an error. Where the processor or PyTorch rounds sums
differently, they are only shown.
"""

import argparse
import concurrent.futures
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / 'nbs'
KEY = 'outputs_made_by'  # in the metadata of a notebook; kept by nbdev_clean, see settings.ini
LARGEST = 400_000  # bytes of a notebook
TIMEOUT = 300  # seconds a cell
IMAGES = ('image/png', 'image/jpeg', 'image/svg+xml')
KEPT = ('text/plain', 'text/html', 'text/markdown', 'text/latex', *IMAGES)

KERNEL = """
c.InlineBackend.figure_formats = {'png'}
c.InlineBackend.rc = {'figure.dpi': 60, 'savefig.dpi': 60}
c.InlineBackend.print_figure_kwargs = {'bbox_inches': 'tight', 'metadata': {'Software': None}}
"""

# (pattern, what stands in its place), for what differs from run to run or from machine to machine.
SCRUB = [
    (r'(?m)^\[IPKernelApp\] .*\n?', ''),  # log lines of a kernel within: which come is chance
    (r'/tmp/ipykernel_\d+/\d+\.py:\d+', 'cell'),
    (r'[\w./+-]*/(?:site|dist)-packages/', ''),
    (r'/(?:tmp|var/folders)/[\w./+-]*?tmp\w{8}', 'folder'),
    (r'(<[^<>\n]*?) at 0x[0-9a-f]+', r'\1'),
    (r'\b0x[0-9a-f]{8,}\b', '0x…'),
    (r'\x1b\[[0-9;]*m', ''),
    (r'\b\d\d:\d\d<\d\d:\d\d\b', '00:00<00:00'),  # of progress bars
    (r'(100%\|█+\|) \d\d:\d\d,', r'\1 00:00,'),
]
NOISE = re.compile(r'0x[0-9a-f]{8,}|/tmp/|/home/|/root/|site-packages|ipykernel_\d|IPKernelApp')


def chapters():
    "The notebooks whose outputs are kept, in reading order."
    return [*sorted(NBS.glob('[0-9]*.ipynb')), *sorted(NBS.glob('tutorial*.ipynb'))]


def read(path):
    return json.loads(Path(path).read_text(encoding='utf-8'))


def write(notebook, path):
    "As nbdev writes notebooks, so that cleaning them changes nothing."
    text = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + '\n'
    new = Path(f'{path}.new')
    new.write_text(text, encoding='utf-8')
    os.replace(new, path)


def digest(notebook):
    "Hash of the code cells."
    code = [''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'code']
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def stale(path):
    "Did the code change after the outputs were made, or were they never made?"
    notebook = read(path)
    return notebook['metadata'].get(KEY) != digest(notebook)


def texts(output):
    "The texts of an output."
    for value in (output.get('text', ''), *output.get('data', {}).values()):
        yield ''.join(value)


def noise(path):
    "What should not be kept in the notebook: counts, errors, addresses, paths."
    found = []
    for cell in read(path)['cells']:
        if cell.get('execution_count') is not None:
            found.append(f'{cell["id"]}: execution count')
        for output in cell.get('outputs', ()):
            if output['output_type'] == 'error':
                found.append(f'{cell["id"]}: an error')
            data = {k: v for k, v in output.get('data', {}).items() if k not in IMAGES}
            for text in texts(output | {'data': data}):
                found += [f'{cell["id"]}: {m}' for m in NOISE.findall(text)]
    return found


def scrubbed(text, ids):
    "The text without what differs between runs; random ids of styled tables are counted through."
    text = text.replace(f'{ROOT}/', '').replace(str(ROOT), '.')
    for pattern, new in SCRUB:
        text = re.sub(pattern, new, text)
    text = re.sub(r'\bT_[0-9a-f]{5}', lambda m: ids.setdefault(m[0], f'T_{len(ids):05x}'), text)
    last = (line.rstrip('\r').rsplit('\r', 1)[-1] for line in text.split('\n'))  # of progress bars
    return '\n'.join(last)


def lines(text):
    return text.splitlines(keepends=True)


def merged(outputs):
    "Streams of one name that follow each other as one: where the kernel cut them is chance."
    joined = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if (
            output['output_type'] == 'stream' == last.get('output_type')
            and last['name'] == output['name']
        ):
            last['text'] += output['text']
        else:
            joined.append(output)
    return joined


def tidy(output, ids):
    "An output as it is kept; None if nothing of it is."
    if output['output_type'] == 'stream':
        text = lines(scrubbed(output['text'], ids))
        return {**output, 'text': text} if text else None
    data = {}
    for kind, value in output['data'].items():
        if kind in IMAGES:
            data[kind] = value.strip()
        elif kind in KEPT:
            data[kind] = lines(scrubbed(value, ids))
    kept = {'data': data, 'metadata': {}, 'output_type': output['output_type']}
    return kept | ({'execution_count': None} if kept['output_type'] == 'execute_result' else {})


def environment(folder):
    "Small pictures, one thread, no real data, and nothing from the user's own folders."
    profile = folder / 'ipython' / 'profile_default'
    profile.mkdir(parents=True)
    (profile / 'ipython_kernel_config.py').write_text(KERNEL)
    env = os.environ | {
        'IPYTHONDIR': str(folder / 'ipython'),
        'OMP_NUM_THREADS': '1',
        'PYTHONHASHSEED': '0',
        'JUPYTER_PREFER_ENV_PATH': '1',
        'XDG_CACHE_HOME': str(folder / 'cache'),
        'PYTHONPATH': str(ROOT),
        'COLUMNS': '100',
        'PYTHONWARNINGS': 'ignore:IProgress not found',  # tqdm misses a widget that we do not use
    }
    for name in ('MPLBACKEND', 'MOE_EXPERT_DATA', 'MOE_EXPERT_STORAGE'):
        env.pop(name, None)
    return env


def run(path):
    "The notebook with the outputs of a fresh run. CellExecutionError where a cell fails."
    import nbformat
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        done = nbformat.read(path, as_version=4)
        client = NotebookClient(
            done,
            timeout=TIMEOUT,
            kernel_name='python3',
            record_timing=False,
            resources={'metadata': {'path': str(NBS)}},
        )
        client.execute(env=environment(Path(folder)), stderr=subprocess.DEVNULL)
    notebook, ids = read(path), {}
    for cell, executed in zip(notebook['cells'], done.cells, strict=True):
        if cell['cell_type'] == 'code':
            cell['execution_count'] = None
            outputs = merged(json.loads(json.dumps(executed.outputs)))
            cell['outputs'] = [kept for o in outputs if (kept := tidy(o, ids))]
    notebook['metadata'][KEY] = digest(notebook)
    return notebook


def shown(notebook):
    "Outputs as lines, for comparing; pictures by their hash. Cells tagged `varies` show times."
    for cell in notebook['cells']:
        if 'varies' in cell['metadata'].get('tags', ()):
            continue
        for output in cell.get('outputs', ()):
            kinds = {**output.get('data', {}), 'text': output.get('text', '')}
            for kind, value in sorted(kinds.items()):
                text = ''.join(value)
                if kind in IMAGES:
                    text = f'{kind} {hashlib.sha256(text.encode()).hexdigest()[:12]}'
                yield from (f'{cell["id"]}: {line}' for line in text.splitlines())


def differences(old, new):
    return list(
        difflib.unified_diff(list(shown(old)), list(shown(new)), 'kept', 'now', lineterm='', n=0)
    )


def same_arithmetic():
    "Are sums rounded as where the golden values, and with them the outputs, were made?"
    sys.path.insert(0, str(ROOT / 'tests' / 'golden'))
    import recompute

    made_by = json.loads(recompute.GOLDEN.read_text(encoding='utf-8'))['arithmetic']
    return made_by == recompute.arithmetic()


def make(path, check, exact=True):
    "Run one chapter; what went wrong, or an empty text. Not exact: differences are only shown."
    try:
        notebook = run(path)
    except Exception as err:  # noqa: BLE001  (reported; the other chapters run)
        return f'{path.name} fails:\n' + re.sub(r'\x1b\[[0-9;]*m', '', str(err))
    if check:
        found = differences(read(path), notebook)
        text = '\n'.join([f'{path.name} differs:', *found[:20]]) if found else ''
        if text and not exact:
            print(text, flush=True)
        return text if exact else ''
    write(notebook, path)
    size = path.stat().st_size
    return f'{path.name} has {size:,} bytes, over {LARGEST:,}' if size > LARGEST else ''


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('notebooks', nargs='*', help='names in nbs/ (all chapters)')
    parser.add_argument('--check', action='store_true', help='write nothing, show what differs')
    parser.add_argument('--stale', action='store_true', help='only chapters whose code changed')
    given = parser.parse_args(argv)
    paths = [NBS / Path(n).name for n in given.notebooks] or chapters()
    if given.stale:
        paths = [p for p in paths if stale(p)]
    wrong, exact = [], not given.check or same_arithmetic()
    with concurrent.futures.ProcessPoolExecutor(max_workers=2) as pool:
        jobs = {pool.submit(make, p, given.check, exact): p for p in paths}
        for job in concurrent.futures.as_completed(jobs):
            print(jobs[job].name, 'FAILED' if job.result() else 'done', flush=True)
            wrong += [job.result()] if job.result() else []
    if not given.check and paths:
        subprocess.run([Path(sys.executable).with_name('nbdev_clean')], cwd=ROOT, check=True)
    print('\n\n'.join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    raise SystemExit(main())
