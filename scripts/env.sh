# Sourced by the other scripts: makes the virtual environment $VENV and installs requirement files into it, once.
#   install requirements.txt [more.txt ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv} # test_interop.sh has one of its own

install() {
  local stamp
  stamp="$VENV/installed-$(cat "$@" requirements.txt | cksum | cut -d' ' -f1)"
  if [ ! -f "$stamp" ]; then
    local begin=$SECONDS
    echo "== installing $* into $VENV (the first time this downloads PyTorch)"
    [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
    for file in "$@"; do set -- "$@" -r "$file"; shift; done
    "$VENV/bin/python" -m pip install --disable-pip-version-check "$@"
    touch "$stamp"
    echo "== installed in $((SECONDS - begin)) s (download included)"
  fi
  export PATH="$PWD/$VENV/bin:$PATH"
}
