#!/usr/bin/env bash
# install_test.sh CMAKE BUILD_FOLDER C_COMPILER SOURCE_FOLDER: installs into a new place and builds a program against that alone.
set -euo pipefail
cmake=$1 build=$2 compiler=$3 source=$4
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$cmake" --install "$build" --prefix "$place/prefix" >/dev/null
"$place/prefix/bin/gantry" --version
[ "$(find "$place/prefix/include" -type f | wc -l)" = 1 ] || { echo "more than gantry.h is installed"; exit 1; }

mkdir "$place/project"
cp "$source/train_small_gan.c" "$place/project"
cat >"$place/project/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.22)
project(Small LANGUAGES C)
find_package(Gantry 0.1 REQUIRED)
add_executable(small train_small_gan.c)
set_target_properties(small PROPERTIES C_STANDARD 99)
target_link_libraries(small PRIVATE gantry::gantry m)
END
"$cmake" -S "$place/project" -B "$place/project/build" -DCMAKE_PREFIX_PATH="$place/prefix" -DCMAKE_C_COMPILER="$compiler" >/dev/null
"$cmake" --build "$place/project/build" >/dev/null

if command -v pkg-config >/dev/null; then
  export PKG_CONFIG_PATH
  PKG_CONFIG_PATH=$(dirname "$(find "$place/prefix" -name gantry.pc)")
  # shellcheck disable=SC2046
  "$compiler" -std=c99 "$source/train_small_gan.c" -o "$place/small" $(pkg-config --cflags --libs gantry) -lm \
    -Wl,-rpath,"$(pkg-config --variable=libdir gantry)"
  "$place/small"
else
  "$place/project/build/small"
fi
