#!/usr/bin/env bash
# Runs the tests that hold artok to the lowest version of a dependency that pyproject.toml allows.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
version=$(sed -n 's/.*"vector-quantize-pytorch>=\([0-9.]*\),.*/\1/p' pyproject.toml)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m pip install --quiet --no-deps --target "$folder" "vector-quantize-pytorch==$version"
ARTOK_VQ_LOWEST=$folder "$python" -m pytest tests/quantizers/test_lowest_version.py
