"""One record of a tuned thing.

A lost storage is told everywhere alike, and files of version 0.1 go on.
"""

import tarfile
from pathlib import Path

import pytest

from moe_expert import trainer, tune_experts
from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import ArtifactError
from moe_expert.mixture.gate_training import GateSettings
from moe_expert.mixture.integration import FineTuneSettings
from moe_expert.trainer import MoESettings, MoETrainer
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.artifacts import read_json
from moe_expert.tuning.folder import ExpertFiles
from moe_expert.tuning.records import load_expert
from moe_expert.tuning.trade_off import load_pareto, search_pareto

ARCHIVE = Path(__file__).parent / 'compat' / 'version_0.1.tar.xz'
SMALL = MoESettings(GateSettings(epochs=40, val_every=20), FineTuneSettings(epochs=10, val_every=5))
KINDS = ('expert1', 'gate', 'trade-off')


@pytest.fixture(scope='module')
def data():
    return make_synthetic(200, seed=0)


def tune(kind, data, folder, n_trials):
    "Tune one kind of thing as a new process would."
    if kind == 'gate':
        return MoETrainer(data, True, folder, device='cpu', settings=SMALL).tune_gate(n_trials)
    tuner = ExpertTuner(data, 0, folder, epochs=100, device='cpu')
    if kind == 'expert1':
        return tuner.tune_expert('expert1', n_trials)
    return search_pareto(tuner, n_trials, keep=0.0)


def files_of(kind, folder, name):
    files = ExpertFiles(folder, name)
    return {
        'expert1': (files.results('expert1'), files.checkpoint('expert1')),
        'gate': (files.gate_results, files.gate_checkpoint),
        'trade-off': (files.pareto_results, files.pareto_checkpoint),
    }[kind]


@pytest.fixture(scope='module')
def folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('lost')
    ExpertTuner(data, 0, folder, epochs=100, device='cpu').tune_all_experts(2)
    for kind in KINDS:
        tune(kind, data, folder, 4)
    return folder


def lose_the_storage(folder, name):
    for path in folder.glob(f'{name}_studies.db*'):
        path.unlink()


@pytest.mark.parametrize('kind', KINDS)
def test_a_lost_storage_never_costs_a_result(kind, data, folder):
    lose_the_storage(folder, data.name)
    paths = files_of(kind, folder, data.name)
    before = [p.read_bytes() for p in paths]
    for n_trials in (2, 4):
        assert tune(kind, data, folder, n_trials)['n_trials'] == 4
    with pytest.raises(ArtifactError, match='tells of 4 trials.*has 0.*overwrite=True'):
        tune(kind, data, folder, 5)
    assert [p.read_bytes() for p in paths] == before


@pytest.mark.parametrize('kind', KINDS)
def test_a_shorter_storage_is_refused_like_a_lost_one(kind, data, folder, tmp_path):
    url = f'sqlite:///{tmp_path}/other.db'
    with pytest.raises(ArtifactError, match='tells of 4 trials, and the study in sqlite.*has 0'):
        if kind == 'gate':
            options = {'settings': SMALL, 'storage': url, 'device': 'cpu'}
            MoETrainer(data, True, folder, **options).tune_gate(6)
        else:
            tuner = ExpertTuner(data, 0, folder, epochs=100, device='cpu', storage=url)
            if kind == 'expert1':
                tuner.tune_expert('expert1', 6)
            else:
                search_pareto(tuner, 6, keep=0.0)


def test_another_share_of_the_trade_off_needs_the_trials(data, folder):
    lose_the_storage(folder, data.name)
    tuner = ExpertTuner(data, 0, folder, epochs=100, device='cpu')
    with pytest.raises(ArtifactError, match='tells of 4 trials'):
        search_pareto(tuner, 4, keep=1.0)


# --- files of version 0.1 -------------------------------------------------------------------


@pytest.fixture
def old(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path


@pytest.fixture
def no_training(forbid_training):
    forbid_training(
        (tune_experts, 'train_population'), (trainer, 'train_gates'), (trainer, 'fine_tuned')
    )


def test_files_of_version_0_1_are_taken_up(old, no_training):
    before = {p.name: p.read_bytes() for p in old.iterdir() if p.suffix in ('.pt', '.json')}
    tuner = ExpertTuner('synthetic-200', 0, old, epochs=100, device='cpu')
    results = tuner.tune_all_experts(2)
    pareto = search_pareto(tuner, 2)
    done = MoETrainer('synthetic-200', True, old, settings=SMALL, device='cpu').run(2)
    assert all(r['n_trials'] == 2 for r in (*results.values(), pareto, done['gate']))
    for expert, result in results.items():
        population, _ = load_expert(old, 'synthetic-200', expert)
        score = tuner.evaluator.scores(population)[result['objective']].item()
        assert score == pytest.approx(result['best_score'], abs=1e-6)
    assert load_pareto(old, 'synthetic-200')[1]['metrics'] == pareto['best_metrics']
    assert {p.name: p.read_bytes() for p in old.iterdir() if p.name in before} == before


def test_studies_of_version_0_1_go_on(old):
    tuner = ExpertTuner('synthetic-200', 0, old, epochs=100, device='cpu')
    before = read_json(tuner.files.results('expert2'), unsealed=True)['trials']
    assert tuner.tune_expert('expert2', 3)['trials'][:2] == before
    assert search_pareto(tuner, 3)['n_trials'] == 3
