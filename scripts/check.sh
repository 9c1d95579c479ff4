#!/usr/bin/env bash
# What to run before a commit, under a minute: lint, format, types, the rules of the house, the pages made from code.
set -euo pipefail
cd "$(dirname "$0")/.."

ruff check .
ruff format --check .
pyright
python -m pytest --numprocesses=0 --durations=0 tests/test_house.py
