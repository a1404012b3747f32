#!/bin/sh
# Compiles the schema and the tour into the folder $1.
# Debian: g++ capnproto libcapnp-dev libssl-dev
set -eu
out=$1
cd "$(dirname "$0")"

capnp compile -oc++:"$out" --src-prefix=../../schema ../../schema/capstore.capnp
# As one source: nearly all the time goes into reading the library's headers.
{
  echo '#include "capstore.capnp.c++"'
  for source in *.c++; do echo "#include \"$PWD/$source\""; done
} >"$out/all.c++"
c++ -std=c++17 -O0 -Wall -I"$out" -c "$out/all.c++" -o "$out/all.o"
c++ "$out"/*.o -o "$out/tour" \
  -lcapnp-json -lcapnp-rpc -lcapnp -lkj-tls -lkj-async -lkj -lssl -lcrypto -pthread
