#!/bin/sh
# Compiles the schema and the tour into the folder $1.
# Debian: g++ capnproto libcapnp-dev libssl-dev
set -eu
out=$1
cd "$(dirname "$0")"

capnp compile -oc++:"$out" --src-prefix=../../schema ../../schema/capstore.capnp
for source in "$out/capstore.capnp.c++" *.c++; do
  echo "-std=c++17 -O0 -Wall -I$out -c $source -o $out/$(basename "$source").o"
done | xargs -P "$(nproc)" -L 1 c++
c++ "$out"/*.o -o "$out/tour" \
  -lcapnp-json -lcapnp-rpc -lcapnp -lkj-tls -lkj-async -lkj -lssl -lcrypto -pthread
