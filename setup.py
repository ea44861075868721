"""Finds the packages: the repository's root is `lavt_edge`, so each folder below it is a package under that name.

What trains the demo model is run from a checkout and stays out of the wheel.
"""

from setuptools import find_packages, setup

setup(packages=["lavt_edge", *(f"lavt_edge.{name}" for name in find_packages(exclude=["reference.training"]))])
