"""`report` only reads.

For every kind of run, with other settings than the defaults and none of them repeated: no file
changes, nothing trains, and what is missing is named with the command that makes it.
"""

import gc
import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch

from moe_expert import cli, trainer, tune_experts
from moe_expert.errors import ArgumentError, ArtifactError, ParameterError
from moe_expert.experts import training
from moe_expert.mixture import integration, reading
from moe_expert.mixture.crossfit import WAYS
from moe_expert.mixture.gate_training import GateSettings
from moe_expert.parameters import check, parser
from moe_expert.report import run as report_run
from moe_expert.report.index import write_index
from moe_expert.report.look import Sentences, Table
from moe_expert.report.pages import notebook_path
from moe_expert.report.run import run_moe_report, run_report
from moe_expert.trainer import MoESettings, MoETrainer
from moe_expert.tuning import storage, studies
from moe_expert.tuning.artifacts import read_json, write_json
from moe_expert.tuning.folder import ExpertFiles

NAME = 'synthetic-200'
OTHERS = dict(seed=3, backbone='gcn', epochs=60, n_trials=2, split_seed=21, drop=['c0'])
GATE = GateSettings(epochs=20, val_every=20)


def short(kind):
    "The ways of stage 3, with few epochs."
    if kind == 'crossfit':
        return replace(WAYS[kind], steps=10)
    return tuple(replace(way, epochs=2, val_every=1) for way in WAYS[kind])


@pytest.fixture(scope='module')
def experts(tmp_path_factory):
    "Three experts of a few people, tuned in another way than the defaults; for copying only."
    folder = tmp_path_factory.mktemp('experts')
    with closing(MoETrainer(NAME, False, folder, **OTHERS, settings=MoESettings(GATE))):
        return folder


class closing:
    "Close the database behind a trainer, so that nothing of it is written later."

    def __init__(self, one):
        self.one = one

    def __enter__(self):
        return self.one

    def __exit__(self, *_):
        self.one.storage.engine.dispose()


@pytest.fixture(scope='module', params=['one', 'nine', 'crossfit', None])
def run(experts, tmp_path_factory, request):
    "A folder with a tested mixture, and how stage 3 was run."
    folder = shutil.copytree(experts, tmp_path_factory.mktemp('run') / 'w')
    ways = short(request.param or 'one')
    options = {n: OTHERS[n] for n in ('seed', 'split_seed', 'drop')}
    settings = MoESettings(GATE, ways, price=0.0 if request.param == 'crossfit' else 1.0)
    with closing(MoETrainer(NAME, True, folder, settings=settings, **options)) as one:
        return folder, request.param, one.run(4, fine_tune=request.param is not None)


def hashes(folder):
    "Name → SHA-256 and time of the last change, of every file."
    return {
        p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in folder.iterdir()
    }


def executed(name, **given):
    "The names that a notebook leaves, run in this process, where it saves no copy of itself."
    cells = json.loads(notebook_path(name).read_text())['cells']
    space = {'display': given.pop('display', lambda *_: None)}
    for cell in cells:
        if cell['cell_type'] == 'code':
            exec(compile(''.join(cell['source']), name, 'exec'), space)
            if 'parameters' in cell['metadata'].get('tags', []):
                space.update(given)
    return space


@pytest.fixture
def only_reads(forbid_training):
    "Whatever trains, tests or opens a study fails the test."
    forbid_training(
        (trainer, 'train_gates'),
        (trainer, 'fine_tuned'),
        (trainer, 'write_test'),
        (integration, 'run_training'),
        (training, 'train_population'),
        (tune_experts, 'train_population'),
        (storage, 'open_storage'),
        (tune_experts, 'claim'),
        (studies, 'run_study'),
    )


def test_both_reports_leave_every_file_as_it_was(run, only_reads):
    folder, kind, done = run
    before = hashes(folder)
    given = dict(dataset=NAME, cache_dir=str(folder), read_only=True)
    tuning, mixture = executed('tune.ipynb', **given), executed('moe.ipynb', **given)
    assert hashes(folder) == before
    assert tuning['asked'].seed == 3 and tuning['asked'].backbone == 'gcn'
    assert tuning['data'].split_seed == 21 and list(tuning['data'].drop) == ['c0']
    assert {r['n_trials'] for r in tuning['results'].values()} == {2}
    seen = mixture['seen']
    assert (seen.about.gate, seen.about.fine_tuning) == (done['gate'], done['fine_tuning'])
    assert seen.test == done['test'] and len(seen.tests.records) == 1
    if kind is not None:
        ways = {'one': 1, 'nine': 9, 'crossfit': 6}[kind]
        assert len(seen.about.fine_tuning['ways']) == ways
    stage = 'finetuned_checkpoint' if seen.about.kept and kind != 'crossfit' else 'gate_checkpoint'
    state = torch.load(getattr(seen.files, stage), weights_only=True)['state_dict']
    assert torch.equal(seen.gate_mixture.gates['gate.out'][0].cpu(), state['gate.out'])
    assert seen.about.cross_fitted == (kind == 'crossfit')
    assert seen.mixture is seen.gate_mixture or kind == 'crossfit'


def test_a_report_shows_the_price_that_is_asked_for(run, only_reads):
    "Only a cross-fitted mixture has others than 1; nothing is tested or written for it."
    folder, kind, done = run
    before = hashes(folder)
    given = dict(dataset=NAME, cache_dir=str(folder), read_only=True, price=4)
    if kind != 'crossfit':
        with pytest.raises(ArgumentError, match='not cross-fitted, so there is no model for .* 4'):
            executed('moe.ipynb', **given)
        return
    shown = []
    space = executed('moe.ipynb', **given, display=lambda *many: shown.extend(many))
    seen, tuned = space['seen'], done['fine_tuning']
    prices = done['test']['prices']
    assert done['test']['price'] == 0 and prices['0'] != prices['4']  # else nothing is shown here
    assert seen.test['methods']['moe_finetuned'] == prices['4']
    record = seen.evaluator.record(seen.mixture)
    assert record.scores()['utility'].item() == pytest.approx(prices['4']['utility']['value'])
    assert 'cross-fitted, price 4' in repr(seen) and 'cross-fitted' in seen._repr_html_()
    text = ' '.join(' '.join(s) for s in shown if isinstance(s, Sentences))
    score = tuned['nested']['final_score']
    assert f'best 3 of 6: {tuned["score_after"]:.3f}; nested: {score:.3f}' in text
    assert '4/5 of the validation nodes' in text and 'gate is not part of the final' in text
    table = next(s for s in shown if isinstance(s, Table) and 'price' in (s.index.name or ''))
    assert 'price 4' in table.caption
    named = [price for label in table.index for price in label.split(', ')]
    assert named == list(prices) and len(table) == len({str(p) for p in prices.values()})
    assert hashes(folder) == before


def test_the_notebook_can_be_told_to_report_on_the_tuned_gate(run):
    folder, kind, _ = run
    given = check('moe.ipynb', dict(dataset=NAME, cache_dir=str(folder), read_only=True))
    last = reading.at_hand(reading.files_of(given))
    gate = reading.at_hand(reading.files_of(given), fine_tuned=False)
    assert (last.fine_tuning is None) == (kind is None)
    assert gate.fine_tuning is None and gate.sha256 == last.gate['checkpoint_sha256']


@pytest.mark.parametrize('there', [False, True])
def test_where_nothing_is_it_says_what_to_run_and_makes_nothing(there, tmp_path, capsys):
    folder = tmp_path / 'w'
    if there:
        folder.mkdir()
    words = f'report --dataset {NAME} --expert all mixture --cache_dir {folder}'.split()
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 2 and len(err.splitlines()) == 2
    for line, subject in zip(err.splitlines(), ('all', 'mixture')):
        assert line.startswith(f'error: {NAME}, {subject}: {folder} holds nothing about {NAME}')
        assert f'`moe-expert tune --dataset {NAME} --cache_dir {folder}`' in line
        assert f'`moe-expert run {NAME} --cache_dir {folder}`' in line
    assert folder.exists() == there and not list(tmp_path.rglob('*.*'))


def test_experts_without_a_mixture(experts, tmp_path, capsys):
    "The command repeats the settings of the files, so that it fits them."
    folder = shutil.copytree(experts, tmp_path / 'w')
    before = hashes(folder)
    with pytest.raises(ArtifactError, match=r'holds no mixture .*\(only expert1, expert2, expert3'):
        run_moe_report(NAME, cache_dir=folder)
    assert cli.main(f'report --dataset {NAME} --expert mixture --cache_dir {folder}'.split()) == 1
    err = capsys.readouterr().err
    command = f'moe-expert train --dataset {NAME} --seed 3 --drop c0 --cache_dir {folder}'
    assert f'`{command}`' in err and err.count('\n') == 1 and hashes(folder) == before
    pasted = parser('train').given(command.split()[2:])
    assert (pasted.seed, pasted.drop, pasted.cache_dir) == (3, ('c0',), str(folder))
    (folder / f'{NAME}_expert2_best.pt').unlink()
    with pytest.raises(ArtifactError, match='expert2_best.pt missing.*--backbone gcn --epochs 60'):
        run_report(NAME, cache_dir=folder)


def test_what_is_there_is_reported(experts, run, tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(
        report_run, 'execute', lambda given, *_: made.append(given) or tmp_path / 'x.ipynb'
    )
    few = shutil.copytree(experts, tmp_path / 'few')
    (few / f'{NAME}_expert1_best.pt').unlink()
    for folder in (experts, run[0], few):
        folder = shutil.copytree(folder, tmp_path / f'copy {folder.name}', dirs_exist_ok=True)
        assert cli.main(['report', '--dataset', NAME, '--cache_dir', str(folder)]) == 0
    subjects = [given.get('expert', 'mixture') for given in made]
    assert subjects == ['all', 'all', 'mixture', 'expert2', 'expert3']
    assert all(given.read_only for given in made)


def test_an_untested_mixture_is_not_reported(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / 'w')
    files = ExpertFiles(folder, NAME)
    files.moe_results.unlink()
    with pytest.raises(ArtifactError, match='has not been tested: `moe-expert train .* tests it'):
        run_moe_report(NAME, cache_dir=folder)
    files.moe_results.write_text('{')
    with pytest.raises(ArtifactError, match=r'moe_results\.json .* No test is done beside'):
        run_moe_report(NAME, cache_dir=folder)


def test_a_gate_tuned_further_after_the_test(run, tmp_path):
    "The index shows the last test, and says that the mixture at hand has none yet."
    folder = shutil.copytree(run[0], tmp_path / 'w')
    files = ExpertFiles(folder, NAME)
    gate = read_json(files.gate_results)
    write_json(files.gate_results, gate | dict(checkpoint_sha256='f' * 64))
    with pytest.raises(ArtifactError, match='has not been tested, unlike 1 earlier'):
        run_moe_report(NAME, cache_dir=folder)
    tested = run[2]['test']['mixture_sha256'][:8]
    page = write_index(folder).read_text()
    assert 'The last mixture has not been tested, an earlier one has.' in page
    assert f'This mixture was tested once: {tested}…' in page
    another = run[2]['test'] | dict(mixture_sha256='f' * 64, tested_at='2030-01-01T00:00:00+00:00')
    write_json(files.moe_results.with_name(f'{NAME}_moe_results.ffffffff.json'), another)
    page = write_index(folder).read_text()
    assert 'This mixture was tested once: ffffffff… at 2030-01-01 00:00:00 UTC' in page
    assert f'looked at 2 times in this folder; the other mixtures: {tested}…' in page


def test_other_data_of_the_same_name_are_refused(run):
    from moe_expert.datasets import load_dataset

    asked = check('moe.ipynb', dict(dataset=NAME, cache_dir=str(run[0]), read_only=True))
    with pytest.raises(ArtifactError, match='was made from other data of the name'):
        reading.read_mixture(reading.as_recorded(asked), load_dataset(NAME))


@pytest.mark.parametrize('given', [dict(n_trials=30), dict(seed=0), dict(overwrite=False)])
def test_settings_are_not_repeated_even_where_they_are_the_default(given, tmp_path):
    for make in (run_report, run_moe_report):
        with pytest.raises(ParameterError, match='has no effect where read_only is True'):
            make(NAME, cache_dir=tmp_path, **given)


@pytest.mark.slow
def test_the_notebook_of_the_mixture_goes_on_training_where_it_is_run_itself(tmp_path):
    "As papermill runs it; fine-tuning is taken up or left out as it is asked for."
    given = dict(dataset=NAME, cache_dir=str(tmp_path), n_trials=1, epochs=60)
    first = executed('moe.ipynb', **given, fine_tune=False)['seen']
    assert first.about.fine_tuning is None and first.about.gate['n_trials'] == 1
    second = executed('moe.ipynb', **given)['seen']
    assert second.about.fine_tuning is not None and second.about.gate == first.about.gate
    before = hashes(tmp_path)
    again = executed('moe.ipynb', **given, fine_tune=False)['seen']
    assert again.about.fine_tuning is None and again.test == first.test
    assert {n: of for n, of in hashes(tmp_path).items() if n.endswith(('.pt', '.json'))} == {
        n: of for n, of in before.items() if n.endswith(('.pt', '.json'))
    }


@pytest.mark.slow
def test_from_nothing_to_the_reports_in_one_go(tmp_path, capsys):
    "`run`, then `report`, which repeats no setting and changes nothing but what it writes."
    folder = tmp_path / 'w'
    few = f'{NAME} --n_trials 1 --epochs 60 --seed 2 --backbone sage --no-fine_tune'.split()
    assert cli.main(['run', *few, '--quiet', '--cache_dir', str(folder)]) == 0
    out = capsys.readouterr().out
    record = read_json(folder / f'{NAME}_moe_results.json')
    assert 'max utility' in out and 'logistic regression' in out
    assert f'This mixture was tested once: {record["mixture_sha256"][:8]}…' in out
    reports = [folder / f'{NAME}_{what}_report' for what in ('experts_tuning', 'moe')]
    pages = [f'{path}.html' for path in reports]
    assert [line.split(': ')[1] for line in out.splitlines()[-3:]] == [
        *pages,
        str(folder / 'index.html'),
    ]
    written = {path.name + end for path in reports for end in ('.ipynb', '.html')}
    written |= {'index.html'}
    gc.collect()  # closes the database of `run`
    before = hashes(folder)
    assert cli.main(['report', '--dataset', NAME, '-q', '--cache_dir', str(folder)]) == 0
    after = hashes(folder)
    kept = lambda found: {name: of for name, of in found.items() if name not in written}
    assert kept(after) == kept(before) and after.keys() == before.keys()
    assert all(after[name][1] > before[name][1] for name in written)
    text = ''.join((folder / name).read_text() for name in sorted(written))
    assert 'only reads' in text and 'with seed 2' in text and 'backbone sage' in text
    assert 'was tested once' in text
