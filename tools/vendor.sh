#!/bin/sh
# Fetch decimal.js, the decimals of the page that `softxent explain --html` writes, with its licence: tools/vendor.sh VERSION
# The files are kept as they are published, and README.md beside them says which they are.
set -eu
version=$1
target=$(cd "$(dirname "$0")/.." && pwd)/src/softxent/explanation/vendor
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
(cd "$place" && npm pack --silent "decimal.js@$version" && tar -xzf ./*.tgz)
mkdir -p "$target"
cp "$place/package/decimal.js" "$target/decimal.js"
cp "$place/package/LICENCE.md" "$target/decimal.js.LICENCE.md"
cat >"$target/README.md" <<END
# Vendored JavaScript

| file | package | version | licence | SHA-256 |
| --- | --- | --- | --- | --- |
| decimal.js | [decimal.js](https://github.com/MikeMcl/decimal.js) | $version | MIT (decimal.js.LICENCE.md) | $(sha256sum "$target/decimal.js" | cut -d' ' -f1) |

It is part of each page that \`softxent explain --html\` writes, which therefore asks nothing of the network. \`make vendor\` fetches it anew.
END
