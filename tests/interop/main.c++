// usage: tour URI-FILE PART...
//
// URI-FILE holds lines NAME<TAB>URI, as `capstore serve --uri-file` writes them: a URI is a secret,
// and arguments are not.

#include <kj/debug.h>
#include <kj/filesystem.h>
#include <unistd.h>

#include <iostream>

#include "tour.h"

namespace {

kj::String contentOf(kj::StringPtr path) {
  auto disk = kj::newDiskFilesystem();
  return disk->getRoot().openFile(disk->getCurrentPath().evalNative(path))->readAllText();
}

CapabilityUri uriOf(kj::StringPtr uriFile, kj::StringPtr volume) {
  auto content = contentOf(uriFile);
  kj::StringPtr rest = content;
  while (rest.size() > 0) {
    size_t end = KJ_REQUIRE_NONNULL(rest.findFirst('\n'), "a line that does not end");
    auto line = kj::str(rest.slice(0, end));
    rest = rest.slice(end + 1);
    size_t tab = KJ_REQUIRE_NONNULL(line.findFirst('\t'), "a line without a URI");
    if (kj::str(line.slice(0, tab)) == volume) {
      return CapabilityUri::parse(line.slice(tab + 1));
    }
  }
  KJ_FAIL_REQUIRE("no such volume", volume);
}

}  // namespace

Tour::Tour(kj::AsyncIoContext& io, kj::StringPtr uriFile)
    : io(io), waitScope(io.waitScope), uriFile(uriFile), connection(io, uri("m")) {}

CapabilityUri Tour::uri(kj::StringPtr volume) const { return uriOf(uriFile, volume); }

capstore::Directory::Client Tour::directory(kj::StringPtr volume) {
  auto restore = connection.gate().restoreRequest();
  restore.setToken(uri(volume).token);
  return restore.send().getCapability().castAs<capstore::Directory>();
}

capstore::Store::Client Tour::store(kj::StringPtr volume) {
  auto restore = connection.gate().restoreRequest();
  restore.setToken(uri(volume).token);
  return restore.send().getCapability().castAs<capstore::Store>();
}

void Tour::handles() {
  auto gate = connection.gate();
  auto root = directory("d");
  root.statRequest().send().wait(waitScope);
  // An answered call stands behind everything that was sent before it, releases included.
  auto pause = [&](kj::StringPtr step) {
    gate.infoRequest().send().wait(waitScope);
    Line{step};
    std::string line;
    std::getline(std::cin, line);
  };

  pause("holding one directory");
  {
    kj::Vector<capstore::File::Client> files;
    for (auto i : kj::zeroTo(32)) {
      auto opened = opening(root, kj::str("file ", i), capstore::OPEN_WRITE | capstore::OPEN_CREATE)
                        .send().wait(waitScope);
      files.add(opened.getFile());
    }
    pause("holding 32 files more");
  }
  pause("holding one directory again");
}

int main(int argc, char* argv[]) {
  if (argc < 2) {
    fputs("usage: tour URI-FILE PART...\n", stderr);
    return 2;
  }
  auto failure = kj::runCatchingExceptions([&]() {
    auto io = kj::setupAsyncIo();
    Tour tour(io, argv[1]);
    for (kj::StringPtr part : kj::arrayPtr(argv + 2, argc - 2)) {
      if (part == "walk") tour.walk();
      if (part == "gate") tour.gate();
      if (part == "files") tour.files();
      if (part == "directories") tour.directories();
      if (part == "errors") tour.errors();
      if (part == "codes") tour.codes();
      if (part == "authority") tour.authority();
      if (part == "narrowings") tour.narrowings();
      if (part == "stores") tour.stores();
      if (part == "handles") tour.handles();
    }
  });
  KJ_IF_MAYBE(exception, failure) {
    fprintf(stderr, "tour: %s\n", exception->getDescription().cStr());
    return 1;
  }
  return 0;
}
