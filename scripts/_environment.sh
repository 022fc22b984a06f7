# Sourced by the other scripts: finds a Python, and makes the virtual environments below the root of the repository.
# Reads PYTHON (the interpreter to use). Leaves the shell in the root of the repository.

case "${PYTHON:-}" in
    [!/]*/*) PYTHON="$PWD/$PYTHON" ;; # a path from where the script was called
esac
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"
export PIP_DISABLE_PIP_VERSION_CHECK=1

die() {
    printf '%s\n' "$@" >&2
    exit 2
}

# The version of an interpreter, such as 3.11; nothing where it does not run.
python_version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

is_supported() {
    case "$1" in
        3.10 | 3.11 | 3.12) return 0 ;;
        *) return 1 ;;
    esac
}

# Refuses a PYTHON that cannot be used.
check_python() {
    local version
    version=$(python_version_of "$PYTHON")
    is_supported "$version" || die \
        "PYTHON=$PYTHON: found ${version:+Python }${version:-no Python that runs}, allowed are 3.10, 3.11 and 3.12." \
        "Set PYTHON to such an interpreter, or unset it to search PATH."
}

# Prints the first interpreter on PATH that fits.
find_python() {
    local candidate version tried=""
    for candidate in python3 python3.11 python3.12 python3.10; do
        version=$(python_version_of "$candidate")
        if is_supported "$version"; then
            printf '%s\n' "$candidate"
            return
        fi
        tried="$tried $candidate${version:+ ($version)}"
    done
    die "No Python 3.10, 3.11 or 3.12 on PATH; tried:$tried." "Install one of them, or set PYTHON to its path."
}

# Refuses a virtual environment of another Python than is allowed, or than PYTHON asks for.
check_environment() {
    local remedy="Remove $repository/$1 and start again" version
    version=$(python_version_of "$1/bin/python")
    is_supported "$version" || die \
        "$1: found ${version:+Python }${version:-a Python that does not run}, allowed are 3.10, 3.11 and 3.12." "$remedy."
    [ -z "${PYTHON:-}" ] || [ "$(python_version_of "$PYTHON")" = "$version" ] || die \
        "$1: found Python $version, but PYTHON=$PYTHON asks for another one." "$remedy, or unset PYTHON."
}

# make_environment FOLDER "FILES" PIP_ARGUMENTS...
# Makes FOLDER a virtual environment with what pip installs. A stamp in FOLDER holds the sums of FILES and the arguments:
# while they are unchanged nothing is installed.
make_environment() {
    local folder=$1 files=$2 python stamp wanted
    shift 2
    if [ -n "${PYTHON:-}" ]; then check_python; fi
    if [ -e "$folder/bin/pip" ]; then
        check_environment "$folder"
    else
        python=${PYTHON:-$(find_python)}
        echo "making $folder with $python" >&2
        "$python" -m venv "$folder"
    fi
    stamp="$folder/.llmforge-stamp"
    # shellcheck disable=SC2086 # FILES is a list of words
    wanted=$(printf '%s\n' "$*" && sha256sum $files)
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        echo "installing into $folder (once; takes minutes)" >&2
        "$folder/bin/python" -m pip install --quiet "$@" >&2
        printf '%s\n' "$wanted" >"$stamp"
    fi
}

# llmforge with all that training, tests and checks need, in .venv, whose programs come first from here on.
use_llmforge() {
    make_environment .venv "pyproject.toml constraints.txt" -c constraints.txt -e ".[train,quantization,serve,serve-ray,tensorboard,wandb,mlflow,dev]"
    PATH="$repository/.venv/bin:$PATH"
}

# The S3 server of the slow tests.
make_s3_environment() {
    make_environment .venv-s3 tests/s3-requirements.txt -r tests/s3-requirements.txt
}

# The MLflow server of the slow tests.
make_mlflow_environment() {
    make_environment .venv-mlflow tests/mlflow-requirements.txt -r tests/mlflow-requirements.txt
}

# The tests that take seconds, on two processes of one thread each; arguments go to pytest.
run_unit_tests() {
    OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal -m "not slow and not gpu" "$@"
}

# The others but those of --soak, in the same way; each process has a Ray instance of its own. A file stays together,
# since its tests share what takes long to make.
run_slow_tests() {
    OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -m "(slow or gpu) and not soak" "$@"
}
