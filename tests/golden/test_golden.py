"Every stage still gives the golden values, to 1e-12. `.ci/golden` runs this, not `make test`."

import copy
import json

import pytest
import recompute

pytestmark = pytest.mark.golden


@pytest.mark.parametrize('section', list(recompute.SECTIONS))
def test_golden_values_hold(section):
    golden = json.loads(recompute.GOLDEN.read_text())
    differ = recompute.differences(
        golden[section], recompute.compute(section), section, recompute.tolerance(golden)
    )
    assert not differ, (
        f'{len(differ)} values differ, the first ones: {differ[:5]}. '
        'If a definition changed, regenerate them: see CONTRIBUTING'
    )


def test_a_changed_value_is_seen():
    golden = json.loads(recompute.GOLDEN.read_text())
    changed = copy.deepcopy(golden)
    changed['math']['experts']['expert1']['best_score'] += 1e-11
    assert [where for where, *_ in recompute.differences(golden, changed)] == [
        '/math/experts/expert1/best_score'
    ]
    del changed['math']
    assert recompute.differences(golden, changed)
