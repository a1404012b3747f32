// What the tour saw: one JSON object on a line of its own for each step.
#pragma once

#include <capnp/compat/json.h>
#include <kj/string.h>

#include <cstdio>

#include "capstore.capnp.h"

class Line {
  // Printed when it ends.

public:
  explicit Line(kj::StringPtr step) { text("step", step); }
  ~Line() noexcept(false) {
    printf("{%s}\n", kj::strArray(members, ", ").cStr());
    fflush(stdout);
  }
  KJ_DISALLOW_COPY(Line);

  Line& text(kj::StringPtr key, kj::StringPtr value) { return raw(key, quoted(value)); }
  Line& number(kj::StringPtr key, uint64_t value) { return raw(key, kj::str(value)); }
  Line& flag(kj::StringPtr key, bool value) { return raw(key, kj::str(value)); }
  Line& list(kj::StringPtr key, kj::ArrayPtr<const kj::String> values) {
    return raw(key, kj::str('[', kj::strArray(KJ_MAP(each, values) { return quoted(each); }, ", "),
                            ']'));
  }

private:
  kj::Vector<kj::String> members;

  static kj::String quoted(capnp::Text::Reader value) { return capnp::JsonCodec().encode(value); }
  Line& raw(kj::StringPtr key, kj::StringPtr json) {
    members.add(kj::str(quoted(key), ": ", json));
    return *this;
  }
};

template <typename Answer>
kj::String codeOf(const Answer& answer) {
  // Errors are results: what went wrong, or "ok".
  return answer.hasError() ? kj::str(answer.getError().getCode()) : kj::str("ok");
}

inline kj::String textOf(capnp::Data::Reader data) { return kj::str(data.asChars()); }
inline capnp::Data::Reader dataOf(kj::StringPtr text) { return text.asBytes(); }
