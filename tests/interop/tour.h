// The tour through a service: each part prints what it saw; `tour.jsonl` says what that must be.
#pragma once

#include "connection.h"
#include "report.h"

class Tour {
public:
  Tour(kj::AsyncIoContext& io, kj::StringPtr uriFile);

  void walk();         // restore, and four levels of the tree, in one round trip
  void gate();         // what anybody with the socket gets
  void files();        // File, and the attributes of nodes
  void directories();  // Directory: listing, links, renaming, removing
  void errors();       // error codes as they come about, and broken capabilities
  void codes();        // every error code
  void authority();    // narrowing, revoking, expiring, saving
  void narrowings();   // every policy that bears on what a directory does
  void stores();       // Store, Sink and Namespace
  void handles();      // what is dropped is released; waits for a line on stdin, twice

private:
  kj::AsyncIoContext& io;
  kj::WaitScope& waitScope;
  kj::StringPtr uriFile;
  Connection connection;

  CapabilityUri uri(kj::StringPtr volume) const;
  capstore::Directory::Client directory(kj::StringPtr volume);
  capstore::Store::Client store(kj::StringPtr volume);
  void policies(capstore::Directory::Client work);
  void references(capstore::Directory::Client work);
  void names(capstore::Store::Client objects);

  template <typename Request>
  void tell(kj::StringPtr step, Request&& request) {
    // A call of which only the code is of interest.
    auto code = codeOf(request.send().wait(waitScope));
    Line(step).text("code", code);
  }
};

// Requests, filled in ---------------------------------------------------------------------------

template <typename Request>
Request named(Request request, kj::StringPtr name) {
  request.setName(name);
  return request;
}

template <typename Request>
Request labelled(Request request, kj::StringPtr label) {
  request.setLabel(label);
  return request;
}

template <typename Request>
Request keyed(Request request, kj::StringPtr key) {
  request.setKey(dataOf(key));
  return request;
}

inline auto opening(capstore::Directory::Client directory, kj::StringPtr name, uint32_t flags = 0) {
  auto request = named(directory.openRequest(), name);
  request.setFlags(flags);
  return request;
}

inline auto reading(capstore::File::Client file, uint64_t offset = 0, uint32_t length = 4096) {
  auto request = file.readRequest();
  request.setOffset(offset);
  request.setLength(length);
  return request;
}

inline auto writing(capstore::File::Client file, uint64_t offset, kj::StringPtr text) {
  auto request = file.writeRequest();
  request.setOffset(offset);
  request.setData(dataOf(text));
  return request;
}

inline auto renaming(capstore::Directory::Client directory, kj::StringPtr name,
                     capstore::Directory::Client target, kj::StringPtr newName,
                     capstore::RenameMode mode = capstore::RenameMode::REPLACE) {
  auto request = named(directory.renameRequest(), name);
  request.setTarget(target);
  request.setNewName(newName);
  request.setMode(mode);
  return request;
}

inline auto linking(capstore::Directory::Client directory, kj::StringPtr name,
                    capstore::Directory::Client target, kj::StringPtr newName) {
  auto request = named(directory.linkRequest(), name);
  request.setTarget(target);
  request.setNewName(newName);
  return request;
}

inline auto removing(capstore::Directory::Client directory, kj::StringPtr name,
                     capstore::Expect expect = capstore::Expect::ANY) {
  auto request = named(directory.removeRequest(), name);
  request.setExpect(expect);
  return request;
}

inline auto putting(capstore::Store::Client store, kj::StringPtr key, kj::StringPtr text) {
  auto request = keyed(store.putRequest(), key);
  request.setData(dataOf(text));
  return request;
}
