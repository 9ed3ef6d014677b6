# Sourced by the other scripts: creates the product's environments from the committed locks, once.
#
#   ensure_environment NAME    sets NAME's folder in $environment; NAME: pipeline, serve, test, dev, docs or focus
#
# An environment lives in $PARSIMONY_HOME/envs/<lock>-<hash of the lock>, so that a changed lock makes a new one and
# every clone shares it. The file .complete is written last: without it the environment is built again from the start.
# `test` holds the tests' tools alone: scripts/test puts them behind the packages of `pipeline`.
# An installed wheel carries this file and the locks of the product's environments beside it, in the same places.
# Compiled modules are kept: without them each start of vLLM takes half a minute longer.
unset PYTHONDONTWRITEBYTECODE
export PARSIMONY_HOME="${PARSIMONY_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/parsimony}"
parsimony_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
uv_version=0.13.9

if [[ -z ${PARSIMONY_FLAVOUR:-} ]]; then
  PARSIMONY_FLAVOUR=cpu
  [[ -e /proc/driver/nvidia/version ]] && PARSIMONY_FLAVOUR=cuda
fi
case $PARSIMONY_FLAVOUR in
  cpu | cuda) export PARSIMONY_FLAVOUR ;;
  *) echo "error: PARSIMONY_FLAVOUR=$PARSIMONY_FLAVOUR: it must be cpu or cuda (unset: found by the NVIDIA driver)" >&2; exit 2 ;;
esac

lock_of() { # the lock file of environment $1
  case $1 in
    pipeline | serve) echo "$parsimony_root/requirements/$1-$PARSIMONY_FLAVOUR.txt" ;;
    *) echo "$parsimony_root/requirements/$1.txt" ;;
  esac
}

find_uv() { # sets $uv; fetches the pinned one where there is none
  uv=$(command -v uv || true)
  [[ -n $uv ]] && return
  uv="$PARSIMONY_HOME/tools/uv-$uv_version/bin/uv"
  [[ -x $uv ]] && return
  echo "set-up: fetching uv $uv_version" >&2
  rm -rf "$PARSIMONY_HOME/tools/uv-$uv_version"
  "$base_python" -m venv "$PARSIMONY_HOME/tools/uv-$uv_version"
  "$PARSIMONY_HOME/tools/uv-$uv_version/bin/pip" install -q --disable-pip-version-check "uv==$uv_version"
}

find_python() { # sets $base_python, a Python this product runs on
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      base_python=$candidate
      return
    fi
  done
  echo "error: no Python 3.11 to 3.13 on PATH. Install one (Debian: apt-get install python3 python3-venv) and try again." >&2
  exit 2
}

build_environment() { # build_environment LOCK FOLDER
  local lock=$1 folder=$2 options=(--no-progress)
  find_python
  find_uv
  if [[ $lock == */focus.txt ]]; then # focus-validator runs on no other Python; uv finds or fetches one
    base_python=$(compgen -G "$HOME/.pyenv/versions/3.12*/bin/python3.12" | head -1) || base_python=3.12
  fi
  local find_links="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
  export UV_FIND_LINKS="$find_links"
  # A CPU build of torch comes from the local wheels where they hold one, else from PyTorch's own index.
  if [[ $lock == *-cpu.txt ]] && ! { [[ -n $find_links ]] && compgen -G "$find_links/torch-*+cpu-*.whl" >/dev/null; }; then
    options+=(--torch-backend cpu)
  fi
  local size=""
  [[ $lock == */pipeline-* || $lock == */serve-* ]] && size="; a minute or two and about 2 GB"
  echo "set-up: building $(basename "$folder") (once$size)" >&2
  "$uv" venv -q --clear --python "$base_python" "$folder"
  # Each file must be one of those that the lock lists; a package that it does not name is refused.
  if ! "$uv" pip install -q --python "$folder/bin/python" --override "$parsimony_root/requirements/overrides.txt" \
    --require-hashes --requirement "$lock" "${options[@]}"; then
    echo "error: could not install $lock; see above. The next call starts this environment afresh." >&2
    exit 1
  fi
  touch "$folder/.complete"
}

ensure_environment() { # ensure_environment NAME
  local lock hash
  lock=$(lock_of "$1")
  if [[ ! -f $lock ]]; then
    echo "error: no environment is called '$1': $lock does not exist" >&2
    exit 2
  fi
  hash=$(sha256sum "$lock")
  environment="$PARSIMONY_HOME/envs/$(basename "$lock" .txt)-${hash:0:12}"
  [[ -f $environment/.complete ]] && return
  mkdir -p "$PARSIMONY_HOME/envs"
  {
    flock 9 # a second call waits here and then finds the environment finished
    [[ -f $environment/.complete ]] || build_environment "$lock" "$environment"
  } 9>"$environment.lock"
}
