#!/bin/sh
# Make an environment with TRL 0.11.4, apart from the project's own:  sh benchmarks/trl_environment.sh FOLDER
set -eu
[ $# -eq 1 ] || { echo "usage: $0 FOLDER   (the virtual environment to create)" >&2; exit 2; }
here=$(dirname "$0")
"${PYTHON:-python3.11}" -m venv "$1"
"$1/bin/pip" install --quiet --requirement "$here/trl-requirements.txt"
"$1/bin/python" -c "import trl, torch, transformers; print('trl', trl.__version__, 'torch', torch.__version__, 'transformers', transformers.__version__)"
