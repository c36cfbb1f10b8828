"Every option at every door: it changes what is passed on, or it is refused; defined in one place."

import inspect
import json
import os
import resource
import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe_expert import parameters
from moe_expert.errors import MoEExpertError, ParameterError
from moe_expert.parameters import CALLS, COMMANDS, DOORS, NOTEBOOKS, PARAMETERS


def other(p):
    "A value that a parameter takes and that is not its default."
    kind = p.kind
    if isinstance(kind, parameters.Several):
        return (
            other(SimpleNamespace(kind=kind.kind, name=p.name, default=(p.default or (None,))[0])),
        )
    if isinstance(kind, parameters.Flag):
        return not p.default
    if isinstance(kind, parameters.Choice):
        return next(w for w in kind.words if w not in (p.default, 'mixture'))
    if isinstance(kind, parameters.Whole):
        return p.default + 1
    if isinstance(kind, parameters.Number):
        return 0.5
    if isinstance(kind, parameters.Listed):
        return next(n for n in kind.numbers if n != p.default)
    if isinstance(kind, parameters.Names):
        return (7,) if kind.item is int else ('a', 'b')
    return 'german' if p.name == 'dataset' else 'elsewhere'


def with_needs(door, name):
    "The option with its other value, and with what it needs to have an effect."
    p = parameters.options(door)[name]
    given = {name: other(p)}
    for needed, value in p.all_needs():
        if value is ...:
            given = with_needs(door, needed) | given
        elif parameters.options(door)[needed].default != value:
            given = with_needs(door, needed) | given | {needed: value}
    return given


def words(door, given):
    "The words of a command line; positional ones first, else lists would take them."
    known = parameters.options(door)
    first = [value for name, value in given.items() if known[name].positional]
    line = [w for value in first for w in (value if isinstance(value, tuple) else (value,))]
    for name, value in given.items():
        if known[name].positional:
            continue
        line.append(parameters.spelled(door, name, value))
        if not isinstance(value, bool):
            line += map(str, value if isinstance(value, tuple) else [value])
    return line


@pytest.mark.parametrize('door', DOORS)
def test_an_option_of_a_door_changes_what_is_given(door):
    for name in parameters.names(door):
        given = with_needs(door, name)
        checked = parameters.check(door, given)
        assert checked[name] == given[name] != parameters.check(door)[name]
        if door in COMMANDS:
            parser = parameters.parser(door)
            assert parser.given(words(door, given)) == checked
            positional = parameters.options(door)[name].positional
            assert (name if positional else f'--{name}') in parser.format_help()


@pytest.mark.parametrize('door', DOORS)
def test_an_option_of_other_doors_is_refused(door, capsys):
    for name, p in PARAMETERS.items():
        if name in parameters.names(door):
            continue
        with pytest.raises(ParameterError, match=f'{name} is an option of .*, not of {door}'):
            parameters.check(door, with_needs(p.doors[0], name))
        if door in COMMANDS:
            with pytest.raises(SystemExit, match='2'):
                parameters.parser(door).given([f'--{name}', '1'])
            err = capsys.readouterr().err
            assert err.count('\n') == 1 and f'--{name} is an option of ' in err
            assert all(command in err for command in set(p.doors) & set(COMMANDS))


@pytest.mark.parametrize('door', NOTEBOOKS)
def test_papermill_finds_the_same(door):
    "Also a name that papermill injects without the notebook knowing it."
    namespace = {}
    exec(parameters.parameters_cell(door), namespace)
    assert parameters.collect(door, namespace) == parameters.check(door)
    for name, p in PARAMETERS.items():
        known = name in parameters.names(door)
        given = with_needs(door if known else p.doors[0], name)
        cell = '# Parameters\n' + '\n'.join(f'{n} = {v!r}' for n, v in given.items())
        after = namespace | given | dict(In=[cell])
        if known:
            assert parameters.collect(door, after)[name] == given[name]
        else:
            with pytest.raises(ParameterError, match=f'{name} is an option of'):
                parameters.collect(door, after)


@pytest.mark.parametrize('door', CALLS)
def test_calls_take_their_options_and_no_others(door):
    @parameters.takes(door)
    def function(**options):
        return options

    names = parameters.names(door)
    assert set(function()) == set(names)
    shown = inspect.signature(function).parameters
    assert {n for n, p in shown.items() if p.kind != p.VAR_KEYWORD} == set(names)
    for name in PARAMETERS:
        if name in names:
            given = with_needs(door, name)
            needed = {n: value for n, value in given.items() if n != name}
            assert function(**given) != function(**needed)
        elif DOORS[door].extras:
            assert function(**{name: 1})[name] == 1  # of a card, for `load_dataset` to judge
        else:
            with pytest.raises(ParameterError, match=f'{name} is an option of'):
                function(**{name: 1})


@pytest.mark.parametrize('door', ['tune.ipynb', 'moe.ipynb', 'study.ipynb'])
def test_wrong_values_are_named_all_at_once(door):
    wrong = dict.fromkeys(parameters.names(door), object())
    with pytest.raises(ParameterError) as err:
        parameters.check(door, wrong | dict(n_trial=3))
    message = str(err.value)
    assert "unknown parameter 'n_trial'. Did you mean 'n_trials'?" in message
    assert all(f'{n} must be ' in message for n in wrong if n != 'settings' or door[0] == 's')


@pytest.mark.parametrize(
    'door, argv, message',
    [
        ('tune', '--keep .5', '--keep has no effect without --pareto'),
        ('tune', '--keep .95', '--keep has no effect without --pareto'),
        ('tune', '--pareto --report', '--report has no effect with --pareto'),
        ('tune', '--pareto --expert expert1', '--expert has no effect with --pareto'),
        ('tune', '--groups a', '--groups has no effect without --report'),
        ('train', '--groups a', '--groups has no effect without --report'),
        ('train', '--ways nine --no-fine_tune', '--ways has no effect with --no-fine_tune'),
        ('train', '--price 2', '--price has no effect without --ways crossfit'),
        ('train', '--pareto --keep .5', '--pareto is an option of tune, not of train'),
        ('run', '--ways nine --no-fine_tune', '--ways has no effect with --no-fine_tune'),
        ('run', '--use_cached_experts', '--use_cached_experts is an option of train, not of run'),
        ('report', '--report', '--report is an option of tune, train, not of report'),
        ('report', '--ways nine', '--ways is an option of train, run, not of report'),
        ('report', '--n_trials 50', '--n_trials is an option of tune, train, run, not of report'),
        ('datasets', '--edition full', '--edition has no effect without a dataset'),
        (
            'datasets',
            '--quiet',
            '--quiet is an option of tune, train, run, report, not of datasets',
        ),
    ],
)
def test_an_option_without_effect_ends_with_exit_code_2(door, argv, message, capsys):
    with pytest.raises(SystemExit, match='2'):
        parameters.parser(door).given(argv.split())
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1 and f'moe-expert {door}: error: {message}' in err


class Passed:
    "Takes the place of everything heavy, and notes with what it was called."

    def __init__(self, monkeypatch, tmp_path):
        from moe_expert import audit_predictions, run_expert_tuning, run_moe, trainer, tune_experts
        from moe_expert.data import drafts, own_card
        from moe_expert.mixture import leaderboard, verify
        from moe_expert.report import index, pack, people, run
        from moe_expert.tuning import trade_off

        self.calls, self.path = [], tmp_path / 'made.ipynb'
        display = run_expert_tuning.progress_display
        for module, name in (
            (tune_experts, 'ExpertTuner'),
            (trainer, 'MoETrainer'),
            (trainer, 'MoESettings'),
            (trade_off, 'search_pareto'),
            (run, 'run_report'),
            (run, 'run_moe_report'),
            (people, 'read_data'),
            (drafts, 'draft_card'),
            (own_card, 'own_card'),
            (leaderboard, 'board_of'),
            (webbrowser, 'open'),
            (audit_predictions, 'audit_predictions'),
            (index, 'write_index'),
            (verify, 'verify'),
            (verify, 'write_manifest'),
            (pack, 'pack'),
        ):
            monkeypatch.setattr(module, name, self.noting(name))
        monkeypatch.setattr(audit_predictions, 'terminal_tables', lambda _: [])
        for words in ('closing_words', 'winners_words'):
            monkeypatch.setattr(run_expert_tuning, words, lambda *_: '')
        told = lambda *given: self.note('told', given[2].thresholds, given[2].tolerance) or ''
        monkeypatch.setattr(run_moe, 'closing_words', told)
        monkeypatch.setattr(
            run_expert_tuning,
            'progress_display',
            lambda quiet: self.note('quiet', quiet) or display(quiet),
        )

    def note(self, *call):
        self.calls.append(repr(call))

    def noting(self, name):
        def call(*args, **kwargs):
            import logging

            self.note(name, args, sorted(kwargs.items(), key=str))
            self.note('log', logging.getLogger('moe_expert').level)
            if name in ('search_pareto', 'read_data', 'draft_card', 'own_card', 'board_of'):
                raise MoEExpertError('far enough')
            if name == 'MoESettings':
                return 'settings'
            return self.path if 'report' in name or name == 'write_index' else Stage(self)

        return call

    def __repr__(self):
        return 'passed'


class Stage:
    "A tuner, a trainer, a verification, or a pack."

    exit_code, path = 0, 'made.zip'

    def __init__(self, passed):
        self.passed, self.about = passed, {}

    def __repr__(self):
        return 'stage'

    words = ()  # of an audit

    def write(self, *args):
        self.passed.note('write', args)
        return []

    def tune_all_experts(self, *args, **kwargs):
        self.passed.note('tune_all_experts', args, kwargs)

    def run(self, *args, **kwargs):
        self.passed.note('run', args, kwargs)


OF_A_CARD = {n for n, p in parameters.options('run').items() if p.needs == ('label', ...)}


@pytest.mark.parametrize(
    'door, name', [(d, n) for d in COMMANDS for n in parameters.names(d) if n != 'progress']
)
def test_each_option_of_a_command_reaches_what_does_the_work(
    door, name, monkeypatch, tmp_path, capsys
):
    from moe_expert import cli

    given = with_needs(door, name)
    base = {n: v for n, v in given.items() if n != name}
    if door == 'report':
        base['expert'] = given.setdefault('expert', ('all', 'mixture'))
    if (door, name) == ('report', 'expert'):
        base['expert'] = ('mixture',)
    if (door, name) == ('datasets', 'columns'):
        from moe_expert.data import audit

        monkeypatch.setattr(audit, 'columns_text', lambda table, width, most, more: f'most {most}')
        words_ = 'synthetic-300 --columns'.split()
        cards = [cli.card(parameters.parser(door).given(words_[:k])) for k in (1, 2)]
        assert 'most 40' in cards[0] and 'most 21' in cards[1]  # with the label
        return
    if door == 'audit':  # it needs these four
        needed = dict(table='people.csv', label='repaid', prediction='score', groups=('sex',))
        base, given = needed | base, needed | given
    if door == 'card':  # it needs these three
        needed = dict(table='people.csv', label='repaid', sensitive='origin')
        base, given = needed | base, needed | given
    if door == 'run' and name in (*OF_A_CARD, 'label'):
        (tmp_path / 'people.csv').write_text('')
        table = dict(dataset=str(tmp_path / 'people.csv'), label='repaid', sensitive=('origin',))
        base, given = base | table, table | given
    if (door, name) == ('leaderboard', 'csv'):
        return  # see test_leaderboard
    passed = Passed(monkeypatch, tmp_path)
    if (door, name) == ('datasets', 'data_dir'):
        assert str(tmp_path) != cli.listing(None)  # a list without a name
        (tmp_path / 'bail.csv').write_text('')
        assert str(tmp_path) in cli.listing(str(tmp_path)) and str(tmp_path) not in cli.listing()
        return
    calls = []
    for options in (base, given):
        passed.calls.clear()
        cli.main([door, *words(door, options)])
        calls.append(list(passed.calls))
    assert calls[0] != calls[1]
    if door == 'report' and name not in ('dataset', 'expert', 'open', 'quiet', 'verbose'):
        changed = {a.split(',')[0] for a, b in zip(*calls) if a != b}
        both = {"('run_report'", "('run_moe_report'"}
        of_mixture = name in ('price', 'thresholds', 'tolerance')
        assert changed >= ({"('run_moe_report'"} if of_mixture else both)


@pytest.mark.parametrize('notebook', ['tune.ipynb', 'moe.ipynb'])
def test_a_notebook_that_only_reads_refuses_what_it_finds_in_the_files(notebook):
    reading = {'dataset', 'expert', 'data_dir', 'groups', 'cache_dir', 'read_only'}
    of_mixture = {'device', 'fine_tune', 'price', 'thresholds', 'tolerance'}
    reading |= of_mixture if notebook == 'moe.ipynb' else set()
    for name in parameters.names(notebook):
        given = {name: other(parameters.options(notebook)[name]), 'read_only': True}
        given |= {'thresholds': 'eo'} if name == 'tolerance' else {}
        if name in reading:
            assert parameters.check(notebook, given, strict=True)[name] == given[name]
            continue
        with pytest.raises(ParameterError, match=f'{name} has no effect where read_only is True'):
            parameters.check(notebook, given)


def test_storage_comes_from_the_environment_where_it_is_not_given(monkeypatch):
    monkeypatch.setenv('MOE_EXPERT_STORAGE', 'sqlite:///all.db')
    for door in ('tune', 'train', 'run'):
        assert parameters.parser(door).given([]).storage == 'sqlite:///all.db'
        assert (
            parameters.parser(door).given(['--storage', 'sqlite:///one.db']).storage[-6:]
            == 'one.db'
        )
    assert parameters.check('ExpertTuner').storage is None
    monkeypatch.delenv('MOE_EXPERT_STORAGE')
    assert parameters.parser('tune').given([]).storage is None


def test_the_environment_variable_is_read_in_one_room(repo_root):
    readers = {
        p.relative_to(repo_root / 'moe_expert').as_posix()
        for p in (repo_root / 'moe_expert').rglob('*.py')
        if "'MOE_EXPERT_STORAGE'" in p.read_text()
    }
    assert readers == {'parameters.py'}


def test_choices_are_those_of_the_rooms():
    from moe_expert.experts import backbones, specs
    from moe_expert.experts.trainers import TrainSettings
    from moe_expert.mixture import crossfit, teachers

    assert backbones.BACKBONES == parameters.BACKBONES
    assert tuple(specs.EXPERTS) == parameters.EXPERT_NAMES
    assert tuple(teachers.TEACHERS) == parameters.TEACHERS
    assert tuple(crossfit.WAYS) == parameters.WAY_NAMES
    assert TrainSettings().epochs == parameters.defaults('ExpertTuner')['epochs']
    assert TrainSettings().backbone == parameters.defaults('ExpertTuner')['backbone']
    assert TrainSettings().hidden == parameters.defaults('FairMoEClassifier')['hidden']


def test_phases_are_those_of_the_study():
    plan = pytest.importorskip('moe_expert.study.plan')
    assert tuple(plan.PHASES) == parameters.PHASE_NAMES


def test_classes_show_the_signatures_of_their_doors():
    from moe_expert import ExpertTuner, FairMoEClassifier, MoETrainer

    for cls in (ExpertTuner, MoETrainer, FairMoEClassifier):
        shown = inspect.signature(cls).parameters.values()
        defaults = {p.name: p.default for p in shown if p.kind != p.VAR_KEYWORD}
        assert defaults == parameters.defaults(cls.__name__)


# --- one edited place -----------------------------------------------------------------------------

NEW = """
define('colour', Choice('red', 'green'), 'red', 'colour of the experts', tuple(DOORS))
"""
LOOK = """
import inspect, json
from moe_expert import parameters as p, ExpertTuner, MoETrainer, FairMoEClassifier
classes = [c for c in (ExpertTuner, MoETrainer, FairMoEClassifier)
           if hasattr(c.__init__, '__signature__')]
p.check('tune.ipynb', dict(colour='green'))
try:
    p.collect('moe.ipynb', dict(colour='blue'))
except p.ParameterError as err:
    wrong = str(err)
print(json.dumps(dict(
    help=['--colour {red,green}' in p.parser(d).format_help() for d in p.COMMANDS],
    checks=[p.check(d).colour for d in p.DOORS],
    signatures=['colour' in inspect.signature(c).parameters for c in classes],
    get_params=FairMoEClassifier(colour='green').get_params()['colour'],
    tables=['colour of the experts' in p.markdown_table(d) for d in p.DOORS],
    wrong=wrong)))
"""


@pytest.fixture
def edited(tmp_path, repo_root):
    "A copy of the repository with one more option, written into the definitions and nowhere else."
    for name in ('moe_expert', 'nbs', '.ci'):
        skip = shutil.ignore_patterns('__pycache__')
        shutil.copytree(repo_root / name, tmp_path / name, ignore=skip)
    shutil.copy(repo_root / 'README.md', tmp_path / 'README.md')
    file = tmp_path / 'moe_expert' / 'parameters.py'
    before, after = file.read_text().split('class Given(')
    file.write_text(f'{before}\n{NEW}\nclass Given({after}')
    return tmp_path


def run(folder, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | dict(PYTHONPATH=str(folder)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_option_that_is_added_in_one_place_is_everywhere(edited):
    seen = json.loads(run(edited, '-c', LOOK).splitlines()[-1])
    assert all(seen['help']) and all(seen['signatures']) and all(seen['tables'])
    assert set(seen['checks']) == {'red'} and seen['get_params'] == 'green'
    assert "colour must be 'red', 'green', not 'blue'" in seen['wrong']


def test_documents_and_notebooks_follow(edited):
    run(edited, '.ci/parameters.py')
    assert '| `--colour` | `colour` | `red` |' in (
        edited / 'moe_expert' / 'EXPERT_TUNING_README.md'
    ).read_text('utf-8')
    for name in NOTEBOOKS:
        cells = json.loads((edited / 'nbs' / name).read_text('utf-8'))['cells']
        tagged = [c for c in cells if 'parameters' in c['metadata'].get('tags', [])]
        assert ["colour = 'red'" in ''.join(c['source']) for c in tagged] == [True]
        prose = ''.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
        assert '| `colour` | `red` |' in prose


def test_documents_and_notebooks_are_up_to_date(repo_root):
    command = [sys.executable, str(repo_root / '.ci' / 'parameters.py'), '--check']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


# --- fast help ------------------------------------------------------------------------------------


def cpu_seconds(*code):
    "CPU time of a Python process; the least of three."

    def once():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        before = used.ru_utime + used.ru_stime
        subprocess.run([sys.executable, *code], check=True, capture_output=True, timeout=60)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime - before

    return min(once() for _ in range(3))


@pytest.mark.parametrize('words_', ['--help', *(f'{c} --help' for c in COMMANDS), '--version'])
def test_help_is_quick_and_imports_nothing_heavy(words_, repo_root):
    code = (
        'import sys\nfrom moe_expert.cli import main\n'
        f'try: main({words_.split()!r})\nexcept SystemExit: pass\n'
        "heavy = {'torch', 'numpy', 'pandas', 'optuna', 'fastcore', 'sklearn'} & set(sys.modules)\n"
        'assert not heavy, heavy'
    )
    extra = cpu_seconds('-c', code) - cpu_seconds('-c', 'pass')
    assert extra < 0.3  # about 0.05 on a machine at rest; what is asked for is 0.1


@pytest.mark.parametrize('module', ['run_expert_tuning', 'run_moe'])
def test_scripts_answer_help_without_the_package(module, repo_root):
    script = repo_root / 'moe_expert' / f'{module}.py'
    done = subprocess.run(
        [sys.executable, '-X', 'importtime', str(script), '--help'],
        cwd=Path(repo_root).anchor,
        env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and f'usage: {module}' in done.stdout
    assert 'torch' not in done.stderr and 'numpy' not in done.stderr
