#!/usr/bin/env bash
# Everything that needs a GPU, stage by stage, on a machine that is lent for minutes: docs/gpu-pass.md.
#   benchmarks/gpu_pass.sh [--rehearse] OUT STAGE... [-- ARGUMENTS]
# STAGE: look accuracy speed tune train profile cuda, or all. OUT receives STAGE.jsonl, log.txt and the tuned table; a
# second call goes on where the first ended, if OUT still holds the first one's files. ARGUMENTS go to every stage
# (--only REGEX).
# The stage pytest, which stands alone, runs the tests that need a GPU; its ARGUMENTS are pytest's.
# --rehearse: the same on a CPU, with small shapes, and one stage more: compiles, which says what the pass compiles and how
# long that takes. It needs torch and Triton, and neither pip nor a network. PYTHON names another Python than python3.
# SCSCO_PASS_SECONDS: what the whole call may take.
set -uo pipefail
SECONDS=0
order=(look accuracy speed tune train profile cuda)
declare -A limit=([look]=30 [accuracy]=150 [speed]=200 [tune]=200 [train]=200 [profile]=90 [cuda]=200 [pytest]=200)
start_limit=90 # of a stage's start, before its own time: runner.py's START_SECONDS
end_limit=10   # a stage that does not end by itself is told to after the half of it, and killed after the other
least=20       # a stage that has less is not begun
rehearse=()
if [ "${1:-}" = --rehearse ]; then
    rehearse=(--rehearse)
    order=(compiles "${order[@]}")
    for stage in "${order[@]}"; do limit[$stage]=1200; done
    shift
fi
fail() {
    echo "benchmarks/gpu_pass.sh: $1" >&2
    exit 2
}
usage() {
    echo "usage: benchmarks/gpu_pass.sh [--rehearse] OUT STAGE... [-- ARGUMENTS]; stages: ${order[*]}, all, pytest" >&2
    exit 2
}

[ $# -ge 2 ] || usage
out=$(realpath -m -- "$1")
shift
stages=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    if [ "$1" = all ]; then
        stages+=("${order[@]}")
    elif [ -n "${limit[$1]:-}" ]; then
        stages+=("$1")
    else
        usage
    fi
    shift
done
[ "${1:-}" = -- ] && shift
[ ${#stages[@]} -gt 0 ] || usage
[[ ${#stages[@]} -eq 1 || " ${stages[*]} " != *" pytest "* ]] || fail "the stage pytest stands alone: its arguments are its own"
budget=${SCSCO_PASS_SECONDS:-}
[[ $budget =~ ^[1-9][0-9]*$ || -z $budget ]] || fail "SCSCO_PASS_SECONDS is '$budget'; wanted a whole number of seconds"

# The stages run in another folder. A path keeps its links: the Python of a virtual environment is one.
absolute() {
    case $1 in
        /*) echo "$1" ;;
        *) echo "$PWD/$1" ;;
    esac
}
absolute_each() { # entries with colons between them
    local entry found=()
    while IFS= read -r -d : entry; do found+=("$(absolute "$entry")"); done <<<"$1:"
    (IFS=: && echo "${found[*]}")
}
key() { # of a path, for the name of a file
    printf %s "$1" | sha1sum | cut -c-12
}

# What is compiled stays on this machine for the next call.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$(absolute "${SCSCO_PASS_CACHE:-${TMPDIR:-/tmp}/scsco-gpu-pass-$(id -u)}")
mkdir -p "$cache" "$out" || exit 1
export TRITON_CACHE_DIR=$cache/triton TORCHINDUCTOR_CACHE_DIR=$cache/inductor CUDA_CACHE_PATH=$cache/driver
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3
case ${SCSCO_CACHE_DIR:=$cache/cuda} in
    "~"*) ;; # build.py expands it
    *) SCSCO_CACHE_DIR=$(absolute "$SCSCO_CACHE_DIR") ;;
esac
export SCSCO_CACHE_DIR
python=${PYTHON:-python3}
[[ $python != */* ]] || python=$(absolute "$python")

# One pass at a time for one OUT. The lock is this shell's, and of the stage it runs: it goes when both have ended.
exec 9>>"$cache/lock-$(key "$out")" || exit 1
"$python" -c 'if True:
    import fcntl, sys
    try:
        fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(75)'
case $? in
    0) ;;
    75) fail "another pass is writing to $out: wait for its end, or name another OUT" ;;
    *) fail "$python cannot run: PYTHON names another" ;;
esac

# kernels/, train/ and benchmarks/ under their installed names: a tree of links instead of an installation. With the tests,
# of which two modules derive tolerances. It stays, for the build of the CUDA library outlives the shell, and what is right
# in it is left as it is, for another pass may be using it.
points_to() {
    [ "$(readlink -- "$1")" = "$2" ]
}
link() { # LINK TARGET
    points_to "$@" || ln -sfn -- "$2" "$1" || points_to "$@" || exit 1
}
links() { # FOLDER TARGET...: links to the targets in the folder
    local target
    mkdir -p "$1" || exit 1
    for target in "${@:2}"; do link "$1/${target##*/}" "$target"; done
    find -L "$1" -maxdepth 1 -type l -delete # of what is no longer there
}
tree=$cache/tree-$(key "$root")
if [ ${#rehearse[@]} -gt 0 ]; then
    tree=$tree-rehearsal
    export SCSCO_UNIMPORTABLE="rich gradio torchdata selenium pip"
fi
links "$tree/scsco_fast" "$root"/scsco_fast/* "$root/kernels" "$root/train" "$root/benchmarks"
links "$tree" "$root/tests" "$root/pyproject.toml" "$root/tests/oracle.py" "$root/tests/attention_oracle.py"
[ ${#rehearse[@]} -eq 0 ] || link "$tree/sitecustomize.py" "$root/benchmarks/gpu_pass/blocker.py"
export PYTHONPATH=$tree${PYTHONPATH:+:$(absolute_each "$PYTHONPATH")}
cd "$tree" || exit 1 # not the checkout, whose scsco_fast has no kernels

say() {
    echo "$1" | tee -a "$out/log.txt"
}
run_stage() { # STAGE SECONDS ARGUMENTS: SECONDS is what it may take from its start to its end
    local stage=$1 whole=$2 module=gpu_pass
    shift 2
    case $stage in
        compiles)
            module=gpu_pass.compiles
            unset TRITON_INTERPRET SCSCO_CUDA_EMULATION # of a stage before it
            set --
            ;;
        pytest)
            mapfile -t files < <(grep -rl 'mark\.gpu' tests/)
            set -- -v -m gpu -p no:cacheprovider --continue-on-collection-errors "${files[@]}" "$@"
            ;;
        *) set -- "$out" "$stage" --seconds "${limit[$stage]}" --within "$whole" --cache "$cache" "${rehearse[@]}" "$@" ;;
    esac
    if [ "$stage" = pytest ]; then
        timeout --kill-after=$((end_limit / 2)) $((whole + end_limit / 2)) "$python" -m pytest "$@" \
            > >(tee -a "$out/log.txt") 2>&1 &
    else
        [[ ${#rehearse[@]} -eq 0 || $stage = compiles ]] || export TRITON_INTERPRET=1 SCSCO_CUDA_EMULATION=1
        timeout --kill-after=$((end_limit / 2)) $((whole + end_limit / 2)) \
            "$python" -m "scsco_fast.benchmarks.$module" "$@" &
    fi
    # In the background: a shell that waits for a program would not hear that it is to end.
    trap 'kill $!; wait; exit 143' TERM INT
    wait $!
}

status=0
for stage in "${stages[@]}"; do
    whole=$((limit[$stage] + start_limit))
    if [ -n "$budget" ]; then
        left=$((budget - SECONDS))
        if [ $left -lt $least ]; then
            say "$stage: left out, $left s are left of SCSCO_PASS_SECONDS=$budget"
            status=1
            continue
        fi
        [ $whole -le $((left - end_limit)) ] || whole=$((left - end_limit))
    fi
    if [ "$stage" = pytest ] && ! "$python" -c 'import pytest'; then
        fail "$python has no pytest"
    fi
    run_stage "$stage" "$whole" "$@"
    case $? in
        0) ;;
        2) exit 2 ;; # wrong arguments, which are wrong for the next stage too
        *) status=1 ;;
    esac
done
exit $status
