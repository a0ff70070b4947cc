#!/usr/bin/env bash
# Makes .venv ready, whatever state it is in; does nothing when it is. Called by every make target.
# Arguments: Debian packages that are wanted; installed when missing and permitted, else whoever needs them skips and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=.venv

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
may_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_install() {
    say "installing $* from Debian"
    DEBIAN_FRONTEND=noninteractive apt-get update -qq </dev/null >/dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" </dev/null >/dev/null
}

# What .venv was made from: pyproject.toml, the Python, the place (scripts in a .venv hold its absolute path).
key() {
    "$venv/bin/python" -c 'import hashlib, os, pathlib, sys
print(hashlib.sha256(pathlib.Path("pyproject.toml").read_bytes()).hexdigest(), sys.version.split()[0], os.getcwd())' 2>/dev/null
}

ready() { [ -x "$venv/bin/lth" ] && [ ! -e "$venv/unfinished" ] && [ "$(cat "$venv/stamp" 2>/dev/null)" = "$(key)" ]; }

# A .venv that was killed half way, moved here from elsewhere or left without its Python is not worth mending.
usable() {
    [ ! -e "$venv/unfinished" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || return 1
    [ ! -e "$venv/stamp" ] || [ "$(cut -d' ' -f2- "$venv/stamp")" = "$(key | cut -d' ' -f2-)" ]
}

create() {
    if [ -z "${PYTHON:-}" ] && ! python3 -c 'import ensurepip, venv' 2>/dev/null && may_apt; then
        apt_install python3 python3-venv || true
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || fail "$python is missing or older than 3.11; name another with PYTHON=..."
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module; on Debian: apt-get install python3-venv"
    rm -rf "$venv"
    mkdir "$venv"
    touch "$venv/unfinished"
    "$python" -m venv "$venv"
}

install() {
    say "installing PyTorch and friends into $venv, about 2 minutes, 6 GB ..."
    touch "$venv/unfinished"
    rm -f "$venv/stamp"
    PIP_ROOT_USER_ACTION=ignore "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input -e '.[dev]' ||
        fail "pip could not install what pyproject.toml asks for; mend what it says above and run the same command again"
    key >"$venv/stamp"
    rm "$venv/unfinished"
}

# Two make commands at once: the second waits for the first.
exec 9<.
if command -v flock >/dev/null; then flock 9; fi

ready || { usable || create; install; }

missing=()
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    if may_apt; then
        apt_install "${missing[@]}" || say "could not install ${missing[*]}; the tests that need them skip"
    else
        say "not installed and no right to: ${missing[*]}; the tests that need them skip"
    fi
fi
