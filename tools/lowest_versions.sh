#!/usr/bin/env bash
# Runs the tests that hold artok to the lowest versions of dependencies that pyproject.toml allows.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

pin() {  # name==lowest version
  sed -n "s/.*\"\($1\)>=\([0-9.]*\)[\",].*/\1==\2/p" pyproject.toml | head -1
}

install() {  # folder, requirements
  "$python" -m pip install --quiet --no-deps --target "$@"
}

install "$folder/quantizers" "$(pin vector-quantize-pytorch)"
ARTOK_VQ_LOWEST=$folder/quantizers "$python" -m pytest tests/quantizers/test_lowest_version.py

# That transformers needs huggingface_hub below 1, which later versions of datasets do not go with.
install "$folder/text" "$(pin transformers)" "$(pin tokenizers)" "$(pin huggingface_hub)" \
  "datasets==3.6.0" "dill==0.3.8" "multiprocess==0.70.16" "fsspec==2025.3.0"
PYTHONPATH=$folder/text${PYTHONPATH:+:$PYTHONPATH} "$python" -m pytest \
  tests/conditioning tests/metrics/test_clip_score.py tests/training/test_captions.py
