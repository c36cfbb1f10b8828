"Install `moe_expert`; everything is read from settings.ini, as nbdev 2 does."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(HERE / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license='Apache-2.0',
    keywords=cfg['keywords'],
    python_requires='>=' + cfg['min_python'],
    # The study stays in the clone, as the benchmarks do: users of the package do not need it.
    # The notebooks that papermill runs are data: they are installed as moe_expert/notebooks.
    packages=[
        *find_packages(include=['moe_expert', 'moe_expert.*'], exclude=['moe_expert.study*']),
        'moe_expert.notebooks',
    ],
    package_dir={'moe_expert.notebooks': 'nbs'},
    package_data={
        'moe_expert': ['*.md', 'data/shipped/*.yaml', 'data/templates/*', 'scores/*.schema.json'],
        'moe_expert.notebooks': ['tune.ipynb', 'moe.ipynb'],
    },
    include_package_data=False,
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    install_requires=cfg['requirements'].split(),
    extras_require={
        'dev': cfg['dev_requirements'].split(),
        'excel': cfg['excel_requirements'].split(),
        'fairlearn': cfg['fairlearn_requirements'].split(),
        'parquet': cfg['parquet_requirements'].split(),
        'postgres': cfg['postgres_requirements'].split(),
    },
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
    ],
    zip_safe=False,
)
