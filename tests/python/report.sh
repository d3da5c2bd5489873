#!/usr/bin/env bash
# What only a browser and TensorBoard can say of reports: two short runs, one of them watched while it trains, their
# pages and the one that compares them in a headless Chromium, and their event files in TensorBoard's own reader.
#
# Needs the runner that the tests have built, Python from 3.11 with venv, and the network: playwright and tensorboard go
# into a folder of their own in target, Chromium is installed by apt-get if there is none. With --install that is all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=${CARGO_TARGET_DIR:-target}
xtask=$target/debug/xtask
packages=(playwright==1.65.2 tensorboard==2.21.0)
venv=$target/report-python
out=$target/report-runs
small=(--data "$out/images" --epochs 3 --set augment.size=16 --set schedule.warmup_epochs=0)

fail() {
    echo "error: $*" >&2
    exit 1
}

timed() {
    local TIMEFORMAT="$1: %0R s, %0U s of processors"
    time "$@"
}

install_python() {
    [[ -f $venv/${packages[*]} ]] && return
    python3 -m venv "$venv" || fail "no virtual environment; install Python 3.11 or later with venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}" ||
        fail "pip could not install ${packages[*]}; is there a network?"
    touch "$venv/${packages[*]}"
}

install_browser() {
    local browser
    for browser in chromium chromium-browser google-chrome; do
        command -v "$browser" >/dev/null && return
    done
    command -v apt-get >/dev/null || fail "found neither Chromium nor apt-get; install Chromium"
    local root=()
    [[ $(id -u) == 0 ]] || root=(sudo)
    export DEBIAN_FRONTEND=noninteractive
    { "${root[@]}" apt-get update -qq && "${root[@]}" apt-get install -qq --no-install-recommends chromium; } \
        >"$out/apt-get.log" 2>&1 || {
        cat "$out/apt-get.log" >&2
        fail "apt-get could not install chromium; is there a network?"
    }
}

install() {
    install_browser &
    install_python
    wait $!
}

# A part of the images that ship with the project, since most of the time goes into the evaluation.
images() {
    mkdir "$out/images"
    cp data/fashion-mnist/class_names.txt "$out/images"
    python3 - "$out/images" <<'END'
import gzip, sys
from pathlib import Path
for split, count in (("train", 2000), ("t10k", 500)):
    for kind, header, size in (("images-idx3", 16, 28 * 28), ("labels-idx1", 8, 1)):
        name = f"{split}-{kind}-ubyte"
        data = gzip.decompress(Path(f"data/fashion-mnist/{name}.gz").read_bytes())
        part = data[:4] + count.to_bytes(4, "big") + data[8 : header + count * size]
        Path(sys.argv[1], name).write_bytes(part)
END
}

pretrain() {
    local name=$1
    shift
    "$xtask" pretrain --method "$name" --out "$out/$name" "${small[@]}" "$@" >"$out/$name.log" 2>&1 || {
        cat "$out/$name.log" >&2
        fail "the run of $name has failed"
    }
}

# A run and its page in the browser at the same time.
follow() {
    pretrain simclr --set backbone.width=8 --set checkpoint.every_steps=30 &
    local run=$! address
    until [[ -f $out/simclr/recipe.toml ]]; do
        kill -0 "$run" 2>/dev/null || wait "$run"
        sleep 0.2
    done
    "$xtask" report "$out/simclr" --follow >"$out/follow.log" &
    local server=$!
    until address=$(grep -o 'http://[0-9.:]*/' "$out/follow.log"); do
        kill -0 "$server" 2>/dev/null || fail "the page of a run that trains is not served"
        sleep 0.2
    done
    "$python" tests/python/live_report_in_browser.py "$address" "$out/follow"
    kill "$server"
    wait "$run"
}

pages() {
    "$xtask" report "$out/simclr" "$out/mae" --out "$out/comparison.html"
    # Two at a time.
    printf '%s\n' simclr/report mae/report comparison |
        xargs -P 2 -I NAME "$python" tests/python/report_in_browser.py "$out/NAME.html" "$out/pictures/NAME"
}

events() {
    local name
    for name in simclr mae; do
        "$python" tests/python/tensorboard_events.py "$out/$name"/tensorboard/* | tail -n 1
    done
}

if [[ ${1:-} == --install ]]; then
    mkdir -p "$out"
    timed install
    exit
fi
[[ -x $xtask ]] || fail "there is no $xtask; build it by cargo test --workspace --locked --no-run"
python=$venv/bin/python
trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT
rm -rf "$out"
mkdir -p "$out"
timed install &
installing=$!
timed images
timed pretrain mae --set backbone.width=64 --set backbone.depth=2 --set backbone.patch_size=4
wait "$installing"
timed follow
timed pages
timed events
