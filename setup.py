from setuptools import setup

setup()  # everything is in pyproject.toml; this file serves tools that ask for it by name
