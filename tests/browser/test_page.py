"""The pages of reports as a reader meets them: on a desk, on a phone in the dark, and on paper.

`.ci/browser` installs Chromium and axe-core and runs this with `-m browser`. Screenshots and PDFs
are left in the folder named by MOE_EXPERT_SCREENSHOTS, for a person to look at.
"""

import base64
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from offline import addresses, chromium_offline

from moe_expert.audit_predictions import audit_page, audit_predictions
from moe_expert.report import run_moe_report, run_report, write_index
from moe_expert.trainer import MoETrainer

pytestmark = pytest.mark.browser
MEDIA = {  # name -> width, colour scheme, medium; A4 with its margins has 182 mm
    'desk': (1280, 'light', 'screen'),
    'phone': (400, 'dark', 'screen'),
    'paper': (688, 'light', 'print'),
}
LARGEST = 1_000_000  # bytes of a page
WIDER = """
const wide = window.innerWidth, moved = e => e.closest('[role=region], pre');
return [...document.querySelectorAll('main *')]
    .filter(e => e.getBoundingClientRect().right > wide + 1 && !moved(e))
    .map(e => e.outerHTML.slice(0, 200));
"""
AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ['violations']}).then(found => done(found.violations
    .filter(v => ['serious', 'critical'].includes(v.impact))
    .map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 200), v.nodes[0].failureSummary])));
"""


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "The page of each kind, about people in three groups with long names."
    folder, rng, n = tmp_path_factory.mktemp('pages'), np.random.default_rng(0), 400
    people = pd.DataFrame(rng.normal(size=(n, 12)).round(2))
    people.columns = [f'a_rather_long_name_of_column_{i}' for i in range(12)]
    people['place'] = rng.choice(['a place far away', 'here', 'somewhere in between'], n)
    chance = people.iloc[:, 0] + (people['place'] == 'here') + rng.normal(size=n)
    people['granted'] = (chance > 0.4).astype(int)
    people.to_csv(folder / 'people.csv', index=False)
    card = 'name: people\ntable: people.csv\nlabel: granted\nsensitive: place\n'
    (folder / 'card.yaml').write_text(card)
    named = dict(dataset=str(folder / 'card.yaml'), cache_dir=str(folder / 'out'))
    MoETrainer(**named, use_cached_experts=False, n_trials=6, epochs=300).run(6)
    made = {'tune': run_report(**named), 'moe': run_moe_report(**named)}
    made = {name: path.with_suffix('.html') for name, path in made.items()}
    made['index'] = write_index(folder / 'out')
    made['audit'] = folder / 'audit.html'
    audit = audit_predictions(people.assign(said=rng.random(n)), 'granted', 'said', ['place'])
    made['audit'].write_text(audit_page(audit))
    return made


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    driver = chromium_offline(tmp_path_factory.mktemp('chromium'))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def show(driver, page, medium):
    "Open a page as this medium shows it."
    width, scheme, kind = MEDIA[medium]
    size = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': medium == 'phone'}
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    features = [{'name': 'prefers-color-scheme', 'value': scheme}]
    driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'media': kind, 'features': features})
    driver.get(page.as_uri())


def keep(driver, name):
    "Leave a picture of the whole page, and on paper a PDF."
    folder = os.environ.get('MOE_EXPERT_SCREENSHOTS')
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    if name.endswith('paper'):
        made = driver.execute_cdp_cmd('Page.printToPDF', {'preferCSSPageSize': True})
        Path(folder, f'page_{name}.pdf').write_bytes(base64.b64decode(made['data']))
        return
    size = 'return [document.documentElement.clientWidth, document.documentElement.scrollHeight]'
    width, height = driver.execute_script(size)
    clip = dict(x=0, y=0, width=width, height=min(height, 16_000), scale=1)
    options = dict(format='png', captureBeyondViewport=True, clip=clip)
    made = driver.execute_cdp_cmd('Page.captureScreenshot', options)
    Path(folder, f'page_{name}.png').write_bytes(base64.b64decode(made['data']))


@pytest.mark.parametrize('medium', MEDIA)
@pytest.mark.parametrize('kind', ['tune', 'moe', 'index', 'audit'])
def test_a_page_is_whole_and_loads_nothing(pages, chromium, kind, medium):
    page = pages[kind]
    assert page.stat().st_size <= LARGEST
    show(chromium, page, medium)
    chromium.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    keep(chromium, f'{kind}_{medium}')
    wider = 'return document.documentElement.scrollWidth - window.innerWidth'
    assert chromium.execute_script(wider) <= 0
    assert chromium.execute_script(WIDER) == []
    broken = 'return [...document.images].filter(i => !i.naturalWidth).map(i => i.alt)'
    assert chromium.execute_script(broken) == []
    foreign = [a for a in addresses(chromium) if a.startswith(('http', 'ws', '//'))]
    assert not foreign, foreign
    complaints = [e for e in chromium.get_log('browser') if e['level'] == 'SEVERE']
    assert not complaints, complaints


@pytest.mark.parametrize('medium', ['desk', 'phone'])
@pytest.mark.parametrize('kind', ['tune', 'moe', 'index', 'audit'])
def test_a_page_can_be_read_by_everybody(pages, chromium, kind, medium):
    "axe-core finds nothing serious."
    axe = os.environ.get('MOE_EXPERT_AXE') or pytest.fail('run .ci/browser')
    show(chromium, pages[kind], medium)
    chromium.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    chromium.execute_script(Path(axe).read_text())
    assert chromium.execute_async_script(AXE) == []


@pytest.mark.parametrize('kind', ['tune', 'moe'])
def test_the_first_screen(pages, chromium, kind):
    "Five sentences, notices, the table and what identifies the run; then the contents."
    show(chromium, pages[kind], 'desk')
    order = "return [...document.querySelectorAll('main > h2, main > .shown > *, nav')].map(e => "
    order += "e.tagName === 'H2' ? e.textContent : e.className || e.tagName)"
    seen = chromium.execute_script(order)
    first = seen[: seen.index('NAV')]
    assert first[:2] == ['The result', 'UL'] and first[-2:] == ['table', 'facts']
    assert set(first[2:-2]) <= {'notes', 'P'}
    sentences = "return document.querySelectorAll('main > .shown > ul > li').length"
    assert chromium.execute_script(sentences) >= 5
    last = chromium.execute_script("return document.querySelector('tbody tr:last-child').className")
    assert last == 'below'
    names = "return [...document.querySelectorAll('main figure img')].map(i => i.alt.length)"
    assert min(chromium.execute_script(names)) > 60


def test_pictures_are_stacked_where_the_page_is_narrow(pages, chromium):
    drawn = 'return [...document.images].map(i => i.naturalWidth / i.clientWidth)'
    show(chromium, pages['tune'], 'desk')
    wide = chromium.execute_script('return [...document.images].map(i => i.naturalWidth)')
    assert min(chromium.execute_script(drawn)) > 1.9  # two pixels for each that is shown
    show(chromium, pages['tune'], 'phone')
    narrow = chromium.execute_script('return [...document.images].map(i => i.naturalWidth)')
    assert max(narrow) <= 1000 < max(wide)
    assert min(chromium.execute_script(drawn)) > 1.9
