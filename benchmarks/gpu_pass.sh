#!/usr/bin/env bash
# Everything that needs a GPU, stage by stage, on a machine that is lent for minutes: docs/gpu-pass.md.
#   benchmarks/gpu_pass.sh [--rehearse] OUT STAGE... [-- ARGUMENTS]
# STAGE: look accuracy speed tune train cuda, or all. OUT receives STAGE.jsonl, log.txt and the tuned table; a second call
# goes on where the first ended. ARGUMENTS go to every stage (--only REGEX). --rehearse: the same on a CPU, with small
# shapes, and one stage more: compiles, which says what the pass compiles and how long that takes.
# It needs torch and Triton, and neither pip nor a network. PYTHON names another Python than python3.
set -uo pipefail
order=(look accuracy speed tune train cuda)
declare -A limit=([look]=30 [accuracy]=150 [speed]=200 [tune]=200 [train]=200 [cuda]=200)
rehearse=()
if [ "${1:-}" = --rehearse ]; then
    rehearse=(--rehearse)
    order=(compiles "${order[@]}")
    for stage in "${order[@]}"; do limit[$stage]=1200; done
    shift
fi
usage() {
    echo "usage: benchmarks/gpu_pass.sh [--rehearse] OUT STAGE... [-- ARGUMENTS]; stages: ${order[*]}, all" >&2
    exit 2
}

[ $# -ge 2 ] || usage
out=$(realpath -m -- "$1")
shift
stages=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    if [ "$1" = all ]; then
        stages=("${order[@]}")
    elif [ -n "${limit[$1]:-}" ]; then
        stages+=("$1")
    else
        usage
    fi
    shift
done
[ "${1:-}" = -- ] && shift
[ ${#stages[@]} -gt 0 ] || usage

# What is compiled stays on this machine for the next call.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${SCSCO_PASS_CACHE:-${TMPDIR:-/tmp}/scsco-gpu-pass-$(id -u)}
mkdir -p "$cache" "$out" || exit 1
export TRITON_CACHE_DIR=$cache/triton TORCHINDUCTOR_CACHE_DIR=$cache/inductor CUDA_CACHE_PATH=$cache/driver
export SCSCO_CACHE_DIR=${SCSCO_CACHE_DIR:-$cache/cuda} PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3

# kernels/, train/ and benchmarks/ under their installed names: a tree of links instead of an installation. With the two
# modules of tests/ that derive tolerances.
tree=$(mktemp -d) || exit 1
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/scsco_fast"
ln -s "$root"/scsco_fast/* "$root/kernels" "$root/train" "$root/benchmarks" "$tree/scsco_fast/"
ln -s "$root/tests/oracle.py" "$root/tests/attention_oracle.py" "$tree/"
export PYTHONPATH=$tree${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
if [ ${#rehearse[@]} -gt 0 ]; then
    ln -s "$root/benchmarks/gpu_pass/blocker.py" "$tree/sitecustomize.py"
    export SCSCO_UNIMPORTABLE="tyro rich gradio torchdata selenium pip"
fi

cd "$tree" || exit 1 # not the checkout, whose scsco_fast has no kernels
status=0
for stage in "${stages[@]}"; do
    arguments=(gpu_pass "$out" "$stage" --seconds "${limit[$stage]}" --cache "$cache" "${rehearse[@]}" "$@")
    if [ "$stage" = compiles ]; then
        arguments=(gpu_pass.compiles)
    elif [ ${#rehearse[@]} -gt 0 ]; then
        export TRITON_INTERPRET=1 SCSCO_CUDA_EMULATION=1
    fi
    # Past its time a stage ends by itself; `timeout` is for one that cannot. In the background: a shell that waits for a
    # program would not hear that it is to end.
    timeout --kill-after=5 $((limit[$stage] + 10)) "$python" -m "scsco_fast.benchmarks.${arguments[0]}" "${arguments[@]:1}" &
    trap 'kill $!; wait; exit 143' TERM INT
    wait $! || status=1
done
exit $status
