"""The description for a package index: README.md without pictures and links into the repository.

All else is in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*|<img [^>]*>\n*", "", readme)
setup(long_description=re.sub(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", readme),
      long_description_content_type="text/markdown")
