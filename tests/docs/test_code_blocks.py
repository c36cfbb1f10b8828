"""Every ```bash and ```python block of README, CONTRIBUTING, EXPERT_TUNING_README and docs/ runs.

They run in a copy of the repository. The blocks of one page run from top to bottom: each bash block
in its own shell, python in one namespace per page. The substitutions below shorten what a reader
would wait for, each with its reason. A substitution that no block needs fails, and so does a block
in a language that is neither run nor listed as data. `.ci/docs` runs this with `-m docs`.
"""

import html
import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [
    p
    for p in (
        *ROOT.glob('*.md'),
        *ROOT.glob('docs/*.md'),
        ROOT / 'moe_expert' / 'EXPERT_TUNING_README.md',
    )
    if p.name != 'CHANGELOG.md'
]
DATA = ('text', 'yaml', 'json', 'csv', 'bibtex', 'mermaid')  # shown, not run

SUBSTITUTIONS = [  # (language, pattern, replacement, why)
    (
        'bash',
        r'^make tune.*$',
        'make -n tune DATASET=german > /dev/null',
        'installs for minutes; .ci/run does it. Here: the target exists',
    ),
    (
        'bash',
        r'^make (test|export|env|env-dev|bench|format|chapters|docs|site)\b.*$',
        r'make -n \1 > /dev/null',
        'installs for minutes; .ci/run does it. Here: the target exists',
    ),
    (
        'bash',
        r'^python tests/golden/recompute\.py --write$',
        'test -s tests/golden/recompute.py',
        'takes a minute, and needs the benchmark data; .ci/golden runs it',
    ),
    (
        'bash',
        r'^jupyter lab .*$',
        'jupyter lab --version',
        'does not end by itself; .ci/browser opens it',
    ),
    (
        'bash',
        r'^(moe-expert card (\S+) .*)$',
        r"[ -f \2 ] || printf 'age,race,approve\\n3,a,yes\\n5,b,no\\n4,a,no\\n6,b,yes\\n' > \2; \1",
        'the reader has a table already',
    ),
    (
        'bash',
        r'^(moe-expert (?:run|audit) (\S+\.csv) .*)$',
        rf'[ -f \2 ] || {sys.executable} tests/docs/tables.py \2; \1',
        'the reader has a table already',
    ),
    ('bash', r' --open\b', '', 'there is no desktop here'),
    (
        'both',
        r'\b(bail|recidivism)\b(?!\.)|\bbail(?=_)',
        'synthetic-400',
        'generated people in place of thousands',
    ),
    ('bash', r'\badult-sex-race\b', 'synthetic-500', 'generated people in place of a download'),
    (
        'bash',
        r'\badult --sensitive sex,race\b',
        'synthetic-500',
        'generated people in place of a download; they have one attribute',
    ),
    ('both', r'\bgerman(?=\b|_)', 'synthetic-300', 'generated people in place of a download'),
    ('both', r'\bTIME\b', 'c3', "a column's name in the generated data"),
    ('bash', r'--n_trials \d+', '--n_trials 2', 'seconds in place of minutes'),
    (
        'bash',
        r'((?:moe-expert (?:tune|train|run)'
        r'|python (?:moe_expert/|-m moe_expert\.)run_\w+(?:\.py)?) [^#\n]*)',
        r'\1 --n_trials 2 --epochs 100 ',
        'seconds in place of minutes',
    ),
    (
        'bash',
        r'(--pareto [^#\n]*)',
        r'\1 --n_trials 6 --epochs 1500 ',
        'none of two short trials reaches the floor; the last option counts',
    ),
    (
        'bash',
        r'(papermill nbs/(?:tune|moe)\.ipynb [^#\n]*)',
        r'\1 -p n_trials 2 -p epochs 100 ',
        'seconds in place of minutes',
    ),
    (
        'bash',
        r'(papermill nbs/study\.ipynb (?:\\\n|[^#\n])*)',
        r'\1 -p hours 0 ',
        'starts no run: hours; .ci/study runs the quick mode',
    ),
    ('bash', r'--same again\b', '--same docs/study', 'nothing was run again'),
    ('python', r'n_trials=\d+', 'n_trials=2', 'seconds in place of minutes'),
    (
        'python',
        r'ExpertTuner\((.*)\)',
        r'ExpertTuner(\1, epochs=100)',
        'seconds in place of minutes',
    ),
    ('python', r'trainer\.run\(\)', 'trainer.run(n_trials=2)', 'seconds in place of minutes'),
]


def blocks(path):
    "(first line, language, code) of each fence."
    lines, found, start = path.read_text(encoding='utf-8').splitlines(), [], None
    for i, line in enumerate(lines):
        if not line.lstrip().startswith('```'):
            continue
        if start is None:
            start, language = i + 1, line.strip()[3:].strip()
        else:
            found.append((start + 1, language, textwrap.dedent('\n'.join(lines[start:i]))))
            start = None
    assert start is None, f'{path.name}: a fence is not closed'
    return found


def small(language, code):
    "The block as it is run."
    for which, pattern, new, _ in SUBSTITUTIONS:
        if which in (language, 'both'):
            code = re.sub(pattern, new, code, flags=re.M)
    return code


@pytest.fixture
def place(tmp_path):
    "A copy of the repository as it would be committed, for one page; and its environment."
    folder = tmp_path
    files = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard', '-z'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, files.split('\0')):
        if not (ROOT / name).is_file():
            continue
        (folder / 'clone' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / 'clone' / name)
    command = folder / 'bin' / 'moe-expert'
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m moe_expert.cli "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join(
        [str(command.parent), str(Path(sys.executable).parent), os.environ['PATH']]
    )
    env = os.environ | dict(
        PYTHONPATH=str(folder / 'clone'),
        PATH=path,
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_AUTHOR_NAME='t',
        GIT_AUTHOR_EMAIL='t@example.org',
        GIT_COMMITTER_NAME='t',
        GIT_COMMITTER_EMAIL='t@example.org',
        MPLBACKEND='agg',
    )
    env.pop('MOE_EXPERT_DATA', None)
    for git in (['init', '-q'], ['add', '-A'], ['commit', '-qm', 'copy']):
        subprocess.run(['git', *git], cwd=folder / 'clone', env=env, check=True)
    return folder / 'clone', env


@pytest.mark.docs
@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.name)
def test_code_of_the_page_runs(path, place, monkeypatch):
    clone, env = place
    monkeypatch.chdir(clone)
    namespace, said = {'__name__': '__main__'}, []
    for line, language, code in blocks(path):
        where = f'{path.name}, line {line}'
        if language in DATA:
            continue
        assert language in ('bash', 'python'), (
            f'{where}: {language!r} is not run; use bash, python, or one of {DATA}'
        )
        code = small(language, code)
        if language == 'bash':
            done = subprocess.run(
                ['bash', '-euo', 'pipefail', '-c', code],
                cwd=clone,
                env=env,
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, (
                f'{where}\n{code}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}'
            )
            said.append(f'$ {code.strip()}\n{done.stdout}')
        else:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                exec(compile('\n' * line + code, where, 'exec'), namespace)
    if path == ROOT / 'README.md' and os.environ.get('MOE_EXPERT_SCREENSHOTS'):
        namespace['model'].predict(namespace['people'][['age', 'income']])
        tasks_as_pictures(clone, said, Path(os.environ['MOE_EXPERT_SCREENSHOTS']))


def tasks_as_pictures(clone, said, folder):
    "What the README's tasks leave, for a person to look at."
    sys.path.insert(0, str(ROOT / 'docs'))
    from picture import screenshot

    folder.mkdir(parents=True, exist_ok=True)
    terminal = clone / 'terminal.html'
    terminal.write_text(f'<meta charset=utf-8><pre>{html.escape(chr(10).join(said[:4]))}</pre>')
    results = clone / 'weights' / 'moe_experts'
    pages = {
        'own_table': results / 'people_moe_report.html',
        'compare_runs': results / 'index.html',
        'worst_off_group': clone / 'audit.html',
        'terminal': terminal,
    }
    for name, page in pages.items():
        screenshot(page).save(folder / f'task_{name}.png')


@pytest.mark.docs
def test_every_substitution_is_needed():
    code = [(language, text) for p in PAGES for _, language, text in blocks(p)]
    idle = [
        pattern
        for which, pattern, _, _ in SUBSTITUTIONS
        if not any(
            which in (language, 'both') and re.search(pattern, text, flags=re.M)
            for language, text in code
        )
    ]
    assert not idle, idle


@pytest.mark.docs
@pytest.mark.parametrize('script', ['rooms.py', 'study_tables.py'])
def test_pages_are_what_code_and_rows_say(repo_root, script):
    done = subprocess.run(
        [sys.executable, f'docs/{script}', '--check'], cwd=repo_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
