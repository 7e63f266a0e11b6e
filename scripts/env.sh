# Sourced by the other scripts: makes the virtual environment .venv and installs requirement files into it, once.
#   install requirements.txt [more.txt ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install() {
  local stamp
  stamp=".venv/installed-$(cat "$@" requirements.txt | cksum | cut -d' ' -f1)"
  if [ ! -f "$stamp" ]; then
    local begin=$SECONDS
    echo "== installing $* into .venv (the first time this downloads PyTorch)"
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    for file in "$@"; do set -- "$@" -r "$file"; shift; done
    .venv/bin/python -m pip install --disable-pip-version-check "$@"
    touch "$stamp"
    echo "== installed in $((SECONDS - begin)) s (download included)"
  fi
  export PATH="$PWD/.venv/bin:$PATH"
}
