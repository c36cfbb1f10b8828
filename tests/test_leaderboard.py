"The leaderboard: what the files say, test scores only after the test, and nothing hidden."

import pandas as pd
import pytest

from moe_expert import cli
from moe_expert.data.synthetic import make_synthetic
from moe_expert.mixture.comparison import read_tests
from moe_expert.mixture.gate_training import GateSettings
from moe_expert.mixture.leaderboard import leaderboard
from moe_expert.trainer import MoESettings, MoETrainer


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A tuned and fine-tuned mixture that was not tested."
    folder = tmp_path_factory.mktemp('board')
    settings = MoESettings(GateSettings(epochs=20))
    trainer = MoETrainer(
        make_synthetic(240, seed=0),
        use_cached_experts=False,
        cache_dir=folder,
        n_trials=2,
        epochs=50,
        settings=settings,
    )
    trainer.run(2, test=False)
    return folder, trainer


def test_no_test_score_before_the_test_and_the_recorded_ones_after_it(folder, caplog):
    folder, trainer = folder
    contents = lambda: {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    before = contents()
    board = leaderboard(folder)
    assert not [n for n in board if n.startswith('test_')] and board.attrs['problems'] == []
    assert contents() == before and not read_tests(trainer.files).records
    with pytest.raises(ValueError, match='was not tested'):
        trainer.metric_frame('test')

    test = trainer.evaluate('test')
    board = leaderboard(folder).set_index('model')
    for model, scores in test['methods'].items():
        if model in board.index:
            for name in ('utility', 'fair_result', 'fair_procedure', 'final_score'):
                assert board.loc[model, f'test_{name}'] == scores[name]['value']
    result = trainer.about['expert2']['result']
    assert board.loc['expert2', 'dp'] == result['best_metrics']['dp']
    pd.testing.assert_frame_equal(trainer.leaderboard().set_index('model'), board)
    frame, last = trainer.metric_frame('test'), [m for m in test['methods'] if m[:3] == 'moe'][-1]
    gaps = frame.difference()
    assert gaps['selection_rate'] == pytest.approx(test['methods'][last]['dp']['value'])
    assert gaps['true_positive_rate'] == pytest.approx(test['methods'][last]['eo']['value'])
    assert frame.overall['auc'] == pytest.approx(test['methods'][last]['auc']['value'])


def test_damaged_files_are_named_and_hide_nothing(folder, tmp_path, capsys, caplog):
    folder, trainer = folder
    for path in folder.iterdir():
        if path.suffix == '.json':
            (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = len(leaderboard(tmp_path))
    bad = tmp_path / trainer.files.results('expert3').name
    bad.write_text(bad.read_text()[:-20])
    csv = tmp_path / 'board.csv'
    assert cli.main(['leaderboard', str(tmp_path), str(folder), 'nowhere', '--csv', str(csv)]) == 1
    out, err = capsys.readouterr()
    assert bad.name in err and 'nowhere is no folder' in err and err.count('\n') == 2
    assert out.count('expert1') == 2 and out.count('expert3') == 1
    assert len(pd.read_csv(csv)) == 2 * whole - 1
    leaderboard(tmp_path)
    assert bad.name in caplog.text
