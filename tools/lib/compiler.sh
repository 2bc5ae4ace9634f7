# Sourced by the scripts in tools/: chooses a compiler that is new enough, where the default one is not.
if [ -z "${CXX:-}" ] && command -v g++-12 >/dev/null && [ "$(g++ -dumpversion | cut -d. -f1)" -lt 12 ]; then
  export CC=gcc-12 CXX=g++-12
fi
