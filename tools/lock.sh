#!/bin/sh
# lock.sh UV: writes requirements/dev.txt and requirements/demo.txt, the newest versions that pyproject.toml and requirements/torch.txt allow, with hashes.
set -eu
uv=$1
compile() {
    "$uv" pip compile --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --no-annotate \
        --custom-compile-command "make lock" pyproject.toml -c requirements/torch.txt "$@"
}
# requirements/torch.txt says why these are not locked.
left_out=$(compile --extra dev --no-header | sed -nE 's/^(torch|triton|nvidia-[^=]+|cuda-[^=]+)==.*/--no-emit-package \1/p' | sort -u)
# shellcheck disable=SC2086
compile --extra dev --generate-hashes $left_out -o requirements/dev.txt >/dev/null
compile --extra build --extra cli --generate-hashes -c requirements/dev.txt -o requirements/demo.txt >/dev/null
