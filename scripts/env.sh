# Sourced by the other scripts: makes the virtual environment $VENV and installs requirement files into it, once.
#   install requirements.txt [more.txt ...]
#   beside requirements-<library>.txt   # for the tests beside another library: what is installed must agree (pip check)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv} # the tests beside other libraries have their own

install() {
  local stamp
  stamp="$VENV/installed-$(cat "$@" requirements.txt | cksum | cut -d' ' -f1)"
  if [ ! -f "$stamp" ]; then
    local begin=$SECONDS
    echo "== installing $* into $VENV (the first time this downloads PyTorch)"
    for file in "$@"; do set -- "$@" -r "$file"; shift; done
    into_venv "$@"
    touch "$stamp"
    echo "== installed in $((SECONDS - begin)) s (download included)"
  fi
  export PATH="$PWD/$VENV/bin:$PATH"
}

beside() {
  local stamp
  stamp="$VENV/complete-$(cat requirements*.txt | cksum | cut -d' ' -f1)"
  if [ ! -f "$stamp" ]; then
    into_venv -r "$1"
    "$VENV/bin/python" -m pip check
    touch "$stamp"
  fi
  export PATH="$PWD/$VENV/bin:$PATH" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
}

into_venv() {
  [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --disable-pip-version-check "$@"
}
