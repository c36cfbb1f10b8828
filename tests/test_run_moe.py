"All stages by path, with -m, wrong, without cached experts and again."

import json
from dataclasses import replace

import pytest
from conftest import marked_clone, run_python

from moe_expert import trainer
from moe_expert.mixture.comparison import row_name
from moe_expert.run_moe import main

FEW = ['--dataset', 'synthetic-200', '--n_trials', '1', '--epochs', '60']
METHODS = [
    'moe',
    'expert1',
    'expert2',
    'expert3',
    'uniform_mixture',
    'majority_class',
    'logistic_regression',
]


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    return marked_clone(tmp_path_factory.mktemp('clone'), 'trainer.py')


@pytest.fixture
def quick(monkeypatch):
    "Few epochs of stages 2 and 3."
    settings = trainer.MoESettings(trainer.GateSettings(epochs=20, val_every=20))

    def short(ways):
        if isinstance(ways, trainer.CrossfitSettings):
            return replace(ways, steps=10)
        return tuple(replace(way, epochs=2, val_every=1) for way in ways)

    monkeypatch.setattr(
        trainer,
        'MoESettings',
        lambda teachers, fine_tuning, price: replace(
            settings, teachers=teachers, fine_tuning=short(fine_tuning), price=price
        ),
    )


@pytest.mark.slow
def test_it_runs_uninstalled_from_nothing_to_the_table(clone):
    "By path; then with -m, from the cache: the same table."
    done = run_python(
        'moe_expert/run_moe.py', *FEW, '--cache_dir', 'weights', cwd=clone, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert f'imported from {clone}' in done.stderr and 'Traceback' not in done.stderr
    files = {p.name for p in (clone / 'weights').iterdir()}
    stages = [
        'gate_best.pt',
        'gate_tuning_results.json',
        'moe_finetuning_results.json',
        'moe_results.json',
    ]
    stages += [f'expert{i}_best.pt' for i in (1, 2, 3)]
    assert {f'synthetic-200_{f}' for f in stages} <= files
    record = json.loads((clone / 'weights' / 'synthetic-200_moe_results.json').read_text())[
        'methods'
    ]
    assert set(METHODS) <= record.keys()
    lines = done.stdout.splitlines()
    starts = {m: k for m in record for k, x in enumerate(lines) if x.startswith(f'{row_name(m)}  ')}
    for method, scores in record.items():
        shown = [scores[n] for n in ('utility', 'fair_result', 'fair_procedure', 'final_score')]
        values, intervals = lines[starts[method] : starts[method] + 2]
        assert values.split()[-4:] == [f'{v["value"]:.3f}' for v in shown]
        assert (
            intervals.split()
            == ' '.join(f'[{v["low"]:.3f}, {v["high"]:.3f}]' for v in shown).split()
        )
    assert 'Fine-tuning ' in done.stdout
    again = run_python(
        '-m', 'moe_expert.run_moe', *FEW, '--cache_dir', 'weights', cwd=clone, timeout=300
    )
    assert (
        again.returncode == 0
        and again.stdout == done.stdout
        and f'imported from {clone}' in again.stderr
    )


def test_again_from_the_cache_and_without_fine_tuning(tmp_path, capsys, quick):
    command = [*FEW, '--cache_dir', str(tmp_path)]
    assert main([*command, '--no-fine_tune']) == 0
    first = capsys.readouterr().out
    assert (
        'Fine-tuning' not in first
        and not (tmp_path / 'synthetic-200_moe_finetuning_results.json').exists()
    )
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix in ('.pt', '.json')}
    assert main([*command, '--no-fine_tune', '--use_cached_experts']) == 0
    assert capsys.readouterr().out == first
    assert {
        p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix in ('.pt', '.json')
    } == before
    assert main([*command, '--no-use_cached_experts']) == 0
    assert 'Fine-tuning' in capsys.readouterr().out
    for ways, settings, count in (('one', 1, 1), ('nine', 9, 9), ('crossfit', 1, 6)):
        assert main([*command, '--use_cached_experts', '--ways', ways]) == 0
        record = json.loads((tmp_path / 'synthetic-200_moe_finetuning_results.json').read_text())
        assert (len(record['fine_tuning']), len(record['ways'])) == (settings, count)
    capsys.readouterr()
    assert main([*command, '--use_cached_experts', '--overwrite']) == 1
    assert 'overwrite=True would remove' in capsys.readouterr().err
    (tmp_path / 'synthetic-200_expert2_best.pt').write_bytes(b'')
    assert main([*command, '--use_cached_experts']) == 1
    out, err = capsys.readouterr()
    assert (
        out == ''
        and err.count('\n') == 1
        and 'expert2: ' in err
        and 'python -m moe_expert.run_expert_tuning --dataset synthetic-200' in err
    )


def test_without_the_experts_asked_for_it_names_the_tuning_command(tmp_path, capsys):
    assert (
        main([*FEW, '--use_cached_experts', '--cache_dir', str(tmp_path / 'none'), '--seed', '3'])
        == 1
    )
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and err.count('\n') == 1
    command = 'python -m moe_expert.run_expert_tuning --dataset synthetic-200 --seed 3 --cache_dir'
    assert f'{command} {tmp_path / "none"}' in err
    assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize(
    'wrong, says',
    [
        (['--n_trials', '0'], 'at least 1'),
        (['--seed', 'x'], 'from 0 to'),
        (['--dataset', 'germn'], "Did you mean 'german'?"),
        (['--teachers', 'test'], 'val_half'),
        (['--ways', 'two'], 'nine'),
        (['--fine_tun'], "Did you mean '--fine_tune'?"),
        (['--expert', 'expert1'], 'is an option of tune, report, not of train'),
        (['--use_cached_experts', 'yes'], 'unrecognized'),
        (['--cache_dir'], '--cache_dir'),
    ],
)
def test_wrong_arguments_exit_2_with_one_line(wrong, says, refused):
    refused(main, wrong, says)


def test_our_errors_exit_1_with_one_line(fails_in_one_line):
    fails_in_one_line(main, FEW)


def test_german_without_cached_experts(data_dir, tmp_path, capsys, quick):
    command = [
        '--dataset',
        'german',
        '--n_trials',
        '1',
        '--epochs',
        '60',
        '--cache_dir',
        str(tmp_path),
        '--data_dir',
        str(data_dir),
    ]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert 'german (full edition): scores on the 250 test nodes' in out and all(
        row_name(m) in out for m in METHODS
    )
    assert all(f'expert{i} ' in err for i in (1, 2, 3)) and 'gate' in err
