"""Make docs/report.png: `python docs/picture.py REPORT.html docs/report.png`.

The picture is a screenshot of the first screen of a report's page, in few colours, so that the file
stays small. Chromium and its driver must be installed; see .ci/browser.
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver

OPTIONS = (
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--hide-scrollbars',
    '--window-size=1060,1230',
)


def screenshot(page: Path) -> Image.Image:
    "The first screen of the page."
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which('chromium')
        for argument in (*OPTIONS, f'--user-data-dir={profile}'):
            options.add_argument(argument)
        driver = webdriver.ChromeService(shutil.which('chromedriver'))
        browser = webdriver.Chrome(options=options, service=driver)
        browser.get(page.resolve().as_uri())
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert('RGB')
        browser.quit()
    return picture


if __name__ == '__main__':
    report, target = map(Path, sys.argv[1:3])
    picture = screenshot(report)
    picture.quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)
    print(target, picture.size, f'{target.stat().st_size // 1000} kB')
