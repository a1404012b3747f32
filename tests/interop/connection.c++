#include "connection.h"

#include <kj/debug.h>
#include <kj/encoding.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <memory>

namespace {

constexpr char BEGINNING[] = "capnp://";
constexpr char INSECURE[] = "insecure";
constexpr char SHA_256[] = "sha-256:";
constexpr char KEY_DOMAIN[] = ".key.capstore.invalid";

struct Free {
  void operator()(BIO* bio) const { BIO_free_all(bio); }
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(X509* certificate) const { X509_free(certificate); }
};

kj::String keyName(kj::StringPtr fingerprint) {
  // The name by which a client asks for a key: its digest in base32 (RFC 4648), in lower case and
  // without padding, in a domain that does not exist.
  auto base64 = kj::heapString(fingerprint);
  for (char& letter : base64) {
    if (letter == '-') letter = '+';
    if (letter == '_') letter = '/';
  }
  kj::Vector<char> name;
  uint32_t bits = 0;
  int count = 0;
  for (kj::byte each : kj::decodeBase64(base64)) {
    bits = bits << 8 | each;
    for (count += 8; count >= 5; count -= 5) {
      name.add("abcdefghijklmnopqrstuvwxyz234567"[bits >> (count - 5) & 31]);
    }
  }
  if (count > 0) {
    name.add("abcdefghijklmnopqrstuvwxyz234567"[bits << (5 - count) & 31]);
  }
  return kj::str(name, KEY_DOMAIN);
}

kj::Array<kj::byte> certificateOf(kj::StringPtr address, kj::StringPtr name) {
  // The certificate that a server presents to who asks for `name`, as DER.  Nothing about it is
  // proved yet.
  std::unique_ptr<SSL_CTX, Free> context(SSL_CTX_new(TLS_client_method()));
  SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
  std::unique_ptr<BIO, Free> bio(BIO_new_ssl_connect(context.get()));
  BIO_set_conn_hostname(bio.get(), address.cStr());
  SSL* connection = nullptr;
  BIO_get_ssl(bio.get(), &connection);
  SSL_set_tlsext_host_name(connection, name.cStr());
  KJ_REQUIRE(BIO_do_connect(bio.get()) == 1, "no TLS service at this address");

  std::unique_ptr<X509, Free> certificate(SSL_get1_peer_certificate(connection));
  KJ_REQUIRE(certificate != nullptr, "the service presents no certificate");
  auto der = kj::heapArray<kj::byte>(i2d_X509(certificate.get(), nullptr));
  kj::byte* end = der.begin();
  i2d_X509(certificate.get(), &end);
  return der;
}

kj::String fingerprintOf(kj::ArrayPtr<const kj::byte> der) {
  // base64url of the SHA-256 of a certificate's public key.
  const kj::byte* begin = der.begin();
  std::unique_ptr<X509, Free> certificate(d2i_X509(nullptr, &begin, der.size()));
  kj::byte* key = nullptr;  // a SubjectPublicKeyInfo
  int size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(certificate.get()), &key);
  KJ_REQUIRE(size > 0, "the service presents a certificate without a key");
  KJ_DEFER(OPENSSL_free(key));
  kj::byte digest[EVP_MAX_MD_SIZE];
  unsigned digestSize = 0;
  EVP_Digest(key, size, digest, &digestSize, EVP_sha256(), nullptr);
  return kj::encodeBase64Url(kj::arrayPtr(digest, digestSize));
}

kj::Own<kj::TlsContext> pinning(kj::StringPtr address, kj::StringPtr fingerprint) {
  // KJ verifies certificates and cannot be told not to.  So look at the certificate first, and if
  // it has the key that the URI names, trust it and nothing else.  Only the connection that is made
  // then proves that the server holds the key.
  auto der = certificateOf(address, keyName(fingerprint));
  KJ_REQUIRE(fingerprintOf(der) == fingerprint, "the service has another key than the URI says");
  kj::TlsCertificate certificate(der);
  kj::TlsContext::Options options;
  options.useSystemTrustStore = false;
  options.trustedCertificates = kj::arrayPtr(&certificate, 1);
  return kj::heap<kj::TlsContext>(options);
}

}  // namespace

CapabilityUri CapabilityUri::parse(kj::StringPtr text) {
  const char* mistake = "not a capability URI";
  KJ_REQUIRE(text.startsWith(BEGINNING), mistake);
  auto rest = text.slice(strlen(BEGINNING));
  size_t at = KJ_REQUIRE_NONNULL(rest.findFirst('@'), mistake);
  size_t slash = KJ_REQUIRE_NONNULL(rest.findLast('/'), mistake);
  KJ_REQUIRE(at < slash, mistake);

  auto key = kj::str(rest.slice(0, at));
  auto address = kj::decodeUriComponent(rest.slice(at + 1, slash));
  auto token = kj::str(rest.slice(slash + 1));
  if (key == INSECURE) {
    return {kj::str(), kj::mv(address), kj::mv(token)};
  }
  KJ_REQUIRE(key.startsWith(SHA_256), mistake);
  return {kj::str(key.slice(strlen(SHA_256))), kj::mv(address), kj::mv(token)};
}

Connection::Connection(kj::AsyncIoContext& io, const CapabilityUri& uri)
    : stream(connect(io, uri)), rpc(*stream) {}

kj::Own<kj::AsyncIoStream> Connection::connect(kj::AsyncIoContext& io, const CapabilityUri& uri) {
  auto& network = io.provider->getNetwork();
  bool local = uri.fingerprint.size() == 0;
  auto place = local ? kj::str("unix:", uri.address) : kj::str(uri.address);
  auto address = network.parseAddress(place).wait(io.waitScope);
  if (local) {
    return address->connect().wait(io.waitScope);
  }
  tls = pinning(uri.address, uri.fingerprint);
  // A certificate of the service is for the name of its key, wherever the service runs.
  auto plain = address->connect().wait(io.waitScope);
  return tls->wrapClient(kj::mv(plain), keyName(uri.fingerprint)).wait(io.waitScope);
}
