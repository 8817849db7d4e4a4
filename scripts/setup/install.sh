#!/bin/bash
# install.sh PREFIX: copies the compiled programs, the addon and the npm
# packages that they use at run time to PREFIX/lib/lockstep, and links
# PREFIX/bin/lockstep and lockstepd. Needs no network.
set -eu
cd "$(dirname "$0")/../.."
prefix=${1:?usage: install.sh PREFIX}
mkdir -p "$prefix/bin" "$prefix/lib"
target=$prefix/lib/lockstep
fresh=$target.new.$$
trap 'rm -rf "$fresh"' EXIT
mkdir -p "$fresh/dist" "$fresh/native"
cp -r dist/src dist/bin "$fresh/dist/"
cp -r native/build "$fresh/native/"
rm -f "$fresh/native/build/loadgen"
cp package.json package-lock.json LICENSE "$fresh/"
# the first line is the project itself
npm ls --omit=dev --all --parseable 2>/dev/null | tail -n +2 | while read -r package; do
  relative=${package#"$PWD"/}
  mkdir -p "$fresh/$(dirname "$relative")"
  [ -e "$fresh/$relative" ] || cp -r "$package" "$fresh/$relative"
done
rm -rf "$target"
mv "$fresh" "$target"
for program in lockstep lockstepd; do
  ln -sf "../lib/lockstep/dist/bin/$program" "$prefix/bin/$program"
done
echo "installed $prefix/bin/lockstep and $prefix/bin/lockstepd"
