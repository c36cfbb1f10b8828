"""Records vouch for themselves: what was changed by accident is named, what was forged is computed.

One small folder with all stages is tampered with in every way that the issue lists.
"""

import hashlib
import json
import shutil
import sqlite3
from itertools import cycle
from pathlib import Path

import pytest
import torch

from moe_expert import cli
from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import ArtifactError
from moe_expert.experts.specs import EXPERTS
from moe_expert.mixture import checkpoints, verify
from moe_expert.mixture.gate_training import GateSettings
from moe_expert.mixture.integration import FineTuneSettings
from moe_expert.trainer import MoESettings, MoETrainer
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning import artifacts
from moe_expert.tuning import folder as tuning_folder
from moe_expert.tuning.folder import ExpertFiles, read_record
from moe_expert.tuning.records import load_expert
from moe_expert.tuning.trade_off import load_pareto, search_pareto
from moe_expert.tuning.winners import load_winner

NAME = 'synthetic-200'
SMALL = MoESettings(GateSettings(epochs=40, val_every=20), FineTuneSettings(epochs=10, val_every=5))
KINDS = {
    'settings.json': 'settings',
    **{f'{e}_tuning_results.json': 'expert' for e in EXPERTS},
    'expert_tuning_summary.json': 'summary',
    'gate_tuning_results.json': 'gate',
    'moe_finetuning_results.json': 'fine-tuning',
    'moe_results.json': 'test',
    'pareto_results.json': 'trade-off',
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "All stages and the trade-off; for copying only."
    folder = tmp_path_factory.mktemp('run') / 'cache'
    options = dict(settings=SMALL, epochs=100, n_trials=3, device='cpu')
    MoETrainer(NAME, False, folder, **options).run(2)
    search_pareto(ExpertTuner(NAME, 0, folder, epochs=100, device='cpu'), 2, keep=0.5)
    return folder


@pytest.fixture
def folder(run, tmp_path):
    return shutil.copytree(run, tmp_path / 'cache')


def path_of(folder, end):
    return folder / f'{NAME}_{end}'


def read(folder, end):
    return json.loads(path_of(folder, end).read_text())


def leaves(value, where=()):
    "Key paths of all values that are neither dict nor list, and of empty ones."
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        if isinstance(entry, (dict, list)) and entry:
            yield from leaves(entry, (*where, key))
        else:
            yield (*where, key)


def put(record, where, value):
    *above, last = where
    for key in above:
        record = record[key]
    record[last] = value


def get(record, where):
    for key in where:
        record = record[key]
    return record


def other(value):
    "A different value of the same type."
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return {str: f'{value}x', list: ['x'], dict: {'x': 1}}.get(type(value), 'x')


def said(found, end):
    return ' | '.join(f.what for f in found if f.file == f'{NAME}_{end}' and f.state == 'differs')


# --- accidents ------------------------------------------------------------------------------


@pytest.mark.parametrize('end', KINDS)
def test_every_value_that_changes_is_noticed(folder, end):
    "Each leaf in turn, also the seal itself; never a silent pass, always the name of the file."
    path, record = path_of(folder, end), read(folder, end)
    paths = list(leaves(record))
    assert len(paths) > 15 and (artifacts.SEAL,) in paths
    for where in paths:
        changed = json.loads(json.dumps(record))
        put(changed, where, other(get(record, where)))
        path.write_text(json.dumps(changed))
        with pytest.raises(ArtifactError, match=path.name):
            read_record(ExpertFiles(folder, NAME), path, KINDS[end])


@pytest.mark.parametrize('end', KINDS)
def test_every_key_that_is_lost_is_noticed(folder, end):
    path, record = path_of(folder, end), read(folder, end)
    for key in record:
        path.write_text(json.dumps({k: v for k, v in record.items() if k != key}))
        with pytest.raises(ArtifactError, match=path.name):
            read_record(ExpertFiles(folder, NAME), path, KINDS[end])
    with pytest.raises(ArtifactError, match=f'no seal .{artifacts.SEAL}'):
        path.write_text(json.dumps({k: v for k, v in record.items() if k != artifacts.SEAL}))
        read_record(ExpertFiles(folder, NAME), path, KINDS[end])


@pytest.mark.parametrize('end', KINDS)
def test_a_key_that_its_readers_need_is_named(folder, end):
    "Even where the record was sealed again."
    path, record = path_of(folder, end), read(folder, end)
    files = ExpertFiles(folder, NAME)
    needed = tuning_folder.KINDS[KINDS[end]]
    assert set(needed) <= set(record)
    for key in needed:
        artifacts.write_json(path, {k: v for k, v in record.items() if k != key})
        with pytest.raises(ArtifactError, match=f'{path.name} lacks {key}'):
            read_record(files, path, KINDS[end])
        wrong = 0 if isinstance(record[key], str) else 'x'
        artifacts.write_json(path, record | {key: wrong})
        with pytest.raises(ArtifactError, match=f'{path.name} holds {key}'):
            read_record(files, path, KINDS[end])


@pytest.mark.parametrize(
    'find, twice, named',
    [
        ('"best_score": ', '"best_score": 0.99, "best_score": ', 'best_score'),
        ('"acc": ', '"acc": 0.99, "acc": ', r'best_metrics\.acc'),
        ('"number": 0', '"number": 0, "number": 0', r'trials\.0\.number'),
    ],
)
def test_a_key_that_is_there_twice_is_named_with_its_path(folder, find, twice, named):
    path = path_of(folder, 'expert1_tuning_results.json')
    path.write_text(path.read_text().replace(find, twice, 1))
    with pytest.raises(ArtifactError, match=f'{path.name}.*the key {named} is there twice'):
        load_expert(folder, NAME, 'expert1')
    assert f'{named.replace(chr(92), "")} is there twice' in said(
        verify.verify(folder), 'expert1_tuning_results.json'
    )


def test_layout_and_order_do_not_matter(folder):
    path = path_of(folder, 'expert1_tuning_results.json')
    record = read(folder, 'expert1_tuning_results.json')
    path.write_text(json.dumps(dict(reversed(record.items())), indent=4, ensure_ascii=True))
    assert load_expert(folder, NAME, 'expert1')


def test_the_seal_is_what_another_program_computes(folder):
    "The definition in the documents, by hand."
    record = read(folder, 'moe_results.json')
    seal = record.pop('content_sha256')
    text = json.dumps(record, sort_keys=True, separators=(',', ':'), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == seal


# --- checkpoints ----------------------------------------------------------------------------


def swap(folder, a, b):
    a, b = path_of(folder, a), path_of(folder, b)
    mine, theirs = a.read_bytes(), b.read_bytes()
    a.write_bytes(theirs)
    b.write_bytes(mine)


def test_a_swapped_checkpoint_is_refused(folder):
    swap(folder, 'expert1_best.pt', 'expert2_best.pt')
    with pytest.raises(ArtifactError, match=f'{NAME}_expert1_best.pt is not the file that was'):
        load_expert(folder, NAME, 'expert1')
    found = verify.verify(folder)
    assert 'SHA-256' in said(found, 'expert1_best.pt') and 'SHA-256' in said(
        found, 'expert2_best.pt'
    )


@pytest.mark.parametrize('again', [False, True], ids=['as they are', 'sealed again'])
def test_expert2_as_expert1_with_both_files_renamed(folder, again):
    for end in ('best.pt', 'tuning_results.json'):
        shutil.copy(path_of(folder, f'expert2_{end}'), path_of(folder, f'expert1_{end}'))
    result = path_of(folder, 'expert1_tuning_results.json')
    if again:
        names = {'expert_type': 'expert1', 'checkpoint': f'{NAME}_expert1_best.pt'}
        artifacts.write_json(result, artifacts.read_json(result) | names)
    says = 'expert1_best.pt is the checkpoint of something else .*expert2.*expert1'
    for load in (
        lambda: load_expert(folder, NAME, 'expert1'),
        lambda: load_winner(folder, make_synthetic(200), 'expert1'),
        lambda: MoETrainer(NAME, True, folder, settings=SMALL),
    ):
        with pytest.raises(ArtifactError, match='expert1_best.pt.*expert2|expert2.*expert1'):
            load()
    with pytest.raises(ArtifactError, match=says):
        load_expert(folder, NAME, 'expert1')
    assert 'something else' in said(verify.verify(folder), 'expert1_best.pt')
    if not again:  # without the study, the file of another expert is not taken for a result
        path_of(folder, 'studies.db').unlink()
        tuner = ExpertTuner(NAME, 0, folder, epochs=100, device='cpu')
        with pytest.raises(ArtifactError, match='is the result of expert2, not of expert1'):
            tuner.tune_expert('expert1', 3)


@pytest.mark.parametrize('whole', [False, True], ids=['checkpoint', 'with its result file'])
@pytest.mark.parametrize('which', ['expert1', 'gate', 'pareto'])
def test_a_checkpoint_of_another_seed_is_refused(folder, tmp_path, which, whole):
    foreign = tmp_path / 'foreign'
    options = dict(seed=1, settings=SMALL, epochs=100, n_trials=1, device='cpu')
    if which == 'gate':
        MoETrainer(NAME, False, foreign, **options).tune_gate(1)
    else:
        tuner = ExpertTuner(NAME, 1, foreign, epochs=100, device='cpu')
        tuner.tune_expert('expert1', 1) if which == 'expert1' else search_pareto(tuner, 1, keep=0.5)
    results = 'pareto_results.json' if which == 'pareto' else f'{which}_tuning_results.json'
    for end in (f'{which}_best.pt', results) if whole else (f'{which}_best.pt',):
        shutil.copy(path_of(foreign, end), path_of(folder, end))

    def load():
        if which == 'gate':
            trainer = MoETrainer(NAME, True, folder, settings=SMALL, device='cpu')
            path_of(folder, 'studies.db').unlink()
            trainer.fine_tune()
        elif which == 'pareto':
            load_pareto(folder, NAME)
        else:
            load_expert(folder, NAME, 'expert1')

    found = verify.verify(folder)
    assert found.exit_code == 1 and said(found, f'{which}_best.pt')
    with pytest.raises(ArtifactError, match=f'{NAME}_{which}_(best.pt|tuning_results.json)'):
        load()


def test_a_checkpoint_of_another_data_set_is_refused(folder, tmp_path):
    ExpertTuner('synthetic-150', 0, tmp_path / 'b', epochs=100, device='cpu').tune_expert(
        'expert1', 1
    )
    for end in ('best.pt', 'tuning_results.json'):
        shutil.copy(
            tmp_path / 'b' / f'synthetic-150_expert1_{end}', path_of(folder, f'expert1_{end}')
        )
    with pytest.raises(ArtifactError, match='dataset synthetic-150.*dataset synthetic-200'):
        load_expert(folder, NAME, 'expert1')


def test_a_fine_tuned_mixture_is_no_gate(folder):
    files = ExpertFiles(folder, NAME)
    shutil.copy(files.finetuned_checkpoint, files.gate_checkpoint)
    with pytest.raises(ArtifactError, match='stage finetuned.*stage gate'):
        checkpoints.load_mixture(files.gate_checkpoint, None, files, stage='gate')


# --- intent: everything is sealed again -----------------------------------------------------


def reseal(folder, end, where, value):
    record = read(folder, end)
    put(record, where, value)
    artifacts.write_json(path_of(folder, end), record)


# top entries of records whose numbers are computed again, or compared with the study
SCORES = ('best_score', 'best_metrics', 'score_before', 'score_after', 'metrics', 'methods')
# what nothing else tells, so that only a manifest vouches for it
FREE = {
    *('seconds', 'versions', 'device', 'starts', 'title', 'selected_on', 'search_space', 'rule'),
    *('constraints', 'why', 'epoch', 'epochs_run', 'ways', 'best_way', 'fine_tuning', 'aims'),
    *('split', 'intervals', 'direction', 'objective', 'gate', artifacts.SEAL),
    *('tested_once', 'tested_at'),
}


@pytest.mark.parametrize(
    'end', [e for e in KINDS if e not in ('settings.json', 'expert_tuning_summary.json')]
)
def test_every_forged_score_is_named(folder, end):
    "All scores of a record at once, sealed again: each one is computed and named."
    record = read(folder, end)
    forged = [w for w in leaves(record) if w[0] in SCORES and get(record, w) is not None]
    for i, where in enumerate(forged):
        put(record, where, get(record, where) + 0.001 * (1 + i))
    artifacts.write_json(path_of(folder, end), record)
    found = said(verify.verify(folder), end)
    tops = {'score_before': ('score_before', 'final_score')}
    missed = [w for w in forged if f'{".".join(map(str, tops.get(w[0], w)))} is ' not in found]
    assert forged and not missed


@pytest.mark.parametrize(
    'end',
    [
        'expert1_tuning_results.json',
        'moe_results.json',
        *(
            pytest.param(end, marks=pytest.mark.slow)
            for end in KINDS
            if end not in ('expert1_tuning_results.json', 'moe_results.json')
        ),
    ],
)
def test_other_forged_values_are_found(folder, end):
    "A sample of all values that are told elsewhere, too; one at a time, sealed again."
    record = read(folder, end)
    paths = [w for w in leaves(record) if w[0] not in (*FREE, *SCORES)]
    paths = [w for w in paths if end != 'moe_finetuning_results.json' or w[0] != 'history']
    for where in paths[:: max(1, len(paths) // 4)]:
        reseal(folder, end, where, other(get(record, where)))
        assert verify.verify(folder).exit_code == 1, f'{end}: {where} was not found'
        artifacts.write_json(path_of(folder, end), record)


def test_a_forged_score_in_all_files_is_found(folder):
    "Result, checkpoint, summary and study agree, and every seal and SHA-256 is right."
    files = ExpertFiles(folder, NAME)
    payload = artifacts.load_checkpoint(files.checkpoint('expert1'))
    payload['metrics']['utility'] = payload['score'] = 0.95
    sha256 = artifacts.save_checkpoint(files.checkpoint('expert1'), payload)
    result = artifacts.read_json(files.results('expert1'))
    result['best_metrics']['utility'] = result['best_score'] = 0.95
    best = result['trials'][result['best_trial']]
    best['metrics']['utility'] = best['score'] = 0.95
    result = artifacts.write_json(files.results('expert1'), result | {'checkpoint_sha256': sha256})
    summary = artifacts.read_json(files.summary)
    summary['experts']['expert1'] |= {
        'best_score': 0.95,
        'checkpoint_sha256': sha256,
        'results_sha256': result['content_sha256'],
    }
    artifacts.write_json(files.summary, summary)
    path_of(folder, 'studies.db').unlink()
    assert load_expert(folder, NAME, 'expert1')  # nothing in the files contradicts it
    found = said(verify.verify(folder), 'expert1_tuning_results.json')
    assert 'best_metrics.utility is 0.95, should be 0.' in found and 'computed from' in found


def test_a_change_of_the_weights_is_found(folder):
    "Weights that are not those of the study, with every SHA-256 made to fit."
    files = ExpertFiles(folder, NAME)
    payload = artifacts.load_checkpoint(files.checkpoint('expert3'))
    name, weight = next(iter(payload['state_dict'].items()))
    payload['state_dict'][name] = weight + 1e-12
    sha256 = artifacts.save_checkpoint(files.checkpoint('expert3'), payload)
    reseal(folder, 'expert3_tuning_results.json', ('checkpoint_sha256',), sha256)
    found = verify.verify(folder)
    assert f'{name} is not what the study has' in said(found, 'expert3_best.pt')
    assert 'another synthetic-200_expert3_best.pt' in said(found, 'gate_tuning_results.json')


def test_a_forged_study_is_found(folder):
    with sqlite3.connect(path_of(folder, 'studies.db')) as db:
        db.execute('UPDATE trial_values SET value = value + 0.1')
    assert 'trials.0.score' in said(verify.verify(folder), 'expert1_tuning_results.json')


def test_a_missing_trial_of_the_study_is_found(folder):
    ExpertTuner(NAME, 0, folder, epochs=100, device='cpu').tune_expert('expert2', 4)
    with sqlite3.connect(path_of(folder, 'studies.db')) as db:
        (last,) = db.execute('SELECT MAX(trial_id) FROM trials').fetchone()
        db.execute('DELETE FROM trials WHERE trial_id = ?', (last,))
    assert 'trials.3' in said(verify.verify(folder), 'expert2_tuning_results.json')


# --- an untouched folder --------------------------------------------------------------------


def contents(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.iterdir())}


def test_an_untouched_folder_is_verified_and_stays_untouched(folder, capsys):
    before = contents(folder)
    assert cli.main(['verify', str(folder)]) == 0
    assert contents(folder) == before
    out = capsys.readouterr().out
    assert out.count(': verified\n') == 15 and out.splitlines()[-1].startswith('verified')


def test_a_read_only_copy_in_another_place_is_verified(folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / 'elsewhere' / 'name')
    shutil.rmtree(folder)
    moved.chmod(0o555)
    try:
        assert verify.verify(moved).exit_code == 0
    finally:
        moved.chmod(0o755)


def test_other_libraries_get_the_wider_tolerance(folder, monkeypatch):
    here = artifacts.versions()
    monkeypatch.setattr(verify, 'versions', lambda: here | {'torch': '9.9'})
    assert verify.tolerance(read(folder, 'gate_tuning_results.json')) == verify.ELSEWHERE
    score = read(folder, 'expert1_tuning_results.json')['best_metrics']['acc']
    for shift, code in ((1e-7, 0), (1e-5, 1)):
        found = verify.unequal({'acc': score + shift}, {'acc': score}, verify.ELSEWHERE)
        assert bool(found) == bool(code)
    assert verify.verify(folder).exit_code == 0


def test_what_could_not_be_checked_is_said(folder, capsys):
    path_of(folder, 'studies.db').unlink()
    shutil.copy(path_of(folder, 'pareto_best.pt'), path_of(folder, 'gate_best.01234567.pt'))
    assert cli.main(['verify', str(folder)]) == 2
    out = capsys.readouterr().out
    for e in (*EXPERTS, 'gate'):
        assert f'{NAME}_{e}_tuning_results.json: not checked: the study was not compared' in out
    assert f'{NAME}_gate_best.01234567.pt: not checked: no record names this file' in out
    assert 'not everything could be checked' in out


def test_a_storage_elsewhere(folder, tmp_path):
    for part in ('', '-wal', '-shm'):  # what SQLite has not written into the file itself, too
        if (path := path_of(folder, f'studies.db{part}')).exists():
            shutil.move(path, tmp_path / f's.db{part}')
    url = f'sqlite:///{tmp_path / "s.db"}'
    assert verify.verify(folder, storage=url).exit_code == 0
    found = verify.verify(folder, storage='postgresql://nobody:secret@127.0.0.1:1/none')
    assert found.exit_code == 2 and 'secret' not in repr(found)


def test_other_data_differ_and_missing_data_are_not_checked(folder):
    found = verify.verify(folder, make_synthetic(200, seed=1, name=NAME))
    assert found.exit_code == 1 and 'fingerprint' in said(found, 'settings.json')
    reseal(folder, 'settings.json', ('settings', 'edition'), 'own')
    assert 'give their card' in repr(verify.verify(folder))


def test_real_data_are_found_by_data_dir(data_dir, tmp_path, monkeypatch):
    monkeypatch.delenv('MOE_EXPERT_DATA', raising=False)
    cache = tmp_path / 'cache'
    tuner = ExpertTuner('german', 0, cache, data_dir=str(data_dir), epochs=100, device='cpu')
    tuner.tune_expert('expert1', 1)
    copy = shutil.copytree(cache, tmp_path / 'copy')
    shutil.rmtree(cache)
    assert cli.main(['verify', str(copy), '--data_dir', str(data_dir)]) == 0


# --- manifests ------------------------------------------------------------------------------


def test_a_manifest_finds_what_is_consistent_in_itself(folder, tmp_path, capsys):
    listed = tmp_path / 'manifest.txt'
    assert cli.main(['verify', str(folder), '--write_manifest', str(listed)]) == 0
    lines = listed.read_text().splitlines()
    assert len(lines) == 15 and all(
        hashlib.sha256((folder / line[66:]).read_bytes()).hexdigest() == line[:64] for line in lines
    )
    assert cli.main(['verify', str(folder), '--manifest', str(listed)]) == 0
    reseal(folder, 'moe_finetuning_results.json', ('why',), 'because')  # nobody can compute this
    assert verify.verify(folder).exit_code == 0
    found = verify.verify(folder, manifest=listed)
    assert 'manifest' in said(found, 'moe_finetuning_results.json') and found.exit_code == 1
    path_of(folder, 'moe_results.json').unlink()
    found = verify.verify(folder, manifest=listed)
    assert 'not in the folder' in said(found, 'moe_results.json')
    listed.write_text('\n'.join(lines[1:]))
    assert 'not in the manifest' in repr(verify.verify(folder, manifest=listed))


@pytest.mark.parametrize('text', ['rubbish', f'{"0" * 64} a', f'{"0" * 64}  a\n{"1" * 64}  a'])
def test_a_manifest_that_is_none(folder, tmp_path, text):
    (tmp_path / 'm').write_text(text)
    with pytest.raises(ArtifactError, match='line [12] of the manifest'):
        verify.read_manifest(tmp_path / 'm')


def test_no_manifest_inside_the_folder_or_of_files_that_differ(folder, tmp_path, capsys):
    inside = str(folder / 'm.txt')
    assert cli.main(['verify', str(folder), '--write_manifest', inside]) == 1
    assert 'only from outside' in capsys.readouterr().err and not Path(inside).exists()
    reseal(folder, 'moe_results.json', ('nodes',), 1)
    outside = tmp_path / 'm.txt'
    assert cli.main(['verify', str(folder), '--write_manifest', str(outside)]) == 1
    assert not outside.exists() and 'no manifest was written' in capsys.readouterr().err


# --- rubbish --------------------------------------------------------------------------------


@pytest.mark.slow
def test_rubbish_in_any_file_is_a_difference(folder):
    ends = (*KINDS, 'expert1_best.pt', 'gate_best.pt', 'moe_finetuned.pt', 'pareto_best.pt')
    rubbishes = cycle([b'', b'{', b'[]', b'{}', b'\xff\xfe', b'[' * 100_000])
    for end, rubbish in zip(ends, rubbishes):
        path = path_of(folder, end)
        before = path.read_bytes()
        path.write_bytes(rubbish)
        assert said(verify.verify(folder), end)
        path.write_bytes(before)


def test_checkpoints_with_odd_content_are_a_difference(folder):
    files = ExpertFiles(folder, NAME)
    payload = artifacts.load_checkpoint(files.checkpoint('expert1'))
    sha256 = artifacts.save_checkpoint(
        files.checkpoint('expert1'), payload | {'state_dict': {'w': torch.zeros(2)}, 'backbone': {}}
    )
    reseal(folder, 'expert1_tuning_results.json', ('checkpoint_sha256',), sha256)
    assert 'lacks' in said(verify.verify(folder), 'expert1_best.pt')


def test_a_folder_without_files(tmp_path):
    for place in (tmp_path, tmp_path / 'none'):
        with pytest.raises(ArtifactError, match='holds no files of a data set|is not a folder'):
            verify.verify(place)
