// Connecting to a capstore service with nothing but a capability URI.
//
// The key in the URI is verified before a byte of RPC is sent.  No error holds the token.
#pragma once

#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>
#include <kj/compat/tls.h>
#include <kj/string.h>

#include "capstore.capnp.h"

struct CapabilityUri {
  // capnp://insecure@/PATH/TO/SOCKET/TOKEN or capnp://sha-256:FINGERPRINT@HOST:PORT/TOKEN

  kj::String fingerprint;  // base64url of the SHA-256 of the server's public key, or empty
  kj::String address;      // the path of the socket, or HOST:PORT
  kj::String token;        // a secret

  static CapabilityUri parse(kj::StringPtr text);
};

class Connection {
  // One connection.  Everything that was received over it ends with it.

public:
  Connection(kj::AsyncIoContext& io, const CapabilityUri& uri);

  capstore::Gate::Client gate() { return rpc.bootstrap().castAs<capstore::Gate>(); }

private:
  kj::Own<kj::TlsContext> tls;  // null on a unix socket
  kj::Own<kj::AsyncIoStream> stream;
  capnp::TwoPartyClient rpc;

  kj::Own<kj::AsyncIoStream> connect(kj::AsyncIoContext& io, const CapabilityUri& uri);
};
