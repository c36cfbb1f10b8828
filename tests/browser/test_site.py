"""The built site as a reader without a network meets it: opened as files, on a desk and on a phone.

`.ci/site` builds it and runs this with `-m site`. Screenshots are left in the folder named by
MOE_EXPERT_SCREENSHOTS, for a person to look at.
"""

import os
import time
from pathlib import Path

import pytest
from offline import addresses, chromium_offline

pytestmark = pytest.mark.site
PAGES = ['index.html', 'CONTRIBUTING.html', 'docs/how_it_works.html', 'nbs/*_metrics.html']
WIDTHS = {'desk': 1300, 'phone': 400}


@pytest.fixture(scope='module')
def site(repo_root):
    folder = repo_root / 'build' / 'site'
    assert (folder / 'index.html').is_file(), 'run `make site` first'
    return folder


@pytest.fixture(params=WIDTHS)
def browser(request, tmp_path):
    driver = chromium_offline(tmp_path / 'chromium')
    size = {'width': WIDTHS[request.param], 'height': 1000, 'deviceScaleFactor': 1}
    driver.execute_cdp_cmd(
        'Emulation.setDeviceMetricsOverride', size | {'mobile': request.param == 'phone'}
    )
    driver.size = request.param
    yield driver
    driver.quit()


def wait_for(condition, seconds=10):
    "Poll until the condition holds; its last value."
    until = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return value


def picture(driver, name):
    folder = os.environ.get('MOE_EXPERT_SCREENSHOTS')
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(f'{folder}/site_{name}_{driver.size}.png')


def test_pages_are_whole_without_a_network(browser, site):
    pages = [p.relative_to(site) for pattern in PAGES for p in sorted(site.glob(pattern))]
    assert len(pages) >= len(PAGES)
    for page in pages:
        browser.get((site / page).as_uri())
        unset = "return document.querySelectorAll('.arithmatex').length"
        formulas = browser.execute_script(unset)
        drawn = "return document.querySelectorAll('.arithmatex mjx-container svg').length"
        assert wait_for(lambda n=formulas, js=drawn: browser.execute_script(js) >= n), page
        broken = (
            'return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)'
        )
        assert browser.execute_script(broken) == []
        wider = 'return document.documentElement.scrollWidth - window.innerWidth'
        assert browser.execute_script(wider) <= 0, f'{page} is wider than the window'
        complaints = [e for e in browser.get_log('browser') if e['level'] == 'SEVERE']
        assert not complaints, complaints
        foreign = [a for a in addresses(browser) if a.startswith(('http:', 'https:', '//'))]
        assert not foreign, foreign
        picture(browser, page.stem)


def test_search_works_from_files(browser, site):
    browser.get((site / 'index.html').as_uri())
    browser.execute_script("document.querySelector('#__search').click()")
    field = browser.find_element('css selector', '.md-search__input')
    assert wait_for(field.is_displayed)
    field.send_keys('graphlime')
    found = "return [...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
    links = wait_for(lambda: browser.execute_script(found))
    assert links and any('graphlime' in link or 'explain' in link for link in links), links
    picture(browser, 'search')
