"""Chromium without a network, for the pages and the site."""

import json
import shutil

import pytest

NO_NETWORK = '--proxy-server=127.0.0.1:9'  # nothing listens there


def chromium_offline(profile):
    "A driver with a profile of its own, which logs what is asked for."
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium') or pytest.fail('run .ci/chromium')
    named = f'--user-data-dir={profile}'
    for argument in ('--headless=new', '--no-sandbox', '--disable-gpu', NO_NETWORK, named):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    service = webdriver.ChromeService(shutil.which('chromedriver'))
    return webdriver.Chrome(options=options, service=service)


def addresses(driver):
    "What the browser asked for since the last call."
    for entry in driver.get_log('performance'):
        message = json.loads(entry['message'])['message']
        if message['method'] == 'Network.requestWillBeSent':
            yield message['params']['request']['url']
