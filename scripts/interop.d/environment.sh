# Sourced by scripts/interop and scripts/fidelity: the Python that has Transformers and PEFT.

# The environment counts as made once it carries the digest of what it was made from, so that
# an interrupted installation is taken up again. Sets `python`.
make_environment() {
    local wanted stamp=.interop/venv/requirements.sha256
    wanted=$(cat scripts/goldens/requirements.txt scripts/interop.d/requirements.txt | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing Transformers, PEFT and PyTorch into .interop/venv (about 3 GB)" >&2
        python3 -m venv .interop/venv || fail "python3 -m venv failed: install python3 and python3-venv"
        .interop/venv/bin/pip install --quiet --requirement scripts/interop.d/requirements.txt
        echo "$wanted" > "$stamp"
    fi
    python=.interop/venv/bin/python
}
