"From a table with many groups, several attributes and weights to a checked report."

from copy import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy

from moe_expert import ExpertTuner, MoETrainer, report
from moe_expert.data.assembly import group_masks, groups_text
from moe_expert.datasets import load_dataset
from moe_expert.experts.specs import EXPERTS
from moe_expert.mixture.comparison import gate_usage
from moe_expert.mixture.crossfit import WAYS
from moe_expert.mixture.reading import as_recorded
from moe_expert.mixture.verify import verify
from moe_expert.parameters import check
from moe_expert.report import mixture as report_mixture
from moe_expert.report import winners as report_winners
from moe_expert.trainer import MoESettings

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {'crossed': 7, 'separate': 2 + 4}  # one of the crossed has too few people


def people(n=500):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            'income': rng.normal(size=n),
            'age': rng.integers(18, 80, n),
            'race': rng.choice([*'ABCD', 'unknown'], n, p=[0.35, 0.25, 0.22, 0.15, 0.03]),
            'sex': rng.choice(['f', 'm'], n),
            'count': rng.uniform(0.5, 2, n),
        }
    )
    liked = (frame.race == 'A') + 0.5 * (frame.sex == 'm')
    frame['paid'] = (frame.income + 0.5 * liked + rng.normal(size=n) > 0.5).astype(int)
    return frame


@pytest.fixture(scope='module', params=GROUPS)
def run(request, tmp_path_factory):
    "Data, what all stages gave, and the folder."
    data = load_dataset(
        people(),
        label='paid',
        sensitive=['sex', 'race'],
        groups=request.param,
        unknown='unknown',
        weight='count',
        sensitive_as_feature=False,
        dataset_name='loans',
    )
    folder = tmp_path_factory.mktemp(request.param)
    ExpertTuner(data, epochs=40, cache_dir=folder).tune_all_experts(1)
    of_a_gate = MoESettings(fine_tuning=WAYS['one'])  # which weighs the experts for each person
    trainer = MoETrainer(data, use_cached_experts=True, cache_dir=folder, settings=of_a_gate)
    return data, trainer.run(1), folder, trainer


def test_all_files_are_verified(run):
    data, _, folder, _ = run
    assert verify(folder, data).exit_code == 0
    turned = copy(data)
    turned.weight = data.weight.flip(0)
    assert verify(folder, turned).exit_code == 1  # other weights give other scores


def test_groups_are_named_alike_everywhere(run):
    data, done, _, trainer = run
    masks = group_masks(data)
    assert len(masks) == GROUPS[data.groups_report['how']]
    assert report.data_facts(data).loc['sensitive attribute', ''] == groups_text(data)
    assert groups_text(data) in trainer._repr_html_()
    assert list(done['test']['gate_usage']) == ['all', *masks]
    shown = report.group_table(data).loc['val']
    for name, mask in masks.items():
        assert shown.loc[name, 'nodes'] == int((mask & data.val_mask).sum())


def test_the_use_of_the_experts_is_weighted(run):
    data, done, _, trainer = run
    nodes = data.test_mask.nonzero()[:, 0]
    w = trainer.mixture.weights(data.x, data.edge_index, nodes)[0].numpy()
    for name, mask in group_masks(data).items():
        here = mask[nodes].numpy()
        expected = np.average(w[here], axis=0, weights=data.weight[nodes].numpy()[here])
        used = done['test']['gate_usage'][name]
        assert np.allclose([used[e]['mean_weight'] for e in EXPERTS], expected, atol=1e-12)
    alike = data.clone()
    alike.weight = torch.ones_like(data.weight)
    plain = data.clone()
    del plain.weight
    assert gate_usage(trainer.mixture, alike, nodes) == gate_usage(trainer.mixture, plain, nodes)


def divergence(shares):
    "Of the columns of a table, with equal weights, between 0 and 1."
    p = shares.to_numpy()
    each = entropy(p, base=2, axis=0).mean()
    return (entropy(p.mean(1), base=2) - each) / np.log2(p.shape[1])


def test_the_attributions_shown_are_those_that_were_scored(run):
    data, _, folder, _ = run
    winners = report.load_winners(folder, data, tuple(EXPERTS))
    for winner in winners.values():
        shares = report_winners.mean_attributions(data, winner)
        separate = data.sens.ndim > 1
        parts = [c.split(': ')[0] if separate else '' for c in shares]
        found = [divergence(shares.loc[:, np.array(parts) == p]) for p in dict.fromkeys(parts)]
        assert winner.record.scores()['att_jsd'].item() == pytest.approx(max(found), abs=1e-12)
        half = report_winners.attribution_half_widths(data, winner)
        assert list(half) == list(shares) and (half.to_numpy() >= 0).all()
    picture = report.plot_attributions(data, winners)
    texts = [t.get_text() for t in picture.legends[0].texts]
    assert len(texts) == report_winners.FURTHEST + 1 and texts[0].endswith('other groups')


def test_weights_of_one_change_no_width(run):
    data, _, folder, _ = run
    winner = report.load_winners(folder, data, ('expert1',))['expert1']
    widths = []
    for weight in (None, torch.ones_like(winner.record.weight)):
        winner.record.weight = weight
        widths.append(report_winners.attribution_half_widths(data, winner))
    pd.testing.assert_frame_equal(*widths, rtol=1e-12)


def test_the_pictures_of_the_use_name_every_group(run):
    data, done, *_ = run
    axes = report.plot_usage(done['test']).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ['all people', *group_masks(data)]


def test_routes_say_which_groups_differ(run):
    data, _, _, trainer = run
    nodes = data.test_mask.nonzero()[:, 0]
    sent = torch.arange(len(nodes)) % 3 == 0
    (text,) = report_mixture._group_shares(data, nodes, sent).values()
    among = {n: m[nodes].double() for n, m in group_masks(data).items()}
    gap = {n: abs((m[sent].mean() - m.mean()).item()) for n, m in among.items()}
    assert text.startswith(max(gap, key=gap.get))
    assert len(report.routes_table(trainer.mixture, data, nodes)) == 3


def test_every_part_of_the_reports_is_made(run):
    data, done, folder, trainer = run
    winners = report.load_winners(folder, data, tuple(EXPERTS))
    for part in (report.columns_table, report.audit_table, report.proxy_table, report.gaps_table):
        assert part(data)._repr_html_()
    for part in (report.rates_table, report.cells_table, report.group_differences):
        assert len(part(data, winners)) >= 3
    assert report.in_words(data, winners) and report.plot_cells(data, winners)
    assert report.test_table(done['test']).notna().all(axis=None)


def test_a_report_of_a_known_table_finds_the_groups_that_were_asked_for(tmp_path):
    found = [p / 'shared' / 'public' for p in (ROOT.parent, ROOT)]
    found = [p for p in found if p.is_dir()]
    if not found:
        pytest.skip('the public tables are missing: put them into ../shared/public')
    asked = dict(sensitive=['Race', 'Position'], privileged=None, min_group=1)
    data = load_dataset('ricci', data_dir=found[0], **asked)
    assert data.sens_name == 'Race × Position' and len(data.group_names) > 3
    ExpertTuner(data, epochs=20, cache_dir=tmp_path).tune_expert('expert1', 1)
    said = dict(dataset='ricci', data_dir=str(found[0]), cache_dir=str(tmp_path), read_only=True)
    given = as_recorded(check('tune.ipynb', said | dict(expert='expert1')))
    assert report.read_data(given)[0].fingerprint == data.fingerprint
    assert verify(tmp_path, 'ricci', data_dir=str(found[0])).exit_code == 0
