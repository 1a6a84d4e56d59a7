#!/usr/bin/env bash
# Makes this checkout ready to run: Debian packages, a virtual environment in .venv, generated protocol modules.
#
# Run again at any time: what is there is left alone, and nothing at all is done while pyproject.toml, the lock file and
# the protos are those of the last run. Needs root only if Debian packages are missing, and the network only if something is.
# No service of this machine is started or enabled; packages that were there before keep theirs as they are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PACKAGES=(ca-certificates ethtool etcd-client etcd-server iperf3 iproute2 iputils-arping iputils-ping make nftables
  openvswitch-switch procps tcpdump util-linux)
# Units of these packages that a new installation would enable.
UNITS=(etcd.service openvswitch-switch.service ovsdb-server.service ovs-vswitchd.service ovs-record-hostname.service)
POLICY=/usr/sbin/policy-rc.d
LOG=build/setup.log
STAMP=.venv/tealnet-setup

say() { printf '%s\n' "$*"; }

# step N TEXT COMMAND…: run a command quietly; on failure show the end of its output.
step() {
  local number=$1 text=$2 begin=$SECONDS
  shift 2
  printf '[%s/4] %s …' "$number" "$text"
  printf '\n== %s: %s\n' "$text" "$*" >>"$LOG"
  if "$@" >>"$LOG" 2>&1 </dev/null; then
    printf ' done (%s s)\n' "$((SECONDS - begin))"
  else
    printf ' FAILED\n'
    tail -n 25 "$LOG" >&2
    say "error: set-up failed at: $text (all output: $LOG)" >&2
    exit 1
  fi
}

# What the result depends on.
digest() {
  {
    cat pyproject.toml hatch_build.py deploy/requirements.txt deploy/setup.sh
    find protos -name '*.proto' -print0 | LC_ALL=C sort -z | xargs -0 cat
    pwd -P
  } | sha256sum | cut -d' ' -f1
}

generated() { # every proto has its module
  local proto module
  while IFS= read -r proto; do
    module=${proto#protos/}
    [ -f "${module%.proto}_pb2.py" ] || return 1
  done < <(find protos -name '*.proto')
}

current() {
  [ -x .venv/bin/python ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$(digest)" ] && generated
}

good_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

missing_packages() {
  local name
  for name in "${PACKAGES[@]}"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null || true)" = installed ] || printf '%s\n' "$name"
  done
  if ! good_python "$PYTHON" || ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    printf '%s\n' python3 python3-venv
  fi
}

# While packages are installed, services are not started: invoke-rc.d(8) asks policy-rc.d. One that is there already is
# moved aside for that time, also after an interrupted run.
guard_services() {
  if [ ! -e "$POLICY.tealnet" ] && [ -e "$POLICY" ]; then mv "$POLICY" "$POLICY.tealnet"; fi
  printf '#!/bin/sh\n# Made by Tealnet'\''s deploy/setup.sh for the time of an installation.\nexit 101\n' >"$POLICY"
  chmod 755 "$POLICY"
}
release_services() {
  if [ -e "$POLICY.tealnet" ]; then
    mv "$POLICY.tealnet" "$POLICY"
  elif grep -q "Made by Tealnet's" "$POLICY" 2>/dev/null; then
    rm -f "$POLICY"
  fi
}

install_packages() {
  local unit new=()
  for unit in "${UNITS[@]}"; do
    [ -e "/lib/systemd/system/$unit" ] || new+=("$unit")
  done
  trap release_services EXIT
  guard_services
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
  release_services
  trap - EXIT
  # Only the programs are wanted: what this installation has enabled is disabled again.
  for unit in "${new[@]}"; do
    [ ! -e "/lib/systemd/system/$unit" ] || ! command -v systemctl >/dev/null || systemctl disable "$unit"
  done
}

make_environment() {
  # A virtual environment does not survive being moved, nor the end of the interpreter it was made with.
  if ! good_python .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    "$PYTHON" -m venv .venv
  fi
  .venv/bin/python -m pip install --disable-pip-version-check --root-user-action=ignore --no-input -r deploy/requirements.txt
}

make_modules() {
  .venv/bin/python hatch_build.py
  # The checkout itself is what is imported, and the commands `teal`, `teal-controller`, `teal-agent` lie in .venv/bin.
  .venv/bin/python deploy/link.py
}

main() {
  if current; then exit 0; fi
  mkdir -p build
  exec 9>build/setup.lock
  flock 9
  if current; then exit 0; fi
  : >"$LOG"
  PYTHON=${PYTHON:-python3}
  rm -f "$STAMP"
  local packages
  mapfile -t packages < <(missing_packages)
  say "Setting up Tealnet in $PWD (output: $LOG)"
  if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
      say "error: not installed: ${packages[*]}; run this as root (sudo) or install them" >&2
      exit 1
    fi
    step 1 "Debian's package lists" apt-get update -q
    step 2 "Debian packages ${packages[*]}" install_packages "${packages[@]}"
  else
    say "[1/4] Debian packages are there"
    say "[2/4] nothing to install"
  fi
  if ! good_python "$PYTHON"; then
    say "error: $PYTHON is older than 3.11; set PYTHON to a newer one" >&2
    exit 1
  fi
  step 3 "Python packages into .venv ($(grep -c '==' deploy/requirements.txt), pinned)" make_environment
  step 4 "generating protocol modules, linking commands" make_modules
  digest >"$STAMP"
  say "Set-up is complete; nothing needs the network from here on."
}

main "$@"
