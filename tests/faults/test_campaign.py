"The campaign of `campaign.py`, with a quarter of a minute of events on each storage."

import os

import pytest
from campaign import Campaign


@pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')
@pytest.mark.parametrize(
    'kind',
    [
        pytest.param('sqlite', marks=pytest.mark.faults),
        pytest.param('postgresql', marks=pytest.mark.postgres),
    ],
)
def test_nothing_is_lost_whatever_happens_to_the_workers(kind, tmp_path):
    server = os.environ.get('MOE_EXPERT_POSTGRES') if kind == 'postgresql' else None
    if kind == 'postgresql' and not server:
        pytest.skip('MOE_EXPERT_POSTGRES names no server: run .ci/postgres')
    seconds = float(os.environ.get('MOE_EXPERT_SOAK', 15))
    seed = int(os.environ.get('MOE_EXPERT_SOAK_SEED', 0))
    campaign = Campaign(seconds, seed, tmp_path, server).run()
    print(f'\n{kind}, seed {seed}, {seconds:.0f} seconds\n{campaign.table()}')
    assert not campaign.problems, '\n\n'.join(campaign.problems)
    assert campaign.lost == campaign.dead == 0 and sum(campaign.seen.values()) > 0
